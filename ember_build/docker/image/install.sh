#!/bin/bash
# Installs what a lock file pins, from that and the few files beside it alone, for builds to come.
#
#   CHECKOUT_DIR      package.json, yarn.lock, bower.json and the settings of their tools; is only read
#   WORK_DIR          scratch
#   YARN_CACHE_FOLDER yarn's downloads; written by `fetch`, only read by `install`
#   GITHUB_ARCHIVES   addresses of archives that the lock file names by their commits, without a hash
#   FIRST_SEEN_DIR    what they held when they came for the first time; written by `compare`
#   STORE_DIR         receives the result in `keep`
#
# usage: install.sh fetch|compare|install|keep     each in a container of its own
set -euo pipefail

step() {
    printf '==> %s\n' "$*"
}

case $1 in
    fetch)
        step 'yarn install --ignore-scripts, to fetch what the lock file names'
        cp -R "$CHECKOUT_DIR/." "$WORK_DIR/"
        cd "$WORK_DIR"
        # Two yarns that fill one cache at the same time spoil it for each other: they take turns.
        yarn install --pure-lockfile --non-interactive --ignore-scripts --mutex "file:$YARN_CACHE_FOLDER/.mutex"
        # What follows has to come from the downloads, in the order and with the scripts of an ordinary installation.
        rm -rf node_modules
        ;;
    compare)
        step "compare GitHub's archives with what came at the first time"
        for address in $GITHUB_ARCHIVES; do
            metadata=$(grep -rlF --include=.yarn-metadata.json "\"resolved\": \"$address\"" "$YARN_CACHE_FOLDER" || true)
            # A lock file may name what nothing needs any more: yarn leaves it out.
            if [ -z "$metadata" ]; then
                continue
            fi
            if [ ! -f "$metadata" ]; then
                echo "error: yarn has fetched $address more than once, so it cannot be compared"
                exit 1
            fi
            cd "$(dirname "$metadata")"
            # Names, modes and links of all that was in it, and the bytes of its files; not of the archive, since what
            # GitHub packs anew may be compressed in another way.
            files=(. -type f -not -path ./.yarn-metadata.json -not -path ./.yarn-tarball.tgz)
            held=$({
                find . -mindepth 1 -not -path ./.yarn-metadata.json -not -path ./.yarn-tarball.tgz \
                    -printf '%y %m %l %P\n' | LC_ALL=C sort
                find "${files[@]}" -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
            } | sha256sum | cut -c 1-64)
            first=$FIRST_SEEN_DIR/$(printf '%s' "$address" | sha256sum | cut -c 1-64)
            mine=$(mktemp "$FIRST_SEEN_DIR/.XXXXXXXX")
            printf '%s %s\n' "$held" "$address" > "$mine"
            sync "$mine" # a machine that loses power must not leave an empty record
            # Of two builds at the same time the first one counts. A record without contents is of no build.
            if [ -f "$first" ] && [ ! -s "$first" ]; then
                mv "$mine" "$first"
            elif ! failure=$(ln "$mine" "$first" 2>&1) && [ ! -f "$first" ]; then
                rm "$mine"
                echo "error: what GitHub's archives hold cannot be remembered: $failure"
                exit 1
            fi
            rm -f "$mine"
            if [ "$(cut -d ' ' -f 1 "$first")" != "$held" ]; then
                echo "error: $address holds something else than at the first time, which was $(date -u -r "$first" '+%F %H:%M') UTC"
                exit 1
            fi
        done
        ;;
    install)
        cd "$WORK_DIR"
        step 'yarn install --pure-lockfile, from the downloads'
        # yarn wants a cache that it can write to, for packages of the repository itself: one that leads to the other.
        downloads=$YARN_CACHE_FOLDER
        export YARN_CACHE_FOLDER=$TMPDIR/yarn-cache
        for version in "$downloads"/v*/; do
            version=$(basename "$version")
            mkdir -p "$YARN_CACHE_FOLDER/$version"
            find "$downloads/$version" -mindepth 1 -maxdepth 1 -type d -not -name '.tmp' \
                -exec ln -s -t "$YARN_CACHE_FOLDER/$version" {} +
        done
        yarn install --pure-lockfile --non-interactive
        if [ -f bower.json ]; then
            step 'bower install --allow-root'
            bower install --allow-root
        fi
        ;;
    keep)
        step 'keep the dependencies for builds with the same lock files'
        for name in node_modules bower_components; do
            if [ -d "$WORK_DIR/$name" ] && [ ! -L "$WORK_DIR/$name" ]; then
                cp -a "$WORK_DIR/$name" "$STORE_DIR/$name"
            fi
        done
        mkdir -p "$STORE_DIR/node_modules"
        ;;
esac
