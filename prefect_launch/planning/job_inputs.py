"""Inputs of an item as its program takes them, besides `$LAUNCH_CONFIG`: as arguments or environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefect_launch.inputs.environment import CONFIG_VARIABLES
from prefect_launch.planning.environment import check_value
from prefect_launch.planning.item_options import submitted_options
from prefect_launch.spec.input_styles import input_arguments, input_variables
from prefect_launch.spec.option_names import ENV

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job
    from prefect_launch.policy.template import QueueConfig
    from prefect_launch.spec.launch_spec import LaunchSpec

#: How much of an argument a message shows.
_SHOWN_CHARS: Final = 40


def unread_inputs(spec: LaunchSpec, job: Job | None) -> str:
    """Say that a spec has inputs which nothing is known to read; an empty text when it has none of them."""
    if job is None or job.schema is not None or job.inputs_as != "json" or not spec.overrides.run_config:
        return ""
    return (
        f"The job {job.name} has no input schema: its program must read ${CONFIG_VARIABLES[0]}. One that takes"
        " arguments gets its inputs when the job is created with --inputs-as args."
    )


def arguments_of(spec: LaunchSpec, job: Job | None) -> tuple[str, ...]:
    """Return an item's arguments: its inputs, when the job takes them so, and those that it was given.

    Raises:
        SpecError: for one that is longer than Linux lets an argument be.
    """
    own = spec.overrides.args
    words = own if job is None else input_arguments(spec.overrides.run_config, job.inputs_as, job.schema, own)
    for word in words:
        check_value(f"the argument {word.partition('=')[0][:_SHOWN_CHARS]!r}", word)
    return tuple(words)


def variables_of_inputs(spec: LaunchSpec, job: Job | None, config: QueueConfig, queue: str | None) -> dict[str, str]:
    """Return the inputs as environment variables, when the job takes them so and its submitter may set them.

    Args:
        spec: whose inputs are checked.
        job: its job.
        config: of the queue.
        queue: its name; `None` for a run of no queue.

    Raises:
        InputError: for an input that makes no variable, or one with a meaning of its own.
        SubmitterError: for a variable that the queue fixes, or one that is longer than Linux lets it be.
    """
    if job is None or job.inputs_as != "env":
        return {}
    variables = input_variables(spec.overrides.run_config)
    for name, value in variables.items():
        check_value(name, f"{name}={value}")
    if variables:
        # A submitter's own variables: of these the names are checked. Their values are never filled in.
        as_option = {config.resource: {ENV: dict.fromkeys(variables, "")}}
        submitted_options(config, spec.model_copy(update={"resource_args": as_option}), queue)
    return variables
