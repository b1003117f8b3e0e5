"""Changes of waiting items at about the moment at which an agent claims them: no run is lost, and none is doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from prefect_launch.client.api import Api
from prefect_launch.client.change_item import edit_item, move_item
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.core.states import StateType
from prefect_launch.errors import LaunchError
from prefect_launch.queues.claim import claim
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.session import Session
from prefect_launch.server.values import Item

AGENT = Holder(agent="box", instance="1", host="here")
Pause = Callable[[int], Awaitable[None]]


async def race_edits(api: Api, queue: str, count: int, pause: Pause) -> set[str]:
    """Edit items while an agent claims them; return who came first, of all of them."""
    first: set[str] = set()
    async with api.open() as session:
        for number, item in enumerate(await _add(api, session, queue, count, "edit")):
            edited, claimed = await asyncio.gather(
                _try(edit_item(api, session, item, {"lr": 2}, "ann")), _claim(session, item, pause, number)
            )
            assert edited is not None or claimed is not None
            now = await session.server.read_item(item.id)
            assert now is not None
            if claimed is None:
                assert now.state_type is StateType.SCHEDULED
                assert now.next_scheduled_start_time is not None
                assert item.next_scheduled_start_time is not None
                moved_by = now.next_scheduled_start_time - item.next_scheduled_start_time
                assert moved_by == (timedelta(0) if edited is None else timedelta(microseconds=1))
                claimed = await claim(session.server, now, holder=AGENT)
            assert claimed is not None
            assert _lr(claimed) == _lr(now) == (1 if edited is None else 2)
            first.add("agent" if edited is None else "user")
    return first


async def race_moves(api: Api, queue: str, other: str, count: int, pause: Pause) -> set[str]:
    """Move items to another queue while an agent claims them; return who came first, of all of them."""
    first: set[str] = set()
    async with api.open() as session:
        for number, item in enumerate(await _add(api, session, queue, count, "move")):
            moved, claimed = await asyncio.gather(
                _try(move_item(api, session, item, "ann", queue_name=other)), _claim(session, item, pause, number)
            )
            assert (moved is None) is (claimed is not None)
            live = await session.server.list_items(names=[item.name])
            assert [(one.id, one.work_pool_name) for one in live] == (
                [(item.id, queue)] if moved is None else [(moved.id, other)]
            )
            if moved is not None:
                assert await claim(session.server, item, holder=AGENT) is None  # from its old poll
                assert (moved.state_type, moved.next_scheduled_start_time) == (
                    StateType.SCHEDULED,
                    item.next_scheduled_start_time,
                )
            first.add("agent" if moved is None else "user")
    return first


async def _add(api: Api, session: Session, queue: str, count: int, kind: str) -> list[Item]:
    spec = {"docker": {"docker_image": "busybox:1"}, "overrides": {"run_config": {"lr": 1}}}
    runs = await alaunch_add_many(
        [{**spec, "name": f"{queue}-{kind}-{number}"} for number in range(count)], queue, api=api
    )
    return [await run.aitem() for run in runs]


async def _claim(session: Session, polled: Item, pause: Pause, number: int) -> Item | None:
    await pause(number)
    return await claim(session.server, polled, holder=AGENT)


async def _try(change: Awaitable[Item]) -> Item | None:
    try:
        return await change
    except LaunchError as error:
        assert "an agent has taken it" in str(error) or "is Pending" in str(error)  # noqa: PT017 - the word matters
        return None


def _lr(item: Item) -> Any:
    return item.parameters["overrides"]["run_config"]["lr"]
