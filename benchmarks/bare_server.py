"""The floor of process items: the calls to the server that an agent makes for each, and nothing between them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from prefect_launch.agent.item.outcome import outcome_of_exit
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.transitions import transition
from prefect_launch.runners.base import ExitStatus

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.server.protocol import Server
    from prefect_launch.server.values import Item

READY: Final = "ready"
BEGIN: Final = signal.SIGUSR2


def calls_per_item(api: Api, queue: str, *, slots: int) -> None:
    """Take every item of a queue from waiting to Completed: poll, claim, read, record, Running, Completed.

    Args:
        api: the server.
        queue: the queue's name.
        slots: how many items are on their way at a time, as in an agent with that many `max_jobs`.
    """

    async def take() -> None:
        async with _connected(api, queue) as (server, poller):
            await _take_all(server, poller, slots)

    asyncio.run(take())


def calls_when_told(api: Api, queue: str, *, slots: int) -> None:
    """Say that this process is ready, do what `calls_per_item` does at the signal `BEGIN`, and stay."""

    async def take() -> None:
        begin = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(BEGIN, begin.set)
        async with _connected(api, queue) as (server, poller):
            print(READY, flush=True)
            await begin.wait()
            await _take_all(server, poller, slots)
            await asyncio.Event().wait()

    asyncio.run(take())


@asynccontextmanager
async def _connected(api: Api, queue: str) -> AsyncIterator[tuple[Server, QueuePoller]]:
    async with api.open() as session:
        poller = QueuePoller(session, [queue], Holder(agent="nobody", instance=uuid4().hex, host="nowhere"))
        # As an agent does at its start: unread limits count as some, and it would poll more often.
        await poller.read_limits()
        yield session.server, poller


async def _take_all(server: Server, poller: QueuePoller, slots: int) -> None:
    on_their_way: set[asyncio.Task[UUID]] = set()
    while True:
        found = await poller.next(slots=slots - len(on_their_way), skip=())
        if found is not None:
            on_their_way.add(asyncio.create_task(_report(server, found[0])))
        elif not on_their_way:
            return
        if found is None or len(on_their_way) == slots:
            done, on_their_way = await asyncio.wait(on_their_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                poller.note_freed_slot(task.result())


async def _report(server: Server, item: Item) -> UUID:
    await server.record_infrastructure(item.id, "/nowhere")
    await transition(server, item.id, StateType.PENDING, ItemState.RUNNING, "Runs nowhere.")
    end = outcome_of_exit(ExitStatus(exit_code=0))  # The server keeps its data in a row of its own.
    await transition(server, item.id, StateType.RUNNING, end.state, end.message, data=end.data)
    return item.id
