"""Facts for `prefect_launch.queues.wait_reason`: a handful of requests, sent at once, only when somebody asks."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from prefect_launch.core.states import ACTIVE, StateType
from prefect_launch.jobs.index import PATH_TAG
from prefect_launch.queues.activity import online_agents
from prefect_launch.queues.forecast import Past
from prefect_launch.queues.wait_reason import QueueFacts, WaitFacts, Waiting, tell
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

#: A forecast is made from so many past runs, the latest.
PAST_RUNS: Final = 20
_PAGE: Final = 200


async def why_waiting(session: Session, item: Item) -> Waiting | None:
    """Tell why an item waits; `None` when it does not, or its queue is gone."""
    if item.state_type is not StateType.SCHEDULED or item.work_pool_name is None:
        return None
    queue, past = await asyncio.gather(
        read_queue_facts(session.server, item.work_pool_name), read_past(session.server, item.work_pool_name, item.tags)
    )
    return None if queue is None else tell(await _place(session.server, queue, item, past))


async def why_would_wait(session: Session, queue_name: str, item: Item, *, asks: str = "") -> Waiting | None:
    """Tell why an item that is not queued yet would wait; `None` when the queue is not there.

    Args:
        session: an open connection.
        queue_name: the queue.
        item: as it would be queued.
        asks: which GPUs it asks for, in words; an empty text for none.
    """
    queue, past = await asyncio.gather(
        read_queue_facts(session.server, queue_name), read_past(session.server, queue_name, item.tags)
    )
    if queue is None:
        return None
    facts = await _place(session.server, queue, item, past, is_there=False)
    return tell(facts.model_copy(update={"asks": asks}))


async def read_queue_facts(server: Server, name: str) -> QueueFacts | None:
    """Read what is known of a queue now; `None` when it is gone."""
    pool, priorities, agents, in_work = await asyncio.gather(
        server.read_pool(name),
        server.list_queues(name),
        online_agents(server, name),
        server.list_items(pool=name, state_types=sorted(ACTIVE), limit=_PAGE),
    )
    if pool is None:
        return None
    return QueueFacts(
        queue=name,
        now=datetime.now(timezone.utc),
        resource=str((pool.base_job_template.get("job_configuration") or {}).get("resource") or ""),
        is_paused=pool.is_paused,
        limit=pool.concurrency_limit,
        agents=tuple(agents),
        priorities=tuple(priorities),
        in_work=tuple(in_work),
    )


async def read_past(server: Server, queue: str, tags: tuple[str, ...]) -> Past | None:
    """Read how long past runs took: those of the item's job, or of its queue when that has not run there yet.

    Args:
        server: the door.
        queue: its name.
        tags: of the item; its job's name stands in one.
    """
    job = next((tag.removeprefix(PATH_TAG) for tag in tags if tag.startswith(PATH_TAG)), "")
    for name in dict.fromkeys((job, "")):
        wanted = [f"{PATH_TAG}{name}"] if name else None
        done = await server.list_items(pool=queue, tags=wanted, state_types=[StateType.COMPLETED], limit=PAST_RUNS)
        if done:
            return Past(seconds=tuple(item.total_run_time for item in done), job=name)
    return None


async def _place(
    server: Server, queue: QueueFacts, item: Item, past: Past | None, *, is_there: bool = True
) -> WaitFacts:
    rank = next((one.priority or 0 for one in queue.priorities if one.name == item.work_queue_name), 0)
    above = [one.name for one in queue.priorities if (one.priority or 0) < rank]
    due = item.next_scheduled_start_time or queue.now
    waiting = [StateType.SCHEDULED]
    in_all, own, *urgent = await asyncio.gather(
        server.count_items(pool=queue.queue, state_types=waiting),
        server.count_items(pool=queue.queue, queue=item.work_queue_name, state_types=waiting, due_before=due),
        *(
            server.count_items(pool=queue.queue, queue=name, state_types=waiting, due_before=max(due, queue.now))
            for name in above
        ),
    )
    return WaitFacts(
        queue=queue,
        item=item,
        urgent=sum(urgent),
        earlier=max(0, own - is_there),
        waiting=max(1, in_all + (not is_there)),
        past=past,
    )
