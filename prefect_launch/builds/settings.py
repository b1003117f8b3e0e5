"""Builder settings: the part `builder` of an agent's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_launch.core.units import parse_duration, parse_size
from prefect_launch.errors import AgentConfigError, LaunchError, SpecError, unknown_name
from prefect_launch.registries.base import parse_repository
from prefect_launch.spec.code_options import parse_image

#: The reference's names of builders that have another name here.
_SYNONYMS: Final = {"noop": "none", "kaniko": "kubernetes"}
_TYPES: Final = ("docker", "kubernetes", "none")
#: What only a builder on a Docker Engine knows.
_ENGINE_ONLY: Final = ("backend", "network", "cache")
#: Options of the resource kubernetes that say what a build is, and not where it runs.
_NOT_OF_BUILDS: Final = frozenset(
    {*("additional-services", "apiversion", "custom", "gpu-resource", "gpus", "kind", "main-container", "metadata")}
    | {*("node-registries", "ttl", "wait-for-ready", "wait-timeout")}
)


#: Settings of the reference's kaniko builder, and what stands for each here.
_OF_KANIKO: Final = {
    "build-context-store": "Leave it out: the context travels in ConfigMaps",
    "build-job-name": "Leave it out: a build's Job is named after its image",
    "kaniko-image": "Write it as builder.kubernetes.image",
    "kaniko-config": "Write the pod's parts as builder.kubernetes.spec",
    "secret-name": "Name a Secret of the type kubernetes.io/dockerconfigjson as builder.kubernetes.push_secret",
    "secret-key": "Leave it out: builder.kubernetes.push_secret names a Secret whose type says its key",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _validate_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for key in data:
            if step := _OF_KANIKO.get(str(key).replace("_", "-")):
                raise AgentConfigError(f"The builder setting {key!r} of W&B Launch is none here. {step}.")
            if key not in cls.model_fields:
                raise AgentConfigError(str(unknown_name("builder setting", key, cls.model_fields)))
        return {key: value for key, value in data.items() if value is not None}


class Accelerator(_Part):
    """Images for machines with accelerators."""

    base_image: str | None = Field(default=None, description="In the place of `base_image`.")

    @field_validator("base_image")
    @classmethod
    def _validate_image(cls, value: str | None) -> str | None:
        return None if value is None else _good_image("builder.accelerator.base_image", value)


class ClusterSettings(BaseModel):
    """Builds in a Kubernetes cluster, the part `builder.kubernetes`.

    What it has besides these are options of the resource `kubernetes`, as a queue has them: `namespace`, `cpus`,
    `memory`, `node_selector`, `tolerations`, `service_account`, `context`, a pod template in `spec`, and the like.
    """

    model_config = ConfigDict(frozen=True)

    image: str = Field(
        default="ghcr.io/osscontainertools/kaniko:v1.28.0",
        description="The program that builds and pushes: kaniko from v1.28 on, or one that understands its flags.",
    )
    unpack_image: str = Field(
        default="busybox:1.37", description="Has sh and cat; needed for a packed context above 1 MiB only."
    )
    args: tuple[str, ...] = Field(default=(), description="More flags for the build, such as --build-arg=NAME=VALUE.")
    push_secret: str | None = Field(
        default=None,
        description="Secret of the type kubernetes.io/dockerconfigjson in the namespace; None: one is made of what the"
        " agent knows itself for the destination, and goes with the build.",
    )
    pull_secret: str | None = Field(
        default=None,
        description="Likewise, with a login for the base images, which the steps of a Dockerfile can read; None: one is"
        " made of what the agent knows, without the login that pushes.",
    )
    timeout_seconds: float = Field(default=3600, gt=0, description="What a build may take, s; 'timeout: 1h' is fine.")
    options: dict[str, Any] = Field(default_factory=dict, description="Of the resource kubernetes, checked.")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise AgentConfigError(f"builder.kubernetes must be a mapping of settings, not {data!r}.")
        given = {key: value for key, value in data.items() if value is not None}
        given = {_OWN_NAMES.get(str(key).replace("-", "_"), key): value for key, value in given.items()}
        own = {key: given.pop(key) for key in _OWN_NAMES if key != "timeout" and key in given}
        own["timeout_seconds"] = _seconds(given.pop("timeout", given.pop("timeout_seconds", 3600)))
        options = {**given.pop("options", {}), **given}
        for name in ("image", "unpack_image"):
            if name in own:
                own[name] = _good_image(f"builder.kubernetes.{name}", own[name])
        return {**own, "options": _cluster_options(options)}

    @field_validator("push_secret", "pull_secret")
    @classmethod
    def _validate_name(cls, value: str | None, info: Any) -> str | None:
        from prefect_launch.runners.remote.kubernetes.rules import check_object_name

        try:
            return None if value is None else check_object_name(f"builder.kubernetes.{info.field_name}", value)
        except SpecError as error:
            raise AgentConfigError(str(error)) from None


#: The keys that are not options of the resource; a dash is as good as an underscore.
_OWN_NAMES: Final = {name: name for name in ("image", "unpack_image", "args", "push_secret", "pull_secret", "timeout")}


def _seconds(value: Any) -> float:
    try:
        seconds = parse_duration(value)
    except SpecError:
        seconds = None
    if seconds is None:
        raise AgentConfigError(f"builder.kubernetes.timeout must be a duration, such as 3600 or '1h'; got {value!r}.")
    return seconds


def _cluster_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked options of a build's Job."""
    if not given:
        return {}
    from prefect_launch.runners.remote.kubernetes.options import OPTIONS, check_options
    from prefect_launch.spec.option_names import normalise_options

    options = normalise_options(given)
    known = sorted({*_OWN_NAMES, *OPTIONS} - _NOT_OF_BUILDS)
    for name in options:
        if name not in OPTIONS or name in _NOT_OF_BUILDS:
            raise AgentConfigError(str(unknown_name("builder.kubernetes setting", name, known)))
    whole = {**options, "apiversion": "batch/v1", "kind": "Job"} if "spec" in options else options
    try:
        check_options(whole)
        return options
    except LaunchError as error:
        raise AgentConfigError(str(error).replace("resource_args.kubernetes", "builder.kubernetes")) from None


