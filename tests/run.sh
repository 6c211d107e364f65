#!/usr/bin/env bash
# All tests, in the environment that launch/quickstart.sh uses. Arguments go to pytest: bash tests/run.sh -k losses
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
export OMP_NUM_THREADS=1 # many small models: more threads only wait for each other
python -m pytest "$@"
