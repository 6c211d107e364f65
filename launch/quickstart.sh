#!/usr/bin/env bash
# Makes .venv ready and shows the whole way once: captures, shards, training, scores, predictions.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
exec depthdist demo "$@"
