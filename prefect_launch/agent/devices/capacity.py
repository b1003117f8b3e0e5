"""What an agent has to give: its settings `gpus`, `cpus` and `memory`, and what the machine really has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from prefect_launch.agent.devices.allocations import Card, Stock
from prefect_launch.agent.devices.gpus import Cards
from prefect_launch.errors import AgentConfigError
from prefect_launch.runners.docker import option_values as values
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
        return values.size(value) if name == "memory" else values.nano_cpus(value) / 1e9
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
        return values.size(value)
    except ValueError as error:
        raise AgentConfigError(f"The agent's {name!r} must be none or a size; got {value!r}: {error}.") from None


def make_stock(gpus: str | Sequence[str], cpus: str | float, memory: str | float, seen: Cards) -> Stock:
    """Return what the agent has to give.

    Args:
        gpus, cpus, memory: its settings, as they were read.
        seen: the machine's cards. With `gpus: auto` they are the agent's, less those that its own
            `CUDA_VISIBLE_DEVICES` leaves out.

    Raises:
        AgentConfigError: when the settings name a card that the machine does not have. While the driver does not
            answer, that is not known: the agent has no card until it does.
    """
    cards: tuple[Card, ...] = ()
    if gpus != NONE and not seen.is_away:
        cards = _visible(seen.cards) if gpus == AUTO else _named(gpus, seen)
    note = "its setting is gpus: none" if gpus == NONE else seen.note
    return Stock(
        cards=cards,
        cpus=_amount(cpus, float(len(os.sched_getaffinity(0)))),
        memory=_whole(_amount(memory, float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))),
        note=note,
        is_known=gpus == NONE or not seen.is_away,
    )


def _visible(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return cards
    wanted = [one.strip() for one in told.split(",")]
    return tuple(card for card in cards if any(card.is_called(one) for one in wanted))


def _named(wanted: Sequence[str], seen: Cards) -> tuple[Card, ...]:
    for one in wanted:
        if not any(card.is_called(one) for card in seen.cards):
            has = ", ".join(card.index for card in seen.cards) or f"none ({seen.note})"
            raise AgentConfigError(
                f"The agent's 'gpus' names the GPU {one!r}, which this machine does not show; it shows: {has}."
                " Correct the setting, or set gpus: auto."
            )
    return tuple(card for card in seen.cards if any(card.is_called(one) for one in wanted))


def _amount(setting: str | float, of_machine: float) -> float | None:
    return of_machine if setting == AUTO else None if setting == NONE else float(setting)


def _whole(amount: float | None) -> int | None:
    return None if amount is None else int(amount)
