"""Wait for the ends of several items: one request for all of them at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.client.patience import when_answered
from prefect_launch.errors import NotFoundError
from prefect_launch.queues.moved import is_moved, read_current
from prefect_launch.server.values import PAGE, Item

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.queues.session import Session

_POLL_MIN_SECONDS: Final = 0.1
_POLL_MAX_SECONDS: Final = 1.0


def ends_of(api: Api, runs: Sequence[QueuedRun], *, timeout: float | None = None) -> Iterator[Item]:
    """Yield each item once it has ended; for one that is moved, the item that has taken its place.

    Args:
        api: the server.
        runs: the items.
        timeout: in seconds; `None` waits as long as it takes.

    Raises:
        NotFoundError: when one of them is deleted.
        TimeoutError: when some have not ended in time; they continue.
    """
    left = {UUID(run.id): run for run in runs}
    give_up_at = None if timeout is None else time.monotonic() + timeout
    pause = _POLL_MIN_SECONDS
    while left:
        found = when_answered(lambda: api.call(lambda session: _read(session, list(left))), give_up_at=give_up_at)
        if gone := left.keys() - found.keys():
            names = ", ".join(f"{left[one].name} ({one})" for one in gone)
            raise NotFoundError(f"Items that were waited for are not there any more: {names}. They were deleted.")
        for one, item in found.items():
            run = left.pop(one)
            if item.is_terminal:
                yield item
            else:
                left[item.id] = run
        rest = float("inf") if give_up_at is None else give_up_at - time.monotonic()
        if left and rest <= 0:
            waits = {item.id: item.state_name for item in found.values()}
            states = ", ".join(f"{run.name} ({run.id}) is {waits[one]}" for one, run in left.items())
            raise TimeoutError(f"Not all have ended within {timeout:g} s: {states}.")
        if left:
            time.sleep(min(pause, rest))
            pause = min(pause * 1.5, _POLL_MAX_SECONDS)


async def _read(session: Session, ids: Sequence[UUID]) -> dict[UUID, Item]:
    pages = [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]
    found = {item.id: item for page in pages for item in await session.server.list_items(ids=page, moved=True)}
    for one, item in found.items():
        if is_moved(item):
            found[one] = await read_current(session.server, one) or item
    return found
