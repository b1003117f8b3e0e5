"""The floor of process items: the calls to the server that an agent makes for each, and nothing between them."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.client.api import Api
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.transitions import transition

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from prefect_launch.server.protocol import Server
    from prefect_launch.server.values import Item

_START_SECONDS: Final = 120.0
_begin: Barrier


def calls_per_item(api: Api, queue: str, *, slots: int) -> None:
    """Take every item of a queue from waiting to Completed: poll, claim, read, record, Running, Completed.

    Args:
        api: the server.
        queue: the queue's name.
        slots: how many items are on their way at a time, as in an agent with that many `max_jobs`.
    """
    asyncio.run(_empty(api, queue, slots))


class Clients:
    """Processes that each take the items of a queue of their own from waiting to Completed.

    Args:
        api_urls: of the servers, which the processes take turns at.
        queues: the queues, one a process.
        slots: how many items each has on their way at a time.
    """

    def __init__(self, api_urls: Sequence[str], queues: Sequence[str], slots: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._begin = context.Barrier(len(queues) + 1)
        self._pool = ProcessPoolExecutor(len(queues), context, initializer=_join, initargs=(self._begin,))
        urls = cycle(api_urls)
        self._ends = [self._pool.submit(_take_all, next(urls), queue, slots) for queue in queues]

    def work(self) -> float:
        """Let them begin together once all are there, and wait for their end; return their CPU time, in ms."""
        self._begin.wait(_START_SECONDS)
        used = sum(end.result() for end in self._ends)
        self._pool.shutdown()
        return used


def _join(begin: Barrier) -> None:
    """Keep what a process waits at, which it can only be given at its start."""
    global _begin
    _begin = begin


def _take_all(url: str, queue: str, slots: int) -> float:
    api = Api(url=url)
    _begin.wait(_START_SECONDS)
    before = time.process_time()
    calls_per_item(api, queue, slots=slots)
    return (time.process_time() - before) * 1000


async def _empty(api: Api, queue: str, slots: int) -> None:
    async with api.open() as session:
        poller = QueuePoller(session, [queue], Holder(agent="nobody", instance=uuid4().hex, host="nowhere"))
        # As an agent does at its start: unread limits count as some, and it would poll more often.
        await poller.read_limits()
        on_their_way: set[asyncio.Task[UUID]] = set()
        while True:
            found = await poller.next(slots=slots - len(on_their_way), skip=())
            if found is not None:
                on_their_way.add(asyncio.create_task(_report(session.server, found[0])))
            elif not on_their_way:
                return
            if found is None or len(on_their_way) == slots:
                done, on_their_way = await asyncio.wait(on_their_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    poller.note_freed_slot(task.result())


async def _report(server: Server, item: Item) -> UUID:
    await server.record_infrastructure(item.id, "/nowhere")
    await transition(server, item.id, StateType.PENDING, ItemState.RUNNING, "Runs nowhere.")
    await transition(server, item.id, StateType.RUNNING, ItemState.COMPLETED, "Finished.")
    return item.id
