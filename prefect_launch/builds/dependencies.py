"""What a job's code says that its image must hold, brought to one of three kinds: pip, conda, nothing.

What pip and uv understand is read as for local processes: the files that say it go into the build beside the packages
of the code that they name, and nothing else does, so that a change of the code leaves the image's dependencies as they
are. A project that is installed itself goes into a layer of its own above them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.environments.projects import FILE as PROJECT_FILE
from prefect_launch.environments.requirements import CONDA_FILES, LOCK_FILE, PIP_FILE, read_requirements
from prefect_launch.errors import SourceError

#: Where the build's own files are: in the context, and in the image.
FOLDER: Final = "launch/"
IMAGE_FOLDER: Final = "/opt/launch"
#: Where the code of a project is in the context that is installed above its dependencies.
PROJECT_FOLDER: Final = "project/"
SOURCES: Final = f"{FOLDER}src/"
#: What wins over a conda file, as for local processes.
_PIP_FIRST: Final = (PIP_FILE, LOCK_FILE, PROJECT_FILE)


@dataclass(frozen=True)
class Dependencies:
    """What is installed, and the files that say so.

    Attributes:
        context: what the installing step needs of the code.
        conda: whether it is a conda environment.
        project: whether the code is a project that is installed in a layer of its own.
    """

    context: BuildContext
    conda: bool = False
    project: bool = False


def find_dependencies(folder: Path, limit: int) -> Dependencies:
    """Read what the code in a folder needs.

    Raises:
        SourceError: when a file of requirements cannot be used.
    """
    conda = next((folder / name for name in CONDA_FILES if (folder / name).is_file()), None)
    found = read_requirements(folder)
    if conda is not None and not (found.arguments and any((folder / name).is_file() for name in _PIP_FIRST)):
        return Dependencies(BuildContext().plus({f"{FOLDER}environment.yml": conda.read_bytes()}), conda=True)
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
    is_apart = found.project and "." not in found.local
    project = _package(".", folder, limit, PROJECT_FOLDER) if is_apart else BuildContext()
    marks = {f"{FOLDER}project": b""} if found.project and not is_apart else {}
    return Dependencies(merge(packages.plus({**files, **marks}), project), project=is_apart)


def _exports(variables: Mapping[str, str]) -> bytes:
    return _lines(f"export {name}={value}" for name, value in variables.items())


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _package(path: str, root: Path, limit: int, prefix: str) -> BuildContext:
    if (root / path).is_file():
        return BuildContext().plus({f"{prefix}{path}": (root / path).read_bytes()})
    return read_context(root / path, limit=limit, prefix=prefix if path == "." else f"{prefix}{path}/")
