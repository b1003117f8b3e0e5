"""What an agent promises of work elsewhere, as cases that every real engine is put through by its own tests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect_launch.core.states import StateType
from tests.support.agent_thread import running
from tests.support.crash_harness import CrashHarness, crash_at
from tests.support.live import REPORT_LOSS, Site, until
from tests.support.mortal_agent import Life, Lives

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

#: For a hang: 200 jobs take some minutes on a busy machine.
MANY_SECONDS = 1_500.0
#: For a hang of one job; a pod, or a job of Ray, takes its time to start.
ONE_SECONDS = 300.0
#: What is the same of an item's end on every engine; the log is one stream on some, and waits leave artifacts.
WANTED = ("state", "exit code", "log", "job")
#: Steps at which an agent that dies leaves something else behind: nothing yet, a job that is held and not recorded, one
#: that is recorded and not released, one that runs, one that has ended, one whose end is not told.
PLACES = (
    *("before submit 1", "after submit 1", "after record_infrastructure 1", "after propose 2", "after watch 1"),
    "before propose 3",
)


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine's agents and jobs meet.

    Attributes:
        server: the Prefect server.
        folder: of the test; the jobs see it as `$FOLDER`.
        name: begins the names of queues.
        resource: of the queues.
        config: of the queues, with the variables `FOLDER` and `COUNT` of their jobs.
        image: that jobs run in; empty: they are code.
    """

    server: PrefectServerProcess
    folder: Path
    name: str
    resource: str
    config: Mapping[str, Any]
    image: str = ""

    def site(self, name: str) -> Site:
        """Make a queue."""
        return Site(
            self.server.api_url, self.folder, f"{self.name}-{name}", resource=self.resource, config=dict(self.config)
        )

    def add(self, site: Site, script: str, count: int = 1, **more: Any) -> list[QueuedRun]:
        """Put items on a queue that run a script of the shell."""
        entry_point = {"overrides": {"entry_point": ["sh", "-c", script]}}
        what = {"docker": {"docker_image": self.image}} if self.image else {"job": site.job(script)}
        names = [{"run_id": f"t-{uuid4().hex[:12]}"} for _ in range(count)]
        return site.add(*({**what, **(entry_point if self.image else {}), **name, **more} for name in names))


def each_job_runs_once(place: EnginePlace, count: int, *, at_once: int | None = None) -> None:
    """Queue many short jobs, and let one agent run them all at a time."""
    site = place.site("many")
    runs = place.add(site, 'echo "$LAUNCH_RUN_ID" >> "$FOLDER/ran"', count)
    agent = site.agent_process("box", "--until-empty", jobs=at_once or count)
    try:
        agent.wait(MANY_SECONDS)
    finally:
        agent.kill()
    ran = Counter((place.folder / "ran").read_text().split())
    assert ran == Counter(run.run_id for run in runs), agent.tail()
    ends = Counter((run.item.state_type, run.item.run_count) for run in site.api.items(queue=site.name, limit=None))
    assert ends == {(StateType.COMPLETED, 1): count}


def each_death_leaves_one_run(place: EnginePlace, folder: Path, *, every: bool, more: Sequence[str] = ()) -> None:
    """Kill an agent at steps between its claim and the item's end; the next one goes on, and the job runs once.

    Args:
        place: of the engine.
        folder: for the agents' logs.
        every: take every step that a life without a death shows, and not only those of `PLACES`.
        more: steps beside those of `PLACES`.
    """
    lives = Lives(folder)
    try:
        harness = CrashHarness(
            place.server,
            lives,
            place.resource,
            place.folder,
            place.name,
            place.image,
            config=place.config,
            wanted=WANTED,
        )
        unharmed = live_unharmed(harness, "unharmed")
        if every:
            # Once more: now its environment is there.
            harness.may_miss, unharmed = True, live_unharmed(harness, "unharmed-too")
        crash_at(harness, unharmed.calls if every else [*PLACES, *more])
    finally:
        lives.close()


def live_unharmed(harness: CrashHarness, name: str) -> Life:
    """Let an agent live that does not die; its item ends as it should."""
    site = harness.site(name)
    run = harness.add(site)
    life = harness.live(site)
    assert life.status == 0, life.log
    seen = harness.see(site, run)
    assert {key: seen[key] for key in harness.wanted} == harness.wanted, life.log
    return life


def nothing_is_lost_while_it_is_away(
    place: EnginePlace,
    agents: list[ChildProcess],
    go_away: Callable[[], None],
    come_back: Callable[[], None],
    seconds: float,
) -> None:
    """Let the engine be away while a job ends and another is queued: both end as they did, once."""
    site = place.site("away")
    (run,) = place.add(site, REPORT_LOSS + 'echo on; while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done; echo off')
    agents.append(site.agent_process(jobs=2))
    until(lambda: "on" in site.log(run), ONE_SECONDS)
    go_away()
    try:
        (late,) = place.add(site, "echo late")
        (place.folder / "go").touch()
        time.sleep(seconds)  # So long it is away.
        assert not {"Running", "Completed"} & {*site.states(late)}, "the engine was not away"
    finally:
        come_back()
    for one, lines in ((run, ["on", "off"]), (late, ["late"])):
        until(partial(_has_ended, one), ONE_SECONDS)
        assert (site.states(one)[-1], site.flow_run(one).run_count, site.log(one).splitlines()) == (
            "Completed",
            1,
            lines,
        ), one.message
    assert run.metrics().value("loss") == 0.5


def _has_ended(run: QueuedRun) -> bool:
    return run.item.is_terminal


def silent_job_is_stopped(place: EnginePlace) -> None:
    """Cancel a job that handles no TERM: it ends all the same."""
    site = place.site("silent")
    (run,) = place.add(site, "trap '' TERM; echo up; while :; do sleep 0.2; date +%s > \"$FOLDER/alive\"; done")
    with running(site.agent()):
        until(lambda: "up" in site.log(run), ONE_SECONDS)
        run.cancel()
        until(partial(_has_ended, run), ONE_SECONDS)
        # What is told as stopped does not write any more.
        (place.folder / "alive").unlink()
        assert run.item.state_type is StateType.CANCELLED, run.message
        time.sleep(1.0)
        assert not (place.folder / "alive").exists()


def message_of_a_job_that_is_deleted_by_hand(place: EnginePlace, delete: Callable[[QueuedRun], None]) -> str:
    """Let somebody delete a running job on the engine; return what its item says, which must not have completed."""
    site = place.site("deleted")
    (run,) = place.add(site, "echo up; sleep 600", retries=0)
    with running(site.agent()):
        until(lambda: "up" in site.log(run), ONE_SECONDS)
        delete(run)
        until(partial(_has_ended, run), ONE_SECONDS)
    assert run.item.state_type is not StateType.COMPLETED
    assert site.flow_run(run).run_count == 1
    return run.message
