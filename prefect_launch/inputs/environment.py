"""Config and file overrides of a job, from its environment variables.

A value is one JSON object in one variable, or, when that would be too long, cut into chunks `NAME_0`, `NAME_1`, …
that are joined in the order of their numbers. Our own names come first, then the names of W&B, so that a job written
for either finds its config under both systems.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from prefect_launch.errors import JobCodeError

_WANDB_CONFIG = "WANDB_CONFIG"
#: The variables that hold a run's config, and those with the values for its config files: our own names come first.
CONFIG_VARIABLES = ("LAUNCH_CONFIG", _WANDB_CONFIG)
FILE_OVERRIDES_VARIABLES = ("LAUNCH_FILE_OVERRIDES", "WANDB_LAUNCH_FILE_OVERRIDES")


def load_config() -> dict[str, Any]:
    """Return the config (the inputs) that this run was launched with.

    It is read from `LAUNCH_CONFIG`, else from the chunks `LAUNCH_CONFIG_0`, …, else from `WANDB_CONFIG` or its
    chunks. An empty variable counts as absent.

    Returns:
        The config, a new dict at each call; `{}` when the run was launched without one.

    Raises:
        JobCodeError: a `LaunchError`, when there is no such variable (the program was not started by launch), a chunk
            is missing, or the text is not a JSON object.
    """
    return _required(*CONFIG_VARIABLES)


def load_wandb_config() -> dict[str, Any]:
    """Return the config from `WANDB_CONFIG` or its chunks, and from nowhere else.

    Raises:
        JobCodeError: as `load_config`.
    """
    return _required(_WANDB_CONFIG)


def find_config() -> dict[str, Any] | None:
    """Return what `load_config` returns, or `None` when this program was not started by launch."""
    return _first(*CONFIG_VARIABLES)


def file_overrides() -> dict[str, Any]:
    """Return the values to merge into config files, by path as the submitter wrote it; `{}` when there are none."""
    return _first(*FILE_OVERRIDES_VARIABLES) or {}


def _required(*names: str) -> dict[str, Any]:
    value = _first(*names)
    if value is None:
        looked_for = ", ".join(f"{name} or {name}_[0-9]+" for name in names)
        raise JobCodeError(
            f"No {looked_for} environment variables found. An agent sets them;"
            f" to run this program by hand, set {names[0]}='{{}}' or to the config that you want."
        )
    return value


def _first(*names: str) -> dict[str, Any] | None:
    for name in names:
        text = os.environ.get(name) or _join_chunks(name)
        if text:
            return _parse(name, text)
    return None


def _join_chunks(name: str) -> str:
    pattern = re.compile(re.escape(name) + r"_([0-9]+)")
    numbers = sorted(int(match[1]) for key in os.environ if (match := pattern.fullmatch(key)))
    if numbers != list(range(len(numbers))):
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        raise JobCodeError(
            f"The environment variable {name}_{missing} is missing: found {', '.join(f'{name}_{n}' for n in numbers)}."
            " The chunks must be numbered from 0 without a gap; something between the agent and the job dropped one."
        )
    return "".join(os.environ[f"{name}_{number}"] for number in numbers)


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise JobCodeError(f"Failed to parse {name}: {error}. It must hold one JSON object.") from None
    if not isinstance(value, dict):
        raise JobCodeError(f"Failed to parse {name}: it holds a JSON {type(value).__name__}, and must hold an object.")
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
