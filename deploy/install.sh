#!/bin/sh
# Make the virtual environment from the lock: with uv where there is one or pip can bring it, else with pip.
set -eu

python=
for candidate in "$PYTHON" python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11 or later is needed, and none was found: name one with PYTHON=..." >&2
    exit 1
fi

echo "installing into $VENV"
if [ -t 2 ]; then quiet=; else quiet=--quiet; fi # on a terminal the installer shows its progress
[ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"

uv=$(command -v uv || true)
if [ -z "$uv" ] && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null; then
    uv=$VENV/bin/uv
fi

if [ -n "$uv" ]; then
    VIRTUAL_ENV=$VENV "$uv" pip install $quiet --compile-bytecode --require-hashes -r requirements.lock
    VIRTUAL_ENV=$VENV "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
else
    "$VENV/bin/python" -m pip install $quiet --disable-pip-version-check --require-hashes -r requirements.lock
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
fi
