"""Author shares: what one author has in work, and has waiting, on a queue whose owner limits it.

Jobs count, sweeps' schedulers do not. Items that name no author have one share together.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from prefect_launch.core.states import StateType
from prefect_launch.core.units import counted
from prefect_launch.errors import QueueError
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.claim import COUNTED
from prefect_launch.server.paging import all_items
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import JOB_FLOW, PAGE, Item, ItemDraft, ItemFilter, Pool
from prefect_launch.spec.item_parameters import author_of, author_tag, is_scheduler

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prefect_launch.queues.session import CachedQueue


def has(author: str) -> str:
    """Return the beginning of a sentence about what an author has."""
    return f"{author} has" if author else "Items without an author have"


def per_author_of(pool: Pool) -> int | None:
    """Return how many jobs of one author may be in work on a queue; `None`: any number."""
    try:
        return QueueConfig.from_template(pool.name, pool.base_job_template).per_author
    except QueueError:  # Nothing of it can be planned, which its items say.
        return None


async def read_in_work(server: Server, queue: str) -> list[Item]:
    """Return the active jobs of a queue, as its limits count them."""
    return [item async for item in all_items(server, pool=queue, flow=JOB_FLOW, state_types=COUNTED)]


async def is_over_share(server: Server, item: Item, per_author: int | None) -> bool:
    """Whether the author of a claimed item has more in work than the queue allows, with that item."""
    if per_author is None or is_scheduler(item):
        return False
    in_work = await read_in_work(server, item.work_pool_name or "")
    return sum(author_of(other) == author_of(item) for other in in_work) > per_author


def in_turn(items: Iterable[Item], in_work: Mapping[str, int], per_author: int) -> list[Item]:
    """Return those of a poll's items that may start, in the order in which authors take turns.

    Inside a priority, the author with the fewest in work is next; of several, the one whose item came first.

    Args:
        items: the most urgent first, those of one work queue together.
        in_work: how many each author has in work.
        per_author: how many each may have.
    """
    counts, turn = Counter(in_work), list[Item]()
    for _, group in groupby(items, key=lambda item: item.work_queue_id):
        lines: dict[str, deque[tuple[int, Item]]] = {}
        for place, item in enumerate(group):
            if is_scheduler(item):
                turn.append(item)
            else:
                lines.setdefault(author_of(item), deque()).append((place, item))
        heads = [(counts[author], line[0][0], author) for author, line in lines.items()]
        heapq.heapify(heads)
        while heads:
            count, _, author = heapq.heappop(heads)
            if count >= per_author:
                break
            turn.append(lines[author].popleft()[1])
            counts[author] += 1
            if lines[author]:
                heapq.heappush(heads, (counts[author], lines[author][0][0], author))
    return turn


async def count_waiting(server: Server, author: str, **wanted: Unpack[ItemFilter]) -> int:
    """Count the waiting jobs of an author; those that were made from a job's form are not found by their author."""
    waiting: ItemFilter = {**wanted, "flow": JOB_FLOW, "state_types": [StateType.SCHEDULED]}
    if author:
        waiting["tags"] = [author_tag(author)]
        return await server.count_items(**waiting)
    return len([item async for item in all_items(server, **waiting) if not author_of(item)])


async def check_waiting(server: Server, queue: CachedQueue, drafts: Sequence[ItemDraft]) -> None:
    """Refuse items with which an author would have more waiting than the queue allows.

    Items that are there already, under run ids that their submitter has given, are not made once more.

    Raises:
        QueueError: naming the author, the limit and the next step.
    """
    most = queue.config.per_author_waiting
    if most is None:
        return
    keys: dict[str, list[str]] = {}
    for draft in drafts:
        keys.setdefault(str(draft.parameters.get("author") or ""), []).append(draft.idempotency_key)
    for author, wanted in keys.items():
        waiting = await count_waiting(server, author, pool=queue.name)
        new = len(wanted)
        if waiting + new > most:
            new -= await _count_made(server, wanted)
        if new and waiting + new > most:
            raise QueueError(
                f"{has(author)} {counted(waiting, 'item')} waiting on the queue {queue.name!r}, and of one author at"
                f" most {most} may wait there: nothing was queued. Queue {counted(new, 'item')} when others have"
                " started, cancel some that wait, or have the queue's owner raise the limit: 'prefect-launch queue edit"
                f" {queue.name} --per-author-waiting N'."
            )


async def _count_made(server: Server, keys: Sequence[str]) -> int:
    """Count the items that there are under these idempotency keys."""
    pages = [keys[start : start + PAGE] for start in range(0, len(keys), PAGE)]
    return sum([len(await server.list_items(keys=page)) for page in pages])
