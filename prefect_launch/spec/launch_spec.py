"""The launch spec: what one item asks for, as a frozen value.

The parameters of a queue item and a launch config file have this form, and `construct_spec` makes it from the arguments
of `launch` and `launch_add`. This module makes the checks that need no server; `prefect_launch.client.item_check` makes
the others (job, queue, variables).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from prefect_launch.core.names import check_name
from prefect_launch.core.units import parse_duration
from prefect_launch.core.validation import check_json, first_error, plain, reason
from prefect_launch.errors import LaunchError, SpecError, unknown_name
from prefect_launch.spec.code_options import check_builder, check_inside, check_runtime
from prefect_launch.spec.metric_pattern import MetricPattern
from prefect_launch.spec.option import Option
from prefect_launch.spec.option_names import resource_name
from prefect_launch.spec.scheduling import RETRIES_FORM, Priority, Retries

#: A field of a frozen value that holds a time limit.
TimeLimit = Annotated[
    float | None,
    BeforeValidator(parse_duration),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}, mode="validation"),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, populate_by_name=True)


#: In secure mode it has an effect only where the queue pins: see `prefect_launch.planning.refused_fields.secured`.
_OF_PIN = Option(in_secure_mode=True)


class DockerSource(_Part):
    """A container image to run as it is."""

    docker_image: Annotated[str | None, Option(("-d", "--docker-image"), "IMAGE")] = Field(
        default=None, description="An image to run as it is."
    )
    user_id: int | None = Field(default=None, ge=0, lt=2**31, description="User id of generated images.")
    pin: Annotated[bool | None, Option(("--pin/--no-pin",))] = Field(
        default=None,
        description="Pin the image to the digest that its tag has now, or use the tag at the start. Default: as the"
        " queue says, or else pin it if the registry answers.",
    )
    digest: Annotated[str | None, _OF_PIN] = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="The image's digest: what its name means to this item.",
    )
    resolved: Annotated[bool, _OF_PIN] = Field(
        default=False,
        description="The digest was looked up at the enqueue by default: where it is not available, the name is used.",
    )


class GitSource(_Part):
    """The commit, branch or tag of a git job, and what else a job that is made of a `uri` gets."""

    repo: Annotated[str | None, Option(in_secure_mode=True)] = Field(
        default=None, description="The repository of the job, which must be its own."
    )
    version: Annotated[str | None, Option(("-g", "--git-ref"), "REF", in_secure_mode=True)] = Field(
        default=None, description="The repository's branch, tag or commit. Default: the main branch."
    )
    build_context: Annotated[str | None, Option(("--build-context",), "DIR")] = Field(
        default=None, description="Of a uri's job: the folder of the repository that it runs in."
    )
    base_image: Annotated[str | None, Option(("-B", "--base-image"), "IMAGE")] = Field(
        default=None, description="Of a uri's job: an image to run the code in; no image is built then."
    )
    install: Annotated[tuple[str, ...], Option(("--install",), "REQUIREMENT")] = Field(
        default=(),
        description="Of a uri's job: what to install in place of its requirements, such as"
        " '-r requirements/train.txt'. Repeat for more.",
    )
    job_name: Annotated[str | None, Option(("-J", "--job-name"), "NAME")] = Field(
        default=None, description="Of a uri's job: its name. Default: job- and the repository's."
    )

    @property
    def of_new_job(self) -> dict[str, Any]:
        """What is given for the job that is made of a `uri`, by field."""
        return self.model_dump(include={"build_context", "base_image", "install", "job_name"}, exclude_defaults=True)


class RegistryOptions(_Part):
    """Where this call pushes the image that it builds."""

    uri: Annotated[str | None, Option(("--repository",), "REPOSITORY")] = Field(
        default=None,
        validation_alias=AliasChoices("uri", "url"),
        description="Where to push the image that this call builds: registry.example:5000/team/train.",
    )


class Overrides(_Part):
    """What this run changes of its job."""

    args: Annotated[
        tuple[str, ...], Option(form={"title": "Arguments", "type": "array", "items": {"type": "string"}})
    ] = Field(default=(), description="Arguments added after the entry point.")
    run_config: Annotated[dict[str, Any], Option(in_secure_mode=True)] = Field(
        default_factory=dict, description="The job's inputs."
    )
    artifacts: dict[str, Any] = Field(
        default_factory=dict, description="Artifacts by name, which the job finds in WANDB_ARTIFACTS."
    )
    files: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Values merged into the job's config files, by the file's path."
    )
    entry_point: Annotated[tuple[str, ...] | None, Option(("-E", "--entry-point"), "COMMAND")] = Field(
        default=None, description="The command, in place of the job's."
    )
    dockerfile: Annotated[str | None, Option(("-D", "--dockerfile"), "PATH")] = Field(
        default=None, description="A Dockerfile in the job's code, by its path there."
    )
    working_dir: str | None = Field(default=None, description="The working directory, below the job's code.")

    @field_validator("dockerfile")
    @classmethod
    def _validate_dockerfile(cls, value: str | None) -> str | None:
        return None if value is None else check_inside("dockerfile", value)

    @field_validator("args", "entry_point", mode="before")
    @classmethod
    def _validate_command(cls, value: Any, info: Any) -> Any:
        if value is None:
            return value
        if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
            raise ValueError(
                f"override {info.field_name} must be a list of strings, not {type(value).__name__} {value!r}"
            )
        return tuple(value)


class LaunchSpec(_Part):
    """What one item asks for.

    Exactly one of `job`, `docker.docker_image` (or `image_uri`) and `uri` names what runs.
    """

    job: Annotated[str | None, Option(("-j", "--job"), "JOB", in_secure_mode=True)] = Field(
        default=None, description="The job: entity/project/name:alias, or a shorter form."
    )
    docker: DockerSource = DockerSource()
    image_uri: str | None = Field(default=None, description="The same as docker.docker_image.")
    uri: Annotated[str | None, Option(("-u", "--uri"), "URI")] = Field(
        default=None, description="A git repository (https, ssh, or git@host:path), or a run of a W&B server."
    )
    git: GitSource = GitSource()
    overrides: Overrides = Overrides()
    name: Annotated[
        str | None, Option(("--name",), "NAME", form={"title": "Name", "type": "string"}, in_secure_mode=True)
    ] = Field(default=None, description="The run's display name.")
    run_id: Annotated[str | None, Option(("--run-id",), "ID", in_secure_mode=True)] = Field(
        default=None, description="A permanent id for the run. Adding the same again returns the same item."
    )
    resource: Annotated[str | None, Option(("-r", "--resource"), "RESOURCE", in_secure_mode=True)] = Field(
        default=None, description="The resource to run on, such as local-container."
    )
    resource_args: Annotated[
        dict[str, dict[str, Any]],
        Option(
            ("-R", "--resource-args"),
            "ARGS",
            form={
                "title": "Resource arguments",
                "type": "object",
                "description": 'Options of the resource, such as {"local-container": {"memory": "2g"}}.',
            },
        ),
    ] = Field(default_factory=dict, description="The resource's options: JSON, YAML, or a file.")
    template_variables: Annotated[dict[str, Any], Option(in_secure_mode=True)] = Field(
        default_factory=dict, description="Values of the queue's template variables."
    )
    entity: Annotated[str | None, Option(("-e", "--entity"), "ENTITY", in_secure_mode=True)] = Field(
        default=None, description="The run's entity. Default: the job's."
    )
    project: Annotated[
        str | None,
        Option(("-p", "--project"), "PROJECT", form={"title": "Project", "type": "string"}, in_secure_mode=True),
    ] = Field(default=None, description="The run's project. Default: the job's.")
    author: Annotated[
        str | None,
        Option(("--author",), "AUTHOR", form={"title": "Author", "type": "string"}, in_secure_mode=True),
    ] = Field(default=None, description="Who submits it; a queue may limit what one author has on it.")
    sweep_id: Annotated[str | None, Option(in_secure_mode=True)] = Field(
        default=None, description="Id of the sweep that it belongs to."
    )
    python_version: Annotated[str | None, AfterValidator(check_runtime)] = Field(
        default=None, description="The Python of its environment or image, such as 3.12."
    )
    timeout: Annotated[
        TimeLimit,
        Option(
            ("--timeout",),
            "TIME",
            form={
                "title": "Time limit",
                "type": "string",
                "description": "How long it may run, such as 90s, 45min, 2h or 1h30m.",
            },
        ),
    ] = Field(default=None, description="How long it may run: seconds, or 45min, 2h, 1h30m. Default: no limit.")
    metric: Annotated[MetricPattern | None, Option(("--metric",), "METRIC", in_secure_mode=True)] = Field(
        default=None,
        description="A metric that is read from the log of code that does not call log_metrics():"
        " {name: loss, pattern: 'loss: ([0-9.e+-]+)'}.",
    )
    registry: RegistryOptions = RegistryOptions()
    builder: Annotated[dict[str, Any], AfterValidator(check_builder)] = Field(
        default_factory=dict, description='{"accelerator": {"base_image": …}}.'
    )
    priority: Annotated[Priority, Option(("-P", "--priority"), "PRIORITY", in_secure_mode=True)] = Field(
        default=Priority.MEDIUM, description="critical, high, medium or low; or 1 to 4. Default: medium."
    )
    resumable: Annotated[
        bool | None,
        Option(("--resumable/--no-resumable",), form={"title": "Resumable", "type": "boolean"}, in_secure_mode=True),
    ] = Field(
        default=None,
        description="Whether it can be stopped and continue from its outputs: with priority low, a queue with"
        " preemption sends it back for a critical item.",
    )
    after: Annotated[tuple[str, ...], Option(in_secure_mode=True)] = Field(
        default=(), description="Ids of items that must complete before it starts."
    )
    retries: Annotated[Retries | None, Option(("--retries",), "RULE", form=RETRIES_FORM)] = Field(
        default=None,
        description='Retry rule: how often at most, or {"max": 3, "on": ["failed", "oom"], "delay": 30}.'
        " Default: as its job says.",
        json_schema_extra=lambda schema: schema["anyOf"].append({"type": "integer", "minimum": 0}),  # type: ignore[union-attr]
    )

    @field_validator("after", mode="before")
    @classmethod
    def _parse_after(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"Invalid after {value!r}: give a list of ids of items, such as [{str(UUID(int=0))!r}].")
        try:
            return tuple(dict.fromkeys(str(UUID(str(one))) for one in value))
        except ValueError:
            raise SpecError(f"Invalid after {value!r}: an id of an item is a UUID, as launch_add returns it.") from None

    @field_validator("priority", mode="before")
    @classmethod
    def _parse_priority(cls, value: Any) -> Priority:
        return Priority.MEDIUM if value is None else Priority.parse(value)

    @field_validator("entity", "project", "run_id", "sweep_id", "author")
    @classmethod
    def _validate_name(cls, value: str | None, info: Any) -> str | None:
        return value if value is None else check_name(info.field_name, value)

    @field_validator("name")
    @classmethod
    def _validate_display_name(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or len(value) > 200 or not value.isprintable()):
            raise SpecError(
                f"Invalid run name {value[:40]!r} ({len(value)} characters): use 1 to 200 printable characters."
            )
        return value

    @field_validator("resource_args", mode="before")
    @classmethod
    def _validate_resource_args(cls, value: Any, info: ValidationInfo) -> Any:
        name = misplaced_option(value)
        if name is not None:
            resource, option = info.data.get("resource") or "RESOURCE", {name: value[name]}
            raise SpecError(
                f"Invalid resource_args: {name!r} is {value[name]!r}, and must be a resource with its options. Put"
                f" options below the name of the resource that they are for: {{{resource!r}: {option!r}}}."
            )
        return {resource_name(str(name)): one for name, one in value.items()} if isinstance(value, Mapping) else value

    @field_validator("resource")
    @classmethod
    def _read_resource(cls, value: str | None) -> str | None:
        return None if value is None else resource_name(value)

    @model_validator(mode="before")
    @classmethod
    def _validate_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = {key: value for key, value in data.items() if value is not None}
            if services := data.pop("additional_services", ()):
                raise SpecError(
                    f"Invalid additional_services {services!r}: nothing here starts additional services. Start them"
                    " as runs of their own, or in the job itself, and leave the key out."
                )
            for key in data:
                if key not in cls.model_fields:
                    raise unknown_name("launch option", key, cls.model_fields, near=_path_of(key))
        return data

    @property
    def image(self) -> str | None:
        """The container image that is named directly, if one is."""
        return self.docker.docker_image or self.image_uri

    def check_source(self) -> LaunchSpec:
        """Return this spec when it names exactly one source.

        Raises:
            SpecError: when it names no source, or more than one.
        """
        named = {"job": self.job, "docker_image": self.image, "uri": self.uri}
        given = [key for key, value in named.items() if value]
        if self.docker.docker_image and self.image_uri and self.docker.docker_image != self.image_uri:
            raise SpecError(
                f"image_uri={self.image_uri!r} and docker.docker_image={self.docker.docker_image!r} name two images."
                " Keep the one that you mean."
            )
        if len(given) != 1:
            seen = " and ".join(f"{key}={named[key]!r}" for key in given) or "none of them"
            raise SpecError(
                f"Exactly one of job, docker_image or uri must be specified in the launch spec; got {seen}."
                f" {'Keep' if given else 'Name'} the one that you mean."
            )
        for key, value in () if self.uri else self.git.of_new_job.items():
            raise SpecError(
                f"git.{key} ({value!r}) is for the job that is made of a uri, and {given[0]}={named[given[0]]!r} names"
                " what runs. Give it when you make a job ('prefect-launch job create'), or leave it out."
            )
        return self

    def dump(self) -> dict[str, Any]:
        """Return the spec as JSON-ready parameters, without default values."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return dumped


