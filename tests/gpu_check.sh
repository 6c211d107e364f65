#!/usr/bin/env bash
# What only a GPU can show, in at most 9 minutes, the most important first:
#   bash tests/gpu_check.sh [--wheels FOLDER] [--out FOLDER] [--seconds 540] [--parts step,train] [--tiny]
# PASS, FAIL and figures are shown as a table and kept in FOLDER/gpu_check.json, with the log of each command.
# --wheels  installs the wheels of tests/gpu_wheels.sh first, for this check alone: for a machine without network
# --tiny    small images; runs on a CPU, so that the check itself is tested before a GPU is there
set -euo pipefail
cd "$(dirname "$0")/.."
path=$PWD:$PWD/tests
if [ "${1:-}" = --wheels ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$2"/*.whl
    path=$path:$site
    shift 2
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 python3 tests/gpu_check.py "$@"
