"""What a job's code says that its image must hold, brought to one of three kinds: pip, conda, nothing.

All that pip and uv understand (`requirements.txt`, `pyproject.toml`, `uv.lock`, `requirements.frozen.txt`) becomes one
flat requirements file, read as for local processes. It goes into the build beside the packages of the code that it
names, and nothing else does: so a change of the code leaves the image's dependencies as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.environments.requirements import read_requirements
from prefect_launch.errors import SourceError

#: Where the build's own files are: in the context, and in the image.
FOLDER: Final = "launch/"
IMAGE_FOLDER: Final = "/opt/launch"
CONDA_FILES: Final = ("environment.yml", "environment.yaml", "conda.yml", "conda.yaml")
#: What wins over a conda file, as for local processes.
_PIP_FIRST: Final = ("requirements.txt", "uv.lock", "pyproject.toml")


@dataclass(frozen=True)
class Dependencies:
    """What is installed, and the files that say so.

    Attributes:
        context: what the installing step needs of the code.
        conda: whether it is a conda environment.
    """

    context: BuildContext
    conda: bool = False


def find_dependencies(folder: Path, limit: int) -> Dependencies:
    """Read what the code in a folder needs.

    Raises:
        SourceError: when a file of requirements cannot be used.
    """
    conda = next((folder / name for name in CONDA_FILES if (folder / name).is_file()), None)
    found = read_requirements(folder)
    if conda is not None and (not found.lines or not any((folder / name).is_file() for name in _PIP_FIRST)):
        return Dependencies(BuildContext().plus({f"{FOLDER}environment.yml": conda.read_bytes()}), conda=True)
    files = {
        f"{FOLDER}requirements.txt": _text(found.lines, folder),
        f"{FOLDER}constraints.txt": _text(found.constraints, folder),
    }
    packages = merge(*(_package(path, folder.resolve(), limit) for path in found.local))
    return Dependencies(packages.plus(files))


def _text(lines: tuple[str, ...], folder: Path) -> bytes:
    there = [line.replace(str(folder.resolve()), f"{IMAGE_FOLDER}/src") for line in lines]
    return "".join(f"{line}\n" for line in there).encode()


def _package(path: Path, root: Path, limit: int) -> BuildContext:
    if path != root and root not in path.parents:
        raise SourceError(
            f"The requirements name {str(path)!r}, which lies outside of the job's code. Put it into the code."
        )
    name = f"{FOLDER}src/{path.relative_to(root).as_posix()}"
    if path.is_file():
        content = path.read_bytes()
        return BuildContext().plus({name: content})
    return read_context(path, limit=limit, prefix=f"{name}/") if path.is_dir() else BuildContext()
