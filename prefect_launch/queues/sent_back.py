"""Items that were sent back into their queue: each made place for a more urgent one, and starts again later.

The order is a label of the item, which outlives the agent: it names the attempt that is to end, and the item that it
makes place for. An input of the urgent item, which can be made once, keeps a second item from being sent back for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final
from uuid import UUID

from prefect_launch.core.names import name_and_id
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item, State
from prefect_launch.spec.item_parameters import is_scheduler, options_of
from prefect_launch.spec.scheduling import Priority

_LABEL: Final = "prefect-launch.sent-back"
#: An item is sent back so often at most, and not again so soon after it has started again.
MOST_TIMES: Final = 3
REST: Final = timedelta(minutes=10)


def is_resumable(item: Item) -> bool:
    """Whether an item of low priority says that it can be stopped, and continue later."""
    is_low = item.work_queue_name == Priority.LOW.work_queue and not is_scheduler(item)
    return is_low and options_of(item).get("resumable") is True


def may_be_sent_back(states: Sequence[State], now: datetime) -> bool:
    """Whether an item with these states, oldest first, has been sent back seldom enough to be sent back now."""
    queued = ItemState.QUEUED.label
    times = sum(was.type is StateType.RUNNING and then.name == queued for was, then in pairwise(states))
    started = states[-1].timestamp if states else None
    return times == 0 or (times < MOST_TIMES and started is not None and now - started >= REST)


def turn_of(urgent: Item) -> tuple[UUID, int]:
    """Return what names the one turn of an urgent item to have another sent back: the item, and its last wait."""
    return urgent.id, urgent.run_count - (urgent.state_type is StateType.RUNNING)


async def take_turn(server: Server, urgent: Item, victim: Item) -> bool:
    """Whether an item may be sent back in the turn of an urgent one: in each turn, one is."""
    item_id, wait = turn_of(urgent)
    return await server.put_input(item_id, f"sent-back-{wait}", str(victim.id))


async def order_back(server: Server, victim: Item, urgent: Item) -> dict[str, str]:
    """Order a running item back into its queue: return the label that it has then. Its agent stops it."""
    order = {_LABEL: f"{victim.run_count} {name_and_id(urgent)}"}
    await server.label_item(victim.id, order)
    return order


def sent_back_for(item: Item, attempt: int) -> str:
    """Return which item an attempt makes place for, in words; an empty text when it was not ordered back."""
    number, _, urgent = str(item.labels.get(_LABEL, "")).partition(" ")
    return urgent if number == str(attempt) else ""
