# Sourced by launch/quickstart.sh and tests/run.sh: makes .venv ready and enters it. Quick when nothing changed.
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python is $(python3 --version 2>&1); expected 3.10 or newer" >&2; exit 2; }
[ -x .venv/bin/pip ] || python3 -m venv --clear .venv
. .venv/bin/activate
wanted=$(cat setup.cfg pyproject.toml launch/constraints.txt | sha256sum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (torch and what it needs: some minutes)"
    python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[test]'
    echo "$wanted" >.venv/installed
fi
