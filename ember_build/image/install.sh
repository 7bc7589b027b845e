#!/bin/bash
# Installs what a lock file pins, from that and the few files beside it alone, for builds to come.
#
#   CHECKOUT_DIR      package.json, yarn.lock and the settings of yarn and npm; is only read
#   WORK_DIR          scratch; node_modules is made there
#   YARN_CACHE_FOLDER yarn's download cache
set -euo pipefail
printf '==> %s\n' 'yarn install --pure-lockfile, for the store'
cp -R "$CHECKOUT_DIR/." "$WORK_DIR/"
cd "$WORK_DIR"
exec yarn install --pure-lockfile --non-interactive
