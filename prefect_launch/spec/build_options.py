"""What a launch spec may say of the image that is built for it; how images are built is the agent's matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.spec.job_naming import parse_image

_ACCELERATOR: Final = "accelerator"
_BASE_IMAGE: Final = "base_image"
#: The reference's older word for the same.
_SYNONYMS: Final = {"cuda": _ACCELERATOR}


def check_builder(builder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part `builder` of a spec: `{"accelerator": {"base_image": …}}`, or nothing.

    Raises:
        SpecError: when its base image is none.
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
    """Return a path that does not leave the job's code.

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


# What a job's image is wished to be, as the plan of a run says it: no builder, no machine, no registry.


class BuildRequest(BaseModel):
    """What the spec and the job say of the image that the job's code runs in."""

    model_config = ConfigDict(frozen=True)

    entry_point: tuple[str, ...] = Field(default=(), description="The run's command; it is not baked into the image.")
    dockerfile: str | None = Field(default=None, description="A Dockerfile in the build context, by its relative path.")
    build_context: str | None = Field(default=None, description="Folder of the code that the image is built in.")
    python_version: str | None = Field(default=None, description='Such as "3.11".')
    base_image: str | None = Field(default=None, description="In the place of the builder's own, for accelerators.")
    user_id: int | None = Field(default=None, description="Whom the job runs as; None: as the builder is configured.")
