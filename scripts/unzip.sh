#!/bin/sh
# Makes sure that there is an unzip to try archives with, one that we have not written.
set -eu
cd "$(dirname "$0")/.."
command -v unzip >/dev/null || exec scripts/packages.sh unzip
