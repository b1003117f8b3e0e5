"""Fair shares on a real server: two agents hold the limit of each author, and no author hides another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from uuid import UUID

from prefect_launch import create_job
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, until


def history(site: Site, runs: Iterable[QueuedRun]) -> list[State]:
    """The states that they were in, of each the oldest first."""
    ids = [UUID(run.id) for run in runs]

    async def read(session: Session) -> list[State]:
        return [state for item_id in ids for state in await session.server.read_states(item_id)]

    return site.api.call(read)


def most_at_once(site: Site, runs: Iterable[QueuedRun]) -> int:
    """How many ran at a time at most, as the history of their states says."""
    changes = []
    for state in history(site, runs):
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
    site.job("sleep 600.7")
    site.add(*({"author": "ann"} for _ in range(40)))
    (bobs,) = site.add(author="bob")
    with running(site.agent(max_jobs=4, poll_seconds=0.5)):
        until(lambda: bobs.item.state_type is StateType.RUNNING)
        site.queue.pause()
        started = [run for run in site.queue.items if run.item.state_type is not StateType.SCHEDULED]
        assert len(started) <= 2
        for run in started:
            run.cancel()
        until(lambda: all(run.item.state_type is StateType.CANCELLED for run in started))


COUNTS = """
from pathlib import Path
import os, signal, sys, time

saved = Path(os.environ["LAUNCH_OUTPUT_DIR"], "checkpoint")
step = int(saved.read_text()) if saved.exists() else 0
print("starts at", step, flush=True)

def stop(*_):
    saved.write_text(str(step))
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
while not Path(sys.argv[1]).exists() or step < 3:
    step += 1
    time.sleep(0.1)
print("ends", flush=True)
"""


def test_critical_item_sends_a_low_one_back_which_resumes_from_its_checkpoint(site: Site, unique: str) -> None:
    site.api.edit_run_queue(replace(site.queue.options, preempt=True))
    code, may_end = site.folder / "counts", site.folder / "may-end"
    code.mkdir()
    (code / "main.py").write_text(COUNTS)
    create_job(str(code), "code", name=f"{unique}-counts", entrypoint=f"python main.py {may_end}", api=site.api)
    site.job("sleep 1")
    with running(site.agent(max_jobs=1, poll_seconds=0.5, stopped_run_timeout=20)):
        (low,) = site.add(job=f"{unique}-counts", priority="low", resumable=True, author="ann")
        until(lambda: "starts at 0" in site.log(low))
        (urgent,) = site.add(priority="critical", name="urgent")
        urgent.wait_until_finished(timeout=DEADLINE_SECONDS)
        may_end.touch()
        low.wait_until_finished(timeout=DEADLINE_SECONDS)

    began = [line for line in site.log(low).splitlines() if line.startswith("starts at")]
    assert (began[0], len(began)) == ("starts at 0", 2)
    assert began[1] != "starts at 0"
    states = history(site, [low])
    assert [state.name for state in states if state.name in ("Queued", "Running", "Completed", "AwaitingRetry")] == [
        *("Queued", "Running", "Queued", "Running", "Completed")
    ]
    (sent_back,) = [state.message for state in states if "Sent back" in (state.message or "")]
    assert sent_back is not None
    assert "for urgent (" in sent_back
