"""Conda environment files: what pip installs of them, and what only conda can."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

from prefect_launch.errors import SourceError

CONDA_FILES: Final = ("environment.yml", "environment.yaml", "conda.yml", "conda.yaml")
#: The requirements file that is generated from the section `pip`.
PIP_SECTION_FILE: Final = "requirements.conda.txt"
#: Packages that each environment has.
_EVERYWHERE: Final = frozenset({"python", "pip", "setuptools", "wheel"})


@dataclass(frozen=True)
class CondaFile:
    """The dependencies of an `environment.yml`.

    Attributes:
        path: its path in the code.
        pip: lines of the section `pip`.
        packages: names of the other packages, less those that each environment has.
    """

    path: str
    pip: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """Why a run without an image cannot have its environment, and what to do."""
        return (
            f"The job's {self.path} asks for conda's packages ({', '.join(self.packages)}), which only images get:"
            " without one, pip alone installs. Use a queue of containers, or name pip's packages in their place: with"
            " --install when the job is made, or in a requirements.txt (an empty one if nothing is needed)."
        )


def read_conda_file(content: bytes, path: str) -> CondaFile:
    """Read a conda environment file.

    Raises:
        SourceError: when it has no list of dependencies.
    """
    try:
        found = yaml.safe_load(content) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"The job's {path} cannot be read: {error}. Correct it.") from None
    entries = found.get("dependencies", []) if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise SourceError(f"The job's {path} has no list 'dependencies'. Write it as conda reads it.")
    sections = [entry.get("pip") or [] for entry in entries if isinstance(entry, dict)]
    named = [re.split(r"[\s=<>!~\[]", entry.rpartition("::")[2], maxsplit=1)[0] for entry in map(_text, entries)]
    return CondaFile(
        path,
        tuple(str(line) for section in sections for line in section),
        tuple(name for name in named if name and name not in _EVERYWHERE),
    )


def _text(entry: object) -> str:
    return "" if isinstance(entry, dict) else str(entry).strip()
