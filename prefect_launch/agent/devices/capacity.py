"""What an agent has to give: its settings `gpus`, `cpus` and `memory`, and what the machine really has."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prefect_launch.agent.devices.allocations import Card, Stock
from prefect_launch.agent.devices.gpus import Cards
from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.device_settings import AUTO, NONE


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
