#!/usr/bin/env bash
# All tests, in the environment that launch/quickstart.sh uses. Arguments go to pytest: bash tests/run.sh -k losses
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
python -m pytest "$@"
