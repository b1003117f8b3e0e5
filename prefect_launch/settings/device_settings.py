"""Readers of the settings `gpus`, `cpus`, `memory` and `keep_*` of an agent."""

from __future__ import annotations

from typing import Any, Final

from prefect_launch.core import units as sizes
from prefect_launch.errors import AgentConfigError
from prefect_launch.runners import option_values as values
from prefect_launch.runners.gpu_option import read_gpus

AUTO: Final = "auto"

NONE: Final = "none"


def read_gpu_setting(value: Any) -> str | tuple[str, ...]:
    """Read the setting `gpus`: "auto", "none", or a list of indexes or UUIDs.

    Raises:
        AgentConfigError: with the value and the rule.
    """
    if isinstance(value, str) and value.strip().lower() in (AUTO, NONE):
        return value.strip().lower()
    listed = value.split(",") if isinstance(value, str) else value
    try:
        if isinstance(listed, (list, tuple)):
            return read_gpus(list(listed)).ids or NONE
    except ValueError:
        pass
    raise AgentConfigError(
        f"The agent's 'gpus' must be auto, none, or a list of indexes or UUIDs such as [0, 1]; got {value!r}."
    )


def read_amount_setting(name: str, value: Any) -> str | float:
    """Read the setting `cpus` (a number) or `memory` (a size such as "64g", in bytes), or "auto" or "none".

    Raises:
        AgentConfigError: with the value and the rule.
    """
    if isinstance(value, str) and value.strip().lower() in (AUTO, NONE):
        return value.strip().lower()
    try:
        return sizes.size(value) if name == "memory" else values.nano_cpus(value) / 1e9
    except ValueError as error:
        raise AgentConfigError(
            f"The agent's {name!r} must be auto, none or an amount; got {value!r}: {error}."
        ) from None


def read_limit_setting(name: str, value: Any) -> int | None:
    """Read a setting such as `keep_runs`: a size such as "10g", in bytes, or "none".

    Raises:
        AgentConfigError: with the value and the rule.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() == NONE):
        return None
    try:
        return sizes.size(value)
    except ValueError as error:
        raise AgentConfigError(f"The agent's {name!r} must be none or a size; got {value!r}: {error}.") from None
