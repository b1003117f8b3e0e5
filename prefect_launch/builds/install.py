"""The step that installs what a job needs, as a script that runs in the image while it is built.

It makes a virtual environment, with `uv` when there is one or one can be had, and with `pip` otherwise. What it is told
about package indexes is mounted for this one step (`prefect_launch.builds.pip_access`), and is in no layer.
"""

from __future__ import annotations

import shlex
from typing import Final

from prefect_launch.builds.dependencies import FOLDER, IMAGE_FOLDER
from prefect_launch.environments.installing import MACHINE_FAULT_PATTERN, PROJECT_LEFT_OUT

VENV: Final = "/opt/venv"
#: Where the code is in an image; jobs start there.
CODE_DIR: Final = "/workspace"
#: Where the step finds its secrets and tools, and a cache that is kept between builds, when there is one.
SECRETS: Final = "/run/launch"
#: The files in it: variables of a package index, and the certificates of this machine.
INDEX_SETTINGS: Final = "index.env"
CERTIFICATES: Final = "ca.pem"
CACHE: Final = "/var/cache/launch"
INSTALL: Final = f"sh {IMAGE_FOLDER}/install.sh"
#: The same step for a project, above the layer with what it depends on.
INSTALL_PROJECT: Final = f"{INSTALL} project"

_SCRIPT: Final = f"""\
# Installs the job's requirements into {VENV}; called with 'project', the project that the job's code is.
set -eu
here={IMAGE_FOLDER}
if [ -r {SECRETS}/{INDEX_SETTINGS} ]; then . {SECRETS}/{INDEX_SETTINGS}; fi
export UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
if [ -d {CACHE} ]; then
  export UV_CACHE_DIR={CACHE}/uv PIP_CACHE_DIR={CACHE}/pip
else
  export UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
python=$(command -v python3 || command -v python) || {{
  echo "The base image has no Python. Name another base image, or write a Dockerfile." >&2; exit 1
}}
wanted=$(cat "$here/python-version")
has=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ -n "$wanted" ] && [ "$wanted" != "$has" ]; then
  echo "Note: the job asks for Python $wanted, and the base image has Python $has."
fi
uv=
if [ -s "$here/arguments" ] || [ -s "$here/project.env" ]; then
  uv=$(command -v uv || true)
  if [ -z "$uv" ] && [ -x {SECRETS}/bin/uv ]; then uv={SECRETS}/bin/uv; fi
  if [ -z "$uv" ] && "$python" -m pip install --quiet --target /tmp/launch-uv uv; then uv=/tmp/launch-uv/bin/uv; fi
  if [ -n "$uv" ] && ! "$uv" --version >/dev/null 2>&1; then uv=; fi
  if [ -z "$uv" ]; then echo "uv cannot be had here, or does not run; pip installs the requirements."; fi
fi
install() {{
  if [ -n "$uv" ]; then
    "$uv" pip install --no-progress --compile-bytecode --python {VENV}/bin/python "$@"
  else
    {VENV}/bin/python -m pip install --progress-bar off "$@"
  fi
}}
install_project() {{
  . "$here/project.env"
  if (install --no-deps --editable . >/tmp/launch-said 2>&1); then cat /tmp/launch-said; rm /tmp/launch-said; return; fi
  cat /tmp/launch-said
  if grep -qiE {shlex.quote(MACHINE_FAULT_PATTERN)} /tmp/launch-said; then exit 1; fi
  rm /tmp/launch-said
  echo {shlex.quote(PROJECT_LEFT_OUT)}
}}
mkdir -p "$here/src"
cd "$here/src"
if [ "${{1:-}}" = project ]; then
  install_project
  rm -rf /tmp/launch-uv
  exit 0
fi
if [ -n "$uv" ]; then
  "$uv" venv --quiet --no-project --python "$python" {VENV}
elif [ -s "$here/arguments" ] || [ -s "$here/project.env" ]; then
  "$python" -m venv {VENV}
else
  "$python" -m venv --without-pip {VENV}
fi
. "$here/build.env"
if [ -s "$here/arguments" ]; then install $(cat "$here/arguments"); fi
if [ -e "$here/project" ]; then install_project; fi
site=$({VENV}/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R "$here/inputs/." "$site/"
rm -rf /tmp/launch-uv
# Made here, so that the job's user can write beside its code.
mkdir -p {CODE_DIR}
chown "$(cat "$here/user"):0" {CODE_DIR}
"""


def install_files(python_version: str | None, user_id: int) -> dict[str, bytes]:
    """Return the files of the step, by their names in the build context.

    Args:
        python_version: the Python that the job asks for.
        user_id: whom it runs as.
    """
    return {
        f"{FOLDER}install.sh": _SCRIPT.encode(),
        f"{FOLDER}python-version": f"{python_version or ''}\n".encode(),
        f"{FOLDER}user": f"{user_id}\n".encode(),
        **{f"{FOLDER}inputs/{name}": content for name, content in _inputs().items()},
    }


def _inputs() -> dict[str, bytes]:
    """Return what lets the job's code import `prefect_launch.inputs`, as a local process can."""
    from prefect_launch.inputs.carry import carried_files

    return {name: text.encode() for name, text in carried_files().items()}
