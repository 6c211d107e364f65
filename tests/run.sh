#!/usr/bin/env bash
# All tests, in the environment that launch/quickstart.sh uses. Arguments go to pytest: bash tests/run.sh -k losses
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
older=.venv/transformers-4.57 # what users of older releases load adapters with: tests/models/test_transformers_versions.py
if [ ! -e $older/installed ]; then
    echo "installing into $older"
    python -m pip install --quiet --disable-pip-version-check --target $older --no-deps --upgrade transformers==4.57.6 huggingface-hub==0.36.0 tokenizers==0.22.1 requests urllib3 idna certifi charset-normalizer
    touch $older/installed
fi
export OMP_NUM_THREADS=1 # many small models: more threads only wait for each other
export PYTHONDONTWRITEBYTECODE= # hundreds of processes import the package: it is compiled once
python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
