#!/bin/bash
# Installs what a lock file pins, from that and the few files beside it alone, for builds to come.
#
#   CHECKOUT_DIR      package.json, yarn.lock, bower.json and the settings of their tools; is only read
#   WORK_DIR          scratch
#   YARN_CACHE_FOLDER yarn's downloads; written by `fetch`, only read by `install`
#   STORE_DIR         receives the result in `keep`
#
# usage: install.sh fetch|install|keep     each in a container of its own
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