def parse_spec(data: Mapping[str, Any]) -> LaunchSpec:
    """Make a spec from plain data, which is not changed.

    Raises:
        SpecError: when a value has the wrong type or is out of its range, when it is not JSON (NaN, infinity), is
            larger than 500 kB, or uses a key that Prefect's server would rewrite.
        NotFoundError: when an option's name is unknown.
        InvalidNameError: when a name in it is invalid.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"A launch config must be a mapping of option names to values, not {type(data).__name__}.")
    check_json(data)
    try:
        return LaunchSpec.model_validate(plain(data))
    except ValidationError as error:
        raise _as_launch_error(error) from None


def construct_spec(config: Mapping[str, Any] | None = None, **arguments: Any) -> LaunchSpec:
    """Make the spec of a call: the arguments win over the config, key by key.

    Args:
        config: a launch config; it is not changed.
        **arguments: of `launch` and `launch_add`: `uri, job, template_variables, project, entity, resource,
        entry_point, name, version, docker_image, resource_args, run_id, repository, sweep_id, author, priority`. `None`
        is "not given".

    Returns:
        The spec, with exactly one source.

    Raises:
        LaunchError: as `parse_spec` and `LaunchSpec.check_source` do.
    """
    if config is not None and not isinstance(config, Mapping):
        raise SpecError(f"config must be a mapping (a launch config), not {type(config).__name__}.")
    given = {key: value for key, value in arguments.items() if value is not None}
    data = {key: value for key, value in (config or {}).items() if value is not None}
    for part, key, value in (
        ("git", "version", given.pop("version", None)),
        ("docker", "docker_image", given.pop("docker_image", None)),
        ("overrides", "entry_point", given.pop("entry_point", None)),
        ("registry", "uri", given.pop("repository", None)),
    ):
        if value is not None:
            data[part] = {**_mapping(part, data.get(part)), key: value}
    if "template_variables" in given:
        own = _mapping("template_variables", given.pop("template_variables"))
        data["template_variables"] = {**_mapping("template_variables", data.get("template_variables")), **own}
    return parse_spec({**data, **given}).check_source()


def misplaced_option(resource_args: object) -> str | None:
    """Return the name of an option that stands where the name of its resource must; None where all are in order."""
    given = resource_args.items() if isinstance(resource_args, Mapping) else ()
    return next((name for name, options in given if not isinstance(options, Mapping)), None)


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SpecError(f"{name} must be a mapping, not {type(value).__name__} {value!r}.")
    return value


def _path_of(key: object) -> str | None:
    """Return the path of an option that was given outside its part: `version` is `git.version`."""
    parts = {name: field.annotation for name, field in LaunchSpec.model_fields.items()}
    return next(
        (f"{name}.{key}" for name, kind in parts.items() if isinstance(kind, type) and key in _fields(kind)), None
    )


def _fields(kind: type) -> Collection[str]:
    return kind.model_fields if issubclass(kind, _Part) else ()


def _as_launch_error(error: ValidationError) -> LaunchError:
    first = first_error(error)
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {
            "overrides": Overrides,
            "docker": DockerSource,
            "git": GitSource,
            "registry": RegistryOptions,
            "metric": MetricPattern,
        }
        model = models.get(str(first["loc"][0]))
        known = model.model_fields if model else LaunchSpec.model_fields
        return unknown_name("launch option", first["loc"][-1], known, where=f" in {first['loc'][0]!r}")
    return SpecError(f"Invalid launch spec: {where}: {reason(first)} (got {first['input']!r}).")