class BuilderSettings(_Part):
    """How images are built.

    `{version}` in a base image stands for the job's Python, such as `3.11`.
    """

    type: Literal["docker", "kubernetes", "none"] = Field(
        default="docker", description="What builds images: a Docker Engine, a Job of a cluster, or nothing."
    )
    backend: Literal["auto", "buildx", "buildkit", "engine"] = Field(
        default="auto", description="What builds: BuildKit through buildx, an engine's own, or its classic builder."
    )
    base_image: str = Field(default="python:{version}-slim", description="What generated images begin with.")
    conda_base_image: str = Field(
        default="mambaorg/micromamba:2.0.5", description="Likewise, for code with an environment.yml of conda."
    )
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
    kubernetes: ClusterSettings = Field(default=ClusterSettings(), description="For the type kubernetes.")

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

    @property
    def builds_in_cluster(self) -> bool:
        """Whether a Job of a cluster builds, and no Docker Engine."""
        return self.type == "kubernetes"

    def pushing_to(self, repository: str | None) -> BuilderSettings:
        """Return the settings with the repository that a call names, if it names one.

        Raises:
            SpecError: when it is no valid repository.
        """
        return self.model_copy(update={"destination": parse_repository(repository)}) if repository else self

    @field_validator("type", mode="before")
    @classmethod
    def _validate_type(cls, value: Any) -> Any:
        name = _SYNONYMS.get(str(value), value)
        if name not in _TYPES:
            raise AgentConfigError(str(unknown_name("builder type", name, _TYPES)))
        return name

    @field_validator("destination")
    @classmethod
    def _validate_destination(cls, value: str | None) -> str | None:
        try:
            return None if value is None else parse_repository(value)
        except SpecError as error:
            raise AgentConfigError(f"builder.destination: {error}") from None

    @model_validator(mode="after")
    def _validate_credentials(self) -> BuilderSettings:
        if self.credentials and not self.destination:
            raise AgentConfigError(
                f"builder.credentials ({self.credentials!r}) are for the registry of builder.destination, which is not"
                " set. Set it, or name the block under 'registries'."
            )
        return self

    @model_validator(mode="after")
    def _validate_combination(self) -> BuilderSettings:
        given = self.model_fields_set
        if not self.builds_in_cluster:
            if "kubernetes" in given:
                raise AgentConfigError(
                    f"builder.kubernetes is for builds in a cluster, and builder.type is {self.type!r}. Set it to"
                    " kubernetes, or leave the part out."
                )
            return self
        if not self.destination:
            raise AgentConfigError(
                "builder.type is kubernetes, and builder.destination is not set: an image that is built in a cluster"
                " is pushed to a registry. Set it to a repository, such as registry.example:5000/team/built."
            )
        for name in _ENGINE_ONLY:
            if name in given and getattr(self, name) != type(self).model_fields[name].default:
                raise AgentConfigError(
                    f"builder.{name} is for builds on a Docker Engine, and builder.type is kubernetes. Leave it out, or"
                    " give the build program's own flags in builder.kubernetes.args."
                )
        return self

    @field_validator("base_image", "conda_base_image")
    @classmethod
    def _validate_image(cls, value: str, info: Any) -> str:
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
