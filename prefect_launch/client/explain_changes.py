"""What is other in an item than what its submitter asked for, and who changed it; with no value of a variable in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from prefect_launch.core.units import format_duration
from prefect_launch.policy.limits import limits_of, time_limit
from prefect_launch.policy.submitter_options import locked_options
from prefect_launch.policy.template import QueueConfig
from prefect_launch.server.secrets import secret_names
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.option_names import normalise_option, normalise_options, read_env

_ENV: Final = "env"
_HIDDEN: Final = "***"


class Change(BaseModel):
    """One thing that is other than what was asked for.

    Attributes:
        what: a launch option such as `job`, or an option of the resource.
        asked: what was asked for; `None`: nothing.
        becomes: what it is.
        by: who changed it, in words.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    asked: Any = None
    becomes: Any = None
    by: str


def changes_of(
    asked: LaunchSpec, full: LaunchSpec, config: QueueConfig, options: Mapping[str, Any], *, is_built: bool = False
) -> tuple[Change, ...]:
    """List what is other than what was asked for.

    Args:
        asked: what was asked for.
        full: the same, completed at the enqueue.
        config: the queue's.
        options: the resource's options that it runs with.
        is_built: whether its image is built first, so that it runs another job.
    """
    return (
        *_of_spec(asked, full, "the build" if is_built else "pinned", time_limit(None, config)),
        *_of_variables(asked, config),
        *_of_options(asked, config, options),
    )


def masked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, or what is created, without the values of environment variables: their names remain.

    A variable that names a secret is told with the block's name.
    """
    return {name: _names(value) if _is_env(name) else value for name, value in options.items()}


def masked_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's parameters with their `resource_args` masked."""
    by_resource = parameters.get("resource_args")
    if not isinstance(by_resource, Mapping):
        return dict(parameters)
    hidden = {resource: masked(options) for resource, options in by_resource.items()}
    return {**parameters, "resource_args": hidden}


def _is_env(name: str) -> bool:
    return normalise_option(name) == _ENV


def _names(env: Any) -> list[str]:
    return sorted(_name(name, value) for name, value in read_env(env).items())


def _name(name: str, value: str) -> str:
    secrets = secret_names(value)
    return f"{name} (Secret block {', '.join(secrets)})" if secrets else name


def _of_spec(asked: LaunchSpec, full: LaunchSpec, names_job: str, limit: float | None) -> list[Change]:
    given = asked.overrides.run_config
    found = [Change(what="job", asked=asked.job, becomes=full.job, by=names_job)] if asked.job != full.job else []
    found += [
        Change(what=f"input {name}", asked=given.get(name), becomes=value, by="the job's schema")
        for name, value in full.overrides.run_config.items()
        if given.get(name) != value
    ]
    if asked.timeout is None and limit is not None:
        found.append(Change(what="timeout", becomes=format_duration(limit), by="the queue's limit"))
    if full.docker.pin and not asked.docker.pin:
        found.append(Change(what="docker.pin", becomes=True, by="the queue"))
    return found + [
        Change(what=what, becomes=getattr(full, what), by="the job, or your settings")
        for what in ("entity", "project")
        if getattr(asked, what) is None
    ]


def _of_variables(asked: LaunchSpec, config: QueueConfig) -> list[Change]:
    return [
        Change(what=f"variable {name}", becomes=schema["default"], by="the queue's default")
        for name, schema in config.template_variables.items()
        if "default" in schema and name not in asked.template_variables
    ]


def _of_options(asked: LaunchSpec, config: QueueConfig, options: Mapping[str, Any]) -> list[Change]:
    wanted = _flat(normalise_options(asked.resource_args.get(config.resource, {})))
    locked = locked_options(config.resource_args)
    found = []
    for what, value in _flat(options).items():
        if what in wanted and str(wanted[what]) == str(value):
            continue
        by = "a macro" if what in wanted else "the queue"
        if what not in wanted and what in limits_of(config) and what not in config.resource_args:
            by = "the queue's limit"
        by += f", from the template variable {locked[what]}" if what in locked else ""
        asked_for, becomes = (wanted.get(what), value) if "." not in what else (what in wanted and _HIDDEN, _HIDDEN)
        found.append(Change(what=what, asked=asked_for or None, becomes=becomes, by=by))
    return found


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with each environment variable as one of its own, `env.NAME`."""
    env = options.get(_ENV)
    flat = {name: value for name, value in options.items() if name != _ENV}
    return {**flat, **{f"{_ENV}.{name}": value for name, value in (env if isinstance(env, Mapping) else {}).items()}}
