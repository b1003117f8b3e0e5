"""What the options of `add` and `run` ask for, as the arguments of `launch_add` and `launch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_launch.cli.launch_options import (
    BuildOption,
    EntryPointOption,
    ImageOption,
    JobOption,
    NameOption,
    PinOption,
    PriorityOption,
    QueueOption,
    RefOption,
    RepositoryOption,
    ResourceArgsOption,
    ResourceOption,
    RunIdOption,
    SetOption,
    TargetEntity,
    TargetProject,
    TimeoutOption,
    UriOption,
    VariablesOption,
)
from prefect_launch.cli.style import ConfigOption, RetriesOption
from prefect_launch.cli.values import merged, nested, read_mapping, read_retries, split_assignment, typed
from prefect_launch.errors import SpecError

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


@dataclass(frozen=True)
class Request:
    """The options as they were written, in the order of the help."""

    job: JobOption = None
    docker_image: ImageOption = None
    uri: UriOption = None
    git_ref: RefOption = None
    queue: QueueOption = None
    config: ConfigOption = None
    inputs: SetOption = None
    variables: VariablesOption = None
    priority: PriorityOption = None
    entry_point: EntryPointOption = None
    name: NameOption = None
    run_id: RunIdOption = None
    resource: ResourceOption = None
    resource_args: ResourceArgsOption = None
    entity: TargetEntity = None
    project: TargetProject = None
    timeout: TimeoutOption = None
    retries: RetriesOption = None
    build: BuildOption = False
    repository: RepositoryOption = None
    pin: PinOption = None

    def arguments(self, api: Api) -> dict[str, Any]:
        """Return the arguments that `launch_add` and `launch` share; the server is asked for the job's schema alone.

        Raises:
            SpecError: when a value cannot be read.
            NotFoundError: for an unknown job.
        """
        from prefect_launch.core.units import parse_duration
        from prefect_launch.jobs.code_checks import parse_entry_point

        config = {} if self.config is None else read_mapping(self.config, "--config")
        if self.timeout is not None:
            config = {**config, "timeout": parse_duration(self.timeout)}
        if self.pin is not None:
            config = {**config, "docker": {**(config.get("docker") or {}), "pin": self.pin}}
        if self.retries is not None:
            config = {**config, "retries": read_retries(self.retries)}
        given = {
            "job": self.job,
            "docker_image": self.docker_image,
            "version": self.git_ref,
            "config": self._with_inputs(api, config),
            "entry_point": list(parse_entry_point(self.entry_point)) or None,
            "name": self.name,
            "run_id": self.run_id,
            "resource": self.resource,
            "resource_args": self.resource_args and read_mapping(self.resource_args, "--resource-args"),
            "entity": self.entity,
            "project": self.project,
            "repository": self.repository,
        }
        return {key: value for key, value in given.items() if value is not None}

    def _with_inputs(self, api: Api, config: dict[str, Any]) -> dict[str, Any]:
        if not self.inputs:
            return config
        assignments = [split_assignment(text, "--set") for text in self.inputs]
        inputs = nested(assignments, self._schema(api, config))
        overrides = config.get("overrides") or {}
        own = overrides.get("run_config") or {} if isinstance(overrides, Mapping) else None
        if not isinstance(own, Mapping):
            raise SpecError(
                "The config's overrides.run_config must be a mapping of inputs for --set to be added to it."
            )
        return {**config, "overrides": {**overrides, "run_config": merged(own, inputs)}}

    def _schema(self, api: Api, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the schema of the job's inputs. Two sources, or none, are `launch_add`'s to refuse."""
        job = self.job or config.get("job")
        return api.job(job).schema if isinstance(job, str) and job else None

    def template_variables(self, api: Api, queue: str) -> dict[str, Any] | None:
        """Return the template variables, with the types that the queue says.

        Raises:
            SpecError: when one is not `VAR=VALUE`.
            NotFoundError: for an unknown queue.
        """
        if not self.variables:
            return None
        pairs = [split_assignment(text, "--template-variable") for text in self.variables]
        schemas = api.run_queue(queue).template_variables
        return {name: typed(text, schemas.get(name)) for name, text in pairs}
