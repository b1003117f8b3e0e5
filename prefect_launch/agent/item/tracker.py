"""What an agent remembers of one item while it works on it.

The truth is in the labels of what runs; this is only the agent's handle on its own work, and is gone with it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from prefect_launch.runners.base import Phase, RunPlan
from prefect_launch.server.values import Item

#: The flow that a sweep's scheduler is a run of; all others are jobs.
SCHEDULER_FLOW: Final = "launch-sweep"


def now() -> float:
    """Return seconds on a clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def is_scheduler(item: Item) -> bool:
    """Whether an item is a sweep's scheduler, which does not count as a job.

    Its flow decides, which is that of the deployment that it was made from: no submitter sets it with what an item
    holds.
    """
    return item.flow == SCHEDULER_FLOW


@dataclass
class JobTracker:
    """One item in work.

    Attributes:
        item: as it was claimed.
        queue: its queue's name.
        is_scheduler: a sweep's scheduler, which does not count as a job.
        phase: where it is, for the message should it fail.
        handle: what was created for it, once it was.
        file_saver: folder that gets an `error.log` when the agent itself fails over the item.
        stop: is set when it was asked to stop.
        preempt: is set when the agent stops it of its own accord, as when its machine is taken away.
        claim: the token of the claim that it is held under; empty: not known.
        held_at: when it was seen last that the claim is the item's last one, by `now()`; at first, when it was made.
        has_run: whether its run has ended: what is left is to keep its outputs, which needs no slot.
        plan: of its attempt, once it is known; it masks the attempt's secrets in what is told of the item.
        ended: is set when its work here is over, whatever came of it.
    """

    item: Item
    queue: str
    is_scheduler: bool = False
    phase: Phase = Phase.AGENT
    handle: str | None = None
    file_saver: Path | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    preempt: asyncio.Event = field(default_factory=asyncio.Event)
    claim: str = ""
    held_at: float = field(default_factory=now)
    has_run: bool = False
    plan: RunPlan | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> UUID:
        """The item's id."""
        return self.item.id

    def masked(self, text: str) -> str:
        """Return a text without the secrets of the attempt."""
        return text if self.plan is None else self.plan.mask.text(text)

    @property
    def thread_id(self) -> str:
        """The item's id as text, which the reference calls a thread id."""
        return str(self.item.id)
