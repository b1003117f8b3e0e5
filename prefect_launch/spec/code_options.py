"""Options of a job's code: its image, default name, Python version, paths, and the request to build its image.

Default names are `job-<folder>`, `job-<repository>`, `job-<image>`; the tag of an image becomes an alias. The Python
version is from `runtime.txt`, then `.python-version`, then the interpreter at hand; the patch number is ignored. Both
are the reference's rules. How images are built is up to the agent's settings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.names import safe_name
from prefect_launch.errors import SpecError, unknown_name

_RUNTIME: Final = re.compile(r"3\.[0-9]+\Z")
_WRITTEN_VERSION: Final = re.compile(r"(?:python-|cpython-)?(3\.[0-9]+)(?:\.[0-9]+)?\Z", re.IGNORECASE)
_IMAGE: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._\-]*(?::[0-9]{1,5}(?=/))?(?:/[a-z0-9][a-z0-9._\-]*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)
_FILES: Final = ("runtime.txt", ".python-version")


def parse_image(image: str) -> tuple[str, str | None]:
    """Return an image's name without its tag, and its tag.

    Raises:
        SpecError: when it is no valid image name.
    """
    match = _IMAGE.match(image)
    if match is None or len(image) > 512:
        raise SpecError(
            f"Invalid image {image[:200]!r}: write [registry/]name[:tag], in lower case, such as 'team/train:1.2'."
        )
    return match["name"], match["tag"]


def job_name(subject: str) -> str:
    """Return the default name of a job from a folder, repository or image."""
    return safe_name(f"job-{subject}")


def check_runtime(runtime: str | None) -> str | None:
    """Check a Python version, and return it.

    Raises:
        SpecError: when it is not of the form `3.11`.
    """
    if runtime is not None and not _RUNTIME.match(str(runtime)):
        raise SpecError(f"Invalid runtime {runtime!r}: write the Python version as '3.N', such as '3.11'.")
    return runtime


def runtime_of(*folders: Path | None) -> str:
    """Return the Python version that the nearest of some folders declares, or the version of this interpreter.

    Raises:
        SpecError: when the file names no Python version.
    """
    for path in (folder / name for folder in folders if folder is not None for name in _FILES):
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").split()
        match = _WRITTEN_VERSION.match(lines[0]) if lines else None
        if match is None:
            raise SpecError(
                f"{path} names no Python version that can be used ({' '.join(lines)[:80]!r}): write '3.N' or '3.N.P',"
                " or give the runtime."
            )
        return match[1]
    return f"{sys.version_info.major}.{sys.version_info.minor}"


_ACCELERATOR: Final = "accelerator"
_BASE_IMAGE: Final = "base_image"
#: The reference's older word for it.
_SYNONYMS: Final = {"cuda": _ACCELERATOR}


def check_builder(builder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked part `builder` of a spec: `{"accelerator": {"base_image": …}}`, or nothing.

    Raises:
        SpecError: when its base image is no valid image name.
        NotFoundError: when it has another option.
    """
    checked: dict[str, Any] = {}
    for key, value in builder.items():
        name = _SYNONYMS.get(key, key)
        if name != _ACCELERATOR:
            raise unknown_name("launch option", key, [_ACCELERATOR], where=" in 'builder'")
        if not isinstance(value, Mapping):
            raise SpecError(f"builder.{key} must be a mapping such as {{'base_image': 'team/cuda:12'}}; got {value!r}.")
        for option in value:
            if option != _BASE_IMAGE:
                raise unknown_name("launch option", option, [_BASE_IMAGE], where=f" in 'builder.{key}'")
        if base := value.get(_BASE_IMAGE):
            checked[name] = {_BASE_IMAGE: _image(f"builder.{key}.base_image", base)}
    return checked


def check_inside(option: str, path: str) -> str:
    """Check that a path stays inside the job's code, and return it.

    Raises:
        SpecError: when it does, or is empty.
    """
    parts = PurePosixPath(path)
    if not path.strip() or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise SpecError(f"The {option} {path!r} must be a path inside the job's code, without '..'.")
    return path


def _image(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{option} must be an image's name, not {type(value).__name__} {value!r}.")
    try:
        parse_image(value.replace("{version}", "3.11"))
    except SpecError as error:
        raise SpecError(f"{option}: {error}") from None
    return value


# Build request: part of a run's plan; it names no builder, machine or registry.


class BuildRequest(BaseModel):
    """Request for the image that a job's code runs in, from the spec and the job."""

    model_config = ConfigDict(frozen=True)

    entry_point: tuple[str, ...] = Field(default=(), description="The run's command; it is not part of the image.")
    dockerfile: str | None = Field(default=None, description="A Dockerfile in the build context, by its relative path.")
    build_context: str | None = Field(default=None, description="Folder of the code that is the build context.")
    python_version: str | None = Field(default=None, description='Such as "3.11".')
    base_image: str | None = Field(default=None, description="Replaces the builder's own base image, for accelerators.")
    user_id: int | None = Field(default=None, description="User id that the job runs as; None: the builder's setting.")
