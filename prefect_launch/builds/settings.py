"""Builder settings: the part `builder` of an agent's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_launch.core.units import parse_size
from prefect_launch.errors import AgentConfigError, SpecError, unknown_name
from prefect_launch.registries.base import parse_repository
from prefect_launch.spec.code_options import parse_image

#: The reference's names of builders that have another name here.
_SYNONYMS: Final = {"noop": "none"}
_TYPES: Final = ("docker", "none")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _names_are_known(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for key in data:
            if key not in cls.model_fields:
                raise AgentConfigError(str(unknown_name("builder setting", key, cls.model_fields)))
        return {key: value for key, value in data.items() if value is not None}


class Accelerator(_Part):
    """Images for machines with accelerators."""

    base_image: str | None = Field(default=None, description="In the place of `base_image`.")

    @field_validator("base_image")
    @classmethod
    def _is_image(cls, value: str | None) -> str | None:
        return None if value is None else _good_image("builder.accelerator.base_image", value)


class BuilderSettings(_Part):
    """How images are built.

    `{version}` in a base image stands for the job's Python, such as `3.11`.
    """

    type: Literal["docker", "none"] = "docker"
    backend: Literal["auto", "buildx", "buildkit", "engine"] = Field(
        default="auto", description="What builds: BuildKit through buildx, an engine's own, or its classic builder."
    )
    base_image: str = "python:{version}-slim"
    conda_base_image: str = "mambaorg/micromamba:2.0.5"
    accelerator: Accelerator = Accelerator()
    context_limit: int = Field(default=1024**3, description="The most that goes into a build, in bytes; '1g' is fine.")
    pip_config: str = Field(
        default="auto",
        description="Settings of pip in builds: this machine's (auto), none, or a pip.conf.",
    )
    cache: bool = Field(
        default=False,
        description="Keep what pip and uv download between builds. Any build can change what the next one finds there:"
        " only where all submitters trust each other.",
    )
    destination: str | None = Field(
        default=None, description="The repository that built images are pushed to; None: they stay on their engine."
    )
    credentials: str | None = Field(
        default=None, description="DockerRegistryCredentials block for the destination's registry."
    )
    network: str | None = Field(default=None, description="The network of build steps, such as 'host'.")
    platform: str | None = Field(default=None, description="Such as linux/amd64; None: the engine's own.")
    user_id: int = Field(default=1000, ge=0, description="Whom jobs in generated images run as.")

    def check_reaches(self, resource: str) -> None:
        """Refuse to build an image for a resource that cannot have it from this machine's engine.

        Args:
            resource: that runs its jobs elsewhere.

        Raises:
            AgentConfigError: when built images stay on their engine.
        """
        if self.destination is None:
            raise AgentConfigError(
                f"The image that is built of the job's code would be on this machine's Docker Engine alone, and the"
                f" resource {resource!r} pulls its images from a registry. Set builder.destination in the agent's"
                " config to a repository, such as registry.example:5000/team/train, or give the job an image."
            )

    def pushing_to(self, repository: str | None) -> BuilderSettings:
        """Return the settings with the repository that a call names, if it names one.

        Raises:
            SpecError: when it is no valid repository.
        """
        return self.model_copy(update={"destination": parse_repository(repository)}) if repository else self

    @field_validator("type", mode="before")
    @classmethod
    def _is_builder(cls, value: Any) -> Any:
        name = _SYNONYMS.get(str(value), value)
        if name not in _TYPES:
            raise AgentConfigError(str(unknown_name("builder type", name, _TYPES)))
        return name

    @field_validator("destination")
    @classmethod
    def _is_repository(cls, value: str | None) -> str | None:
        try:
            return None if value is None else parse_repository(value)
        except SpecError as error:
            raise AgentConfigError(f"builder.destination: {error}") from None

    @model_validator(mode="after")
    def _credentials_are_for_something(self) -> BuilderSettings:
        if self.credentials and not self.destination:
            raise AgentConfigError(
                f"builder.credentials ({self.credentials!r}) are for the registry of builder.destination, which is not"
                " set. Set it, or name the block under 'registries'."
            )
        return self

    @field_validator("base_image", "conda_base_image")
    @classmethod
    def _is_image(cls, value: str, info: Any) -> str:
        return _good_image(f"builder.{info.field_name}", value)

    @field_validator("context_limit", mode="before")
    @classmethod
    def _read_size(cls, value: Any) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            raise AgentConfigError(f"builder.context_limit: {error}; got {value!r}.") from None


def _good_image(setting: str, value: str) -> str:
    try:
        parse_image(value.replace("{version}", "3.11"))
    except SpecError as error:
        raise AgentConfigError(f"{setting}: {error}") from None
    return value
