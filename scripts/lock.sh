#!/bin/sh
# Resolves the newest allowed versions into the lock files, with hashes and without any registry's address.
set -eu
cd "$(dirname "$0")/.."
lock() {
    .venv/bin/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes --no-strip-extras \
        --no-emit-index-url --no-header pyproject.toml "$@"
}
lock --output-file requirements.lock
lock --extra dev --output-file requirements-dev.lock
