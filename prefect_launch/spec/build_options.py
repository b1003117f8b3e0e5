"""Build options of a launch spec. How images are built is up to the agent's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.spec.job_naming import parse_image

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
