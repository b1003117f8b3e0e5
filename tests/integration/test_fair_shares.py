"""Fair shares on a real server: two agents hold the limit of each author, and no author hides another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from uuid import UUID

from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, until


def most_at_once(site: Site, runs: Iterable[QueuedRun]) -> int:
    """How many ran at a time at most, as the history of their states says."""
    ids = [UUID(run.id) for run in runs]

    async def read(session: Session) -> list[State]:
        return [state for item_id in ids for state in await session.server.read_states(item_id)]

    changes = []
    for state in site.api.call(read):
        if state.type is StateType.RUNNING or state.type in TERMINAL:
            changes.append((str(state.timestamp), 1 if state.type is StateType.RUNNING else -1))
    return max(accumulate(change for _, change in sorted(changes)))


def test_two_agents_hold_the_limit_of_each_author(site: Site) -> None:
    site.api.edit_run_queue(replace(site.queue.options, per_author=2))
    site.job("sleep 0.3")
    anns = site.add(*({"author": "ann"} for _ in range(12)))
    bobs = site.add(*({"author": "bob"} for _ in range(3)))
    options = {"max_jobs": 4, "poll_seconds": 0.5}
    with running(site.agent("one", **options)), running(site.agent("two", home=site.folder / "other", **options)):
        for run in (*anns, *bobs):
            run.wait_until_finished(timeout=DEADLINE_SECONDS)

    assert most_at_once(site, anns) == 2
    assert most_at_once(site, bobs) <= 2
    assert most_at_once(site, (*anns, *bobs)) > 2
    started = [sorted(str(run.item.start_time) for run in runs) for runs in (anns, bobs)]
    assert started[1][-1] < started[0][-1]
    assert all(site.states(run).count("Running") == 1 for run in (*anns, *bobs))


def test_many_items_of_one_author_hide_no_other_author(site: Site) -> None:
    site.api.edit_run_queue(replace(site.queue.options, per_author=10, concurrency=2))
    site.job("sleep 60.7")
    site.add(*({"author": "ann"} for _ in range(230)))
    (bobs,) = site.add(author="bob")
    with running(site.agent(max_jobs=4, poll_seconds=0.5)):
        until(lambda: bobs.item.state_type is StateType.RUNNING)
        in_work = [run for run in site.queue.items if run.item.state_type is StateType.RUNNING]
        assert len(in_work) <= 2
        for run in site.queue.items:
            run.cancel()
        until(lambda: bobs.item.state_type is StateType.CANCELLED)
