#!/bin/sh
# Creates .venv from the lock file; every version and hash comes from there.
set -eu
cd "$(dirname "$0")/.."

for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "${python:-}" ] || {
    echo "Python 3.11 or newer is needed: install it (Debian: apt-get install python3 python3-venv), or set PYTHON" >&2
    exit 1
}

# Debian's Python comes without the parts that make an environment.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    scripts/packages.sh python3-venv
fi

echo "Setting up .venv with $("$python" --version); this takes a minute or two the first time …"
"$python" -m venv --clear .venv
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch .venv/.ready
