#!/bin/sh
# Installs Debian packages, or says exactly which ones somebody has to install.
set -eu

if ! command -v apt-get >/dev/null; then
    echo "please install what your system calls these Debian packages: $*" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "these system packages are missing; please run: sudo apt-get install $*" >&2
    exit 1
fi
echo "Installing $* …"
$as_root apt-get update --quiet=2
DEBIAN_FRONTEND=noninteractive $as_root apt-get install --quiet=2 --yes --no-install-recommends "$@" >/dev/null
