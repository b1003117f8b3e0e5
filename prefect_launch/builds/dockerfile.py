"""Generated Dockerfile: what it installs, the script that installs it, and the Dockerfile's text.

The dependencies of a job's code are of one of three kinds: pip, conda, none. What pip and uv understand is read as for
local processes. Only the files that state dependencies, and the packages of the code that they name, go into the
installing step, so a change of the code leaves that layer as it is.

The order of the Dockerfile's sections is the cache policy:

1. base: the image that everything is built on, by its name; its digest goes into the tag and a label;
2. system: what rarely changes, such as a Python for a base image that has none;
3. dependencies: a virtual environment, from the requirement files only. A project, which is imported by its name, is
   installed in a layer of its own above them;
4. user and working directory;
5. code, which changes most. The run's command is not in the image: one image serves every entry point.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.environments.pip_config import (
    CERTIFICATES,
    INDEX_SETTINGS,
    MACHINE_FAULT_PATTERN,
    PROJECT_LEFT_OUT,
    SECRETS,
)
from prefect_launch.environments.requirements import read_requirements
from prefect_launch.errors import SourceError

#: The folder of the build's own files: in the context, and in the image.
FOLDER: Final = "launch/"
IMAGE_FOLDER: Final = "/opt/launch"
#: The folder, in the context, of the code of a project that is installed above its dependencies.
PROJECT_FOLDER: Final = "project/"
SOURCES: Final = f"{FOLDER}src/"
VENV: Final = "/opt/venv"
#: The folder of the code in an image, which is the working directory of jobs.
CODE_DIR: Final = "/workspace"
#: A cache that is kept between builds, if there is one.
CACHE: Final = "/var/cache/launch"
INSTALL: Final = f"sh {IMAGE_FOLDER}/install.sh"
#: The same step for a project, above the layer with its dependencies.
INSTALL_PROJECT: Final = f"{INSTALL} project"
CODE_FOLDER = "code/"
_APT = """\
RUN command -v python3 >/dev/null 2>&1 || {{ \\
      apt-get update && apt-get install -y --no-install-recommends ca-certificates \\
        $(apt-cache show python{version}-venv >/dev/null 2>&1 \\
          && echo python{version} python{version}-venv || echo python3 python3-venv) python3-pip \\
      && rm -rf /var/lib/apt/lists/*; }}"""
_CONDA = f"""\
USER root
COPY {SOURCES} {IMAGE_FOLDER}/src/
RUN micromamba create --yes --prefix {VENV} --file {IMAGE_FOLDER}/src/environment.yml && micromamba clean --all --yes
RUN mkdir -p {CODE_DIR} && chown {{user}}:0 {CODE_DIR}"""
COPY_PROJECT = f"COPY {PROJECT_FOLDER} {IMAGE_FOLDER}/src/\n"


@dataclass(frozen=True)
class Dependencies:
    """What a job's code needs, and the files that state it.

    Attributes:
        context: the files of the code that the installing step needs.
        conda: whether the environment is a conda environment.
        project: whether the code is a project that is installed in a layer of its own.
    """

    context: BuildContext
    conda: bool = False
    project: bool = False


def find_dependencies(folder: Path, limit: int) -> Dependencies:
    """Return what the code in a folder needs.

    Raises:
        SourceError: when a requirements file cannot be used.
    """
    found = read_requirements(folder)
    for name, place in found.variables.items():
        raise SourceError(
            f"{place} names the environment variable ${{{name}}}, and the build of an image is given none. Have the"
            " agent's operator name the index in the builder's pip_config, or queue the job on local-process."
        )
    variables = {**found.build_variables, "SETUPTOOLS_SCM_PRETEND_VERSION": "0.0.0"} if found.project else {}
    files = {
        f"{FOLDER}arguments": _lines(found.arguments),
        f"{FOLDER}build.env": _exports(found.build_variables),
        f"{FOLDER}project.env": _exports(variables),
        **{f"{SOURCES}{name}": content for name, content in found.files.items()},
    }
    packages = merge(*(_package(path, folder, limit, SOURCES) for path in found.local))
    if found.conda is not None:
        files = {**found.files, "environment.yml": (folder / found.conda.path).read_bytes()}
        return Dependencies(packages.plus({f"{SOURCES}{name}": each for name, each in files.items()}), conda=True)
    is_apart = found.project and "." not in found.local
    project = _package(".", folder, limit, PROJECT_FOLDER) if is_apart else BuildContext()
    is_marked = {"project": found.project and not is_apart, "git": found.needs_git}
    marks = {f"{FOLDER}{name}": b"" for name, marked in is_marked.items() if marked}
    return Dependencies(merge(packages.plus({**files, **marks}), project), project=is_apart)


def _exports(variables: Mapping[str, str]) -> bytes:
    return _lines(f"export {name}={value}" for name, value in variables.items())


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _package(path: str, root: Path, limit: int, prefix: str) -> BuildContext:
    if (root / path).is_file():
        return BuildContext().plus({f"{prefix}{path}": (root / path).read_bytes()})
    return read_context(root / path, limit=limit, prefix=prefix if path == "." else f"{prefix}{path}/")


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
if [ -e "$here/git" ] && ! command -v git >/dev/null; then
  if command -v apt-get >/dev/null; then
    apt-get -q update
    apt-get -q install -y --no-install-recommends git ca-certificates
    rm -rf /var/lib/apt/lists/*
  else
    echo "The requirements name a git repository (git+...), and the base image has no git." >&2
    echo "Name a base image that has it (the agent's builder.base_image), or give the job a Dockerfile." >&2
    exit 1
  fi
fi
if [ -s "$here/arguments" ]; then install $(cat "$here/arguments"); fi
if [ -e "$here/project" ]; then install_project; fi
site=$({VENV}/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R "$here/inputs/." "$site/"
rm -rf /tmp/launch-uv
# Made here, so that the job's user can write next to its code.
mkdir -p {CODE_DIR}
chown "$(cat "$here/user"):0" {CODE_DIR}
"""


def install_files(python_version: str | None, user_id: int) -> dict[str, bytes]:
    """Return the files of the installing step, by their names in the build context."""
    return {
        f"{FOLDER}install.sh": _SCRIPT.encode(),
        f"{FOLDER}python-version": f"{python_version or ''}\n".encode(),
        f"{FOLDER}user": f"{user_id}\n".encode(),
        **{f"{FOLDER}inputs/{name}": content for name, content in _inputs().items()},
    }


def _inputs() -> dict[str, bytes]:
    """Return the files that let the job's code import `prefect_launch.inputs`, as in a local process."""
    from prefect_launch.inputs.vendoring import vendored_files

    return {name: text.encode() for name, text in vendored_files().items()}


class Recipe(BaseModel):
    """The input of a generated Dockerfile."""

    model_config = ConfigDict(frozen=True)

    base: str = Field(description="The base image, as FROM has it.")
    python_version: str = "3.11"
    brings_python: bool = Field(default=True, description="False: the base is an accelerator's, Python may be missing.")
    conda: bool = Field(default=False, description="The dependencies are a conda environment.")
    project: bool = Field(default=False, description="The code is a project, which is installed above the rest.")
    user_id: int = 1000


def write_dockerfile(
    recipe: Recipe, *, secrets: tuple[str, ...] = (INDEX_SETTINGS, CERTIFICATES), cache: bool = False
) -> str:
    """Return a Dockerfile for BuildKit, whose installing step may get some secrets and a cache."""
    mounts = [f"--mount=type=secret,id={name},target={SECRETS}/{name}" for name in secrets]
    mounts += [f"--mount=type=cache,target={CACHE}"] if cache else []
    options = " ".join(mounts)
    install = "" if recipe.conda else f"RUN {options} {INSTALL}\n"
    project = f"{COPY_PROJECT}RUN {options} {INSTALL_PROJECT}\n" if recipe.project else ""
    return f"{write_before(recipe)}{install}{project}{write_after(recipe)}"


def write_before(recipe: Recipe) -> str:
    """Return the sections before the installing step: base, system, and the files that state dependencies."""
    if recipe.conda:
        return f"FROM {recipe.base}\n{_CONDA.format(user=recipe.user_id)}\n"
    system = "" if recipe.brings_python else f"{_APT.format(version=recipe.python_version)}\n"
    return f"FROM {recipe.base}\nUSER 0\n{system}COPY {FOLDER} {IMAGE_FOLDER}/\n"


def write_after(recipe: Recipe) -> str:
    """Return the sections after the installing step: user and code."""
    user = f"{recipe.user_id}:0"
    # HOME and the names, because a user id that is not in /etc/passwd has none of them.
    return f"""\
ENV PATH={VENV}/bin:$PATH VIRTUAL_ENV={VENV} PYTHONUNBUFFERED=1 HOME={CODE_DIR} USER=launch LOGNAME=launch
WORKDIR {CODE_DIR}
USER {user}
ENTRYPOINT []
CMD ["python"]
COPY --chown={user} {CODE_FOLDER} {CODE_DIR}/
"""


def write_labels(labels: Mapping[str, str]) -> str:
    """Return the last section: the image's labels."""
    return f"LABEL {' '.join(f'{name}={json.dumps(value)}' for name, value in labels.items())}\n"
