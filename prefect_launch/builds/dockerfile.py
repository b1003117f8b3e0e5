"""The one function that writes a Dockerfile. The order of its sections is the cache policy.

1. base: the image that everything stands on, by its name; the digest that it had goes into the tag and a label;
2. system: what rarely changes, such as a Python for a base image that brings none;
3. dependencies: a virtual environment, from the requirement files only, so that a change of the code leaves it alone;
   what is a project, to be imported by its name, is installed in a layer of its own above them;
4. whom it runs as, and where; 5. code, which changes most, comes last. The run's command is no part of it: one image
serves every entry point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.builds.dependencies import FOLDER, IMAGE_FOLDER, PROJECT_FOLDER
from prefect_launch.builds.install import (
    CACHE,
    CERTIFICATES,
    CODE_DIR,
    INDEX_SETTINGS,
    INSTALL,
    INSTALL_PROJECT,
    SECRETS,
    VENV,
)

CODE_FOLDER = "code/"

_APT = """\
RUN command -v python3 >/dev/null 2>&1 || {{ \\
      apt-get update && apt-get install -y --no-install-recommends ca-certificates \\
        $(apt-cache show python{version}-venv >/dev/null 2>&1 \\
          && echo python{version} python{version}-venv || echo python3 python3-venv) python3-pip \\
      && rm -rf /var/lib/apt/lists/*; }}"""
_CONDA = f"""\
USER root
COPY {FOLDER}environment.yml {IMAGE_FOLDER}/environment.yml
RUN micromamba create --yes --prefix {VENV} --file {IMAGE_FOLDER}/environment.yml && micromamba clean --all --yes
RUN mkdir -p {CODE_DIR} && chown {{user}}:0 {CODE_DIR}"""

_COPY_PROJECT = f"COPY {PROJECT_FOLDER} {IMAGE_FOLDER}/src/"


class Recipe(BaseModel):
    """What goes into a generated Dockerfile."""

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
    """Return a Dockerfile for BuildKit.

    Args:
        recipe: what goes in.
        secrets: names of the build secrets that the installing step may be given.
        cache: whether it has a cache that is kept between builds.
    """
    mounts = [f"--mount=type=secret,id={name},target={SECRETS}/{name}" for name in secrets]
    mounts += [f"--mount=type=cache,target={CACHE}"] if cache else []
    options = " ".join(mounts)
    install = () if recipe.conda else (f"RUN {options} {INSTALL}",)
    project = (_COPY_PROJECT, f"RUN {options} {INSTALL_PROJECT}") if recipe.project else ()
    return _text(*before_install(recipe), *install, *project, *after_install(recipe))


def write_before(recipe: Recipe) -> str:
    """Return the part up to the installing step, for a builder that makes that step by itself."""
    return _text(*before_install(recipe))


def write_project(installed: str) -> str:
    """Return the part up to the installing step of a project, on the image that has what it depends on."""
    return _text(f"FROM {installed}", "USER 0", _COPY_PROJECT)


def write_after(recipe: Recipe, installed: str) -> str:
    """Return the part that follows the installing step, on the image that it gave."""
    return _text(f"FROM {installed}", *after_install(recipe))


def write_labels(labels: Mapping[str, str]) -> str:
    """Return the last section: the image's labels."""
    return f"LABEL {' '.join(f'{name}={json.dumps(value)}' for name, value in labels.items())}\n"


def before_install(recipe: Recipe) -> tuple[str, ...]:
    """Return the sections base, system, and the dependencies up to their installation."""
    base = (f"FROM {recipe.base}",)
    if recipe.conda:
        return (*base, _CONDA.format(user=recipe.user_id))
    system = () if recipe.brings_python else (_APT.format(version=recipe.python_version),)
    return (*base, "USER 0", *system, f"COPY {FOLDER} {IMAGE_FOLDER}/")


def after_install(recipe: Recipe) -> tuple[str, ...]:
    """Return the sections user and code."""
    user = f"{recipe.user_id}:0"
    return (
        # HOME and the names, because a user id that /etc/passwd does not know has none of them.
        f"ENV PATH={VENV}/bin:$PATH VIRTUAL_ENV={VENV} PYTHONUNBUFFERED=1 HOME={CODE_DIR} USER=launch LOGNAME=launch",
        f"WORKDIR {CODE_DIR}",
        f"USER {user}",
        'ENTRYPOINT []\nCMD ["python"]',
        f"COPY --chown={user} {CODE_FOLDER} {CODE_DIR}/",
    )


def _text(*sections: str) -> str:
    return "\n".join(sections) + "\n"
