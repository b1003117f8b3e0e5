#!/usr/bin/env bash
# Makes the virtual environment with the pinned versions of constraints.txt, and this project in it, editable.
# Usage: make-venv.sh PYTHON FOLDER run|dev      (dev adds what the tests and checks need)
# Called again it only brings the environment up to date. Installs Debian's python3-venv when it is missing and may.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2 kind=$3

die() { echo "make-venv: $*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$python is $("$python" -V 2>&1 || true), but 3.10 or newer is needed. Name another: make PYTHON=python3.12 …"

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "$python has no venv module. On Debian: sudo apt-get install python3-venv; then call make again."
    scripts/apt-install.sh python3-venv
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
uv=$venv/bin/uv
if [ ! -x "$uv" ]; then
    "$venv/bin/python" -m ensurepip --upgrade >/dev/null
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
fi

# uv does not read pip's configuration: hand on a mirror that is named only there.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    mirror=$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)
    mirror=${PIP_INDEX_URL:-$mirror}
    if [ -n "$mirror" ]; then export UV_DEFAULT_INDEX=$mirror; fi
fi

# Bytecode now, not at each first import: some machines forbid writing it later, and Prefect then takes 3.5 s to import.
install=("$uv" pip install --quiet --python "$venv/bin/python" --compile-bytecode --constraint constraints.txt)
case $kind in
    run) "${install[@]}" --editable . ;;
    dev) "${install[@]}" --editable . --group dev ;;
    *) die "the kind is '$kind'; it must be run or dev." ;;
esac
# This project too: it is installed where it lies, and each of its processes would compile it anew.
"$venv/bin/python" -m compileall -q prefect_launch
touch "$venv/.made-run" "$venv/.made-$kind"
