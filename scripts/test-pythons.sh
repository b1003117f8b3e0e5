#!/usr/bin/env bash
# test-pythons.sh BIN [PYTEST ARGUMENTS]: the unit tests on the lowest and on the newest Python of this machine, from 3.10
# on, and on the system's own; each in an environment of its own below .cache. Looked for on PATH, by uv and by pyenv.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$1/uv
shift
export UV_PYTHON_DOWNLOADS=never

about() { "$1" -c 'import platform, sys; print(platform.python_version(), sys.executable)' 2>/dev/null || true; }

found=$(
    for minor in $(seq 10 19); do "$uv" python find --no-project --system "3.$minor" 2>/dev/null || true; done
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[0-9]*/bin/python 2>/dev/null || true
)
pythons=$(for python in $found; do about "$python"; done | sort -V | awk 'NF && !seen[$1]++')
system=$(about /usr/bin/python3 | awk '$1 !~ /^3[.][0-9][.]/')
printf '%s\n%s\n' "$(printf '%s\n' "$pythons" | sed -n '1p;$p')" "$system" | awk 'NF && !seen[$1]++' |
    while read -r version python; do
        echo "== Python $version ($python)"
        venv=.cache/pythons/$version
        [ -x "$venv/bin/python" ] || "$uv" venv --quiet --no-project --python "$python" "$venv"
        "$uv" pip install --quiet --python "$venv/bin/python" --constraint constraints.txt --editable . --group dev
        "$venv/bin/python" -m pytest tests/unit -n 2 "$@" </dev/null
    done
