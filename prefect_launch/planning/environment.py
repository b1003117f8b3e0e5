"""Environment variables of a job: our own names, and those of W&B Launch with the same content.

Code that was instrumented for W&B runs unchanged, and `prefect_launch.inputs` reads what is made here. Nothing of the
agent's own environment is in it. An address or key of a W&B server is only there when the agent's operator configured
one; where nobody names any, a job's `wandb` works offline, and what it writes is kept with the outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.names import UNNAMED
from prefect_launch.errors import SpecError
from prefect_launch.inputs.environment import CONFIG_VARIABLES, FILE_OVERRIDES_VARIABLES
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.settings.agent_config import WandbServer
from prefect_launch.spec.launch_spec import LaunchSpec

#: The reference's limit for one variable; what is longer is cut into chunks.
CHUNK_BYTES = 32_670
#: Linux refuses to start a process with a `NAME=value` longer than this (MAX_ARG_STRLEN, with its closing zero byte).
MAX_VARIABLE_BYTES = 128 * 1024 - 1


class JobContext(BaseModel):
    """What one attempt at one item tells its job."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    item_id: str = Field(description="Id of the flow run that is the queue item.")
    attempt: int = Field(default=1, ge=1)
    output_dir: str = Field(description="Where the job leaves its outputs, as the job sees it (in its container).")
    claim: str | None = Field(default=None, description="Token of the claim that this attempt is made under.")
    queue: str | None = Field(default=None, description="The queue's name; none when launched without a queue.")
    queue_entity: str | None = None
    image: str | None = Field(default=None, description="The image, when that is what was launched.")
    project: str | None = None
    entity: str | None = None
    name: str | None = Field(default=None, description="The run's display name.")
    author: str | None = None
    sweep_id: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, description="The job's inputs.")
    file_overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    artifacts: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, spec: LaunchSpec, **given: Any) -> JobContext:
        """Make the context of a spec.

        Args:
            spec: its overrides, names and image are taken over.
            **given: the other fields: `item_id`, `output_dir`, `attempt`, `queue`, …; one that is also in the spec
                wins over it unless it is `None`. `run_id` must be given when the spec has none.
        """
        own = {
            "run_id": spec.run_id,
            "image": spec.image,
            "project": spec.project,
            "entity": spec.entity,
            "name": spec.name,
            "author": spec.author,
            "sweep_id": spec.sweep_id,
            "config": spec.overrides.run_config,
            "file_overrides": spec.overrides.files,
            "artifacts": spec.overrides.artifacts,
        }
        return cls.model_validate({**own, **{key: value for key, value in given.items() if value is not None}})


def job_environment(
    context: JobContext, *, wandb: WandbServer | None = None, chunk_bytes: int = CHUNK_BYTES
) -> dict[str, str]:
    """Return the variables for one attempt. They win over those that a queue or a submitter sets.

    Args:
        context: what to tell the job.
        wandb: the W&B server of the agent's config; `WANDB_BASE_URL` and `WANDB_API_KEY` are set from nowhere else.
        chunk_bytes: the longest value of a config or file-overrides variable; longer ones become `NAME_0`, `NAME_1`, ….
            Some resources take less than the default.

    Raises:
        SpecError: when a value holds a zero byte or is longer than Linux lets one variable be.
    """
    config = _json(context.config)
    overrides = _json(context.file_overrides)
    variables: dict[str, str | None] = {
        **_launch_names(context),
        **_wandb_names(context),
        **_server_names(wandb or WandbServer()),
    }
    for name in CONFIG_VARIABLES:
        variables |= chunked(name, config, chunk_bytes)
    for name in FILE_OVERRIDES_VARIABLES:
        variables |= chunked(name, overrides, chunk_bytes)
    given = {name: value for name, value in variables.items() if value is not None}
    for name, value in given.items():
        check_value(name, f"{name}={value}")
    return given


def chunked(name: str, value: str, chunk_bytes: int = CHUNK_BYTES) -> dict[str, str]:
    """Return a variable, or its chunks `name_0`, `name_1`, … when it is too long for one.

    Args:
        name: the variable's name.
        value: its text.
        chunk_bytes: the longest chunk, in bytes of UTF-8; at least 4, the longest character. No character is cut.
    """
    data = value.encode()
    if len(data) <= chunk_bytes:
        return {name: value}
    if chunk_bytes < 4:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be at least 4, the longest character in UTF-8.")
    chunks: list[str] = []
    start = 0
    while start < len(data):
        end = min(start + chunk_bytes, len(data))
        while end < len(data) and data[end] & 0b1100_0000 == 0b1000_0000:  # inside a character
            end -= 1
        chunks.append(data[start:end].decode())
        start = end
    return {f"{name}_{number}": chunk for number, chunk in enumerate(chunks)}


def _launch_names(context: JobContext) -> dict[str, str | None]:
    return {
        "LAUNCH_RUN_ID": context.run_id,
        "LAUNCH_ITEM_ID": context.item_id,
        "LAUNCH_QUEUE": context.queue,
        "LAUNCH_ATTEMPT": str(context.attempt),
        "LAUNCH_CLAIM": context.claim or None,
        OUTPUT_DIR_VARIABLE: context.output_dir,
    }


def _wandb_names(context: JobContext) -> dict[str, str | None]:
    return {
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": context.run_id,
        "WANDB_PROJECT": context.project or None,
        # The default entity is not one of a W&B server.
        "WANDB_ENTITY": None if context.entity == UNNAMED else context.entity or None,
        "WANDB_NAME": context.name or None,
        "WANDB_USERNAME": context.author or None,
        "WANDB_SWEEP_ID": context.sweep_id or None,
        "WANDB_DOCKER": context.image or None,
        "WANDB_RESUME": "allow" if context.attempt > 1 else None,
        "WANDB_LAUNCH_QUEUE_NAME": context.queue or None,
        "WANDB_LAUNCH_QUEUE_ENTITY": (context.queue_entity or context.entity or None) if context.queue else None,
        "WANDB_LAUNCH_TRACE_ID": context.item_id,
        # Not the job, as W&B Launch does it: `wandb.init` would ask the W&B server for it, and offline it fails.
        "WANDB_ARTIFACTS": _json(context.artifacts) if context.artifacts else None,
    }


def _server_names(wandb: WandbServer) -> dict[str, str | None]:
    return {
        "WANDB_BASE_URL": wandb.base_url,
        "WANDB_API_KEY": wandb.api_key.get_secret_value() if wandb.api_key else None,
    }


def _json(value: Mapping[str, Any]) -> str:
    # As the reference writes it: ASCII only, so that no locale of a job's machine can spoil it.
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"A config, override or artifact cannot be written as JSON: {error}. Correct it.") from None


def check_value(name: str, text: str) -> None:
    """Refuse what Linux starts no process with.

    Args:
        name: of the variable or argument, for the message.
        text: as the process gets it: `NAME=value`, or a whole argument.

    Raises:
        SpecError: when it holds a zero byte, is no valid text, or is too long.
    """
    if "\0" in text:
        raise SpecError(f"The value for {name} holds a zero byte, which no environment variable can. Remove it.")
    try:
        size = len(text.encode(errors="surrogateescape"))
    except UnicodeEncodeError as error:
        raise SpecError(f"The value for {name} is not valid text: {error.reason}. Correct it.") from None
    if size > MAX_VARIABLE_BYTES:
        raise SpecError(
            f"The value for {name} has {size:,} bytes; Linux allows {MAX_VARIABLE_BYTES:,} for one. Put large values in"
            " a file that the job reads."
        )
