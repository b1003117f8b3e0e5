"""What an agent promises of work elsewhere: derive a test class from `EngineContract`, and have an `engine_place`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

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
        go_away: makes the engine not answer.
        come_back: makes it answer again.
        away_seconds: how long it is away.
        many: so many short jobs run at once.
        slots: how many items an agent works on at a time; None: all of them.
        more: steps at which an agent is killed, beside those of `PLACES`.
        delete: deletes a job by hand, as somebody may; None: nobody can.
        deleted: what the item says then.
    """

    server: PrefectServerProcess
    folder: Path
    name: str
    resource: str
    config: Mapping[str, Any]
    go_away: Callable[[], None]
    come_back: Callable[[], None]
    image: str = ""
    away_seconds: float = 10.0
    many: int = 20
    slots: int | None = None
    more: Sequence[str] = ()
    delete: Callable[[QueuedRun], object] | None = None
    deleted: str = ""

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


class EngineContract:
    """Cases that every real engine is put through; what the contract of runners has too is for the soak alone."""

    @pytest.mark.timeout(1_800)
    @pytest.mark.parametrize("count", [None, pytest.param(200, marks=pytest.mark.soak)], ids=["many", "200"])
    def test_each_of_many_items_at_once_runs_once(self, engine_place: EnginePlace, count: int | None) -> None:
        each_job_runs_once(engine_place, count or engine_place.many)

    @pytest.mark.timeout(1_800)
    @pytest.mark.parametrize(
        "every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["what differs", "every"]
    )
    def test_agent_killed_at_any_step_runs_the_item_once(
        self, engine_place: EnginePlace, tmp_path_factory: pytest.TempPathFactory, every: bool
    ) -> None:
        each_death_leaves_one_run(engine_place, tmp_path_factory.mktemp("lives"), every=every)

    @pytest.mark.parametrize("seconds", [None, pytest.param(60.0, marks=pytest.mark.soak)], ids=["short", "60 s"])
    def test_nothing_is_lost_while_the_engine_is_away(
        self, engine_place: EnginePlace, agents: list[ChildProcess], seconds: float | None
    ) -> None:
        nothing_is_lost_while_it_is_away(engine_place, agents, seconds or engine_place.away_seconds)

    @pytest.mark.soak
    def test_silent_item_is_stopped(self, engine_place: EnginePlace) -> None:
        silent_job_is_stopped(engine_place)

    @pytest.mark.soak
    def test_item_whose_job_is_deleted_by_hand_says_so(self, engine_place: EnginePlace) -> None:
        if engine_place.delete is None:
            pytest.skip("nobody can delete a job of this engine by hand")
        assert engine_place.deleted in message_of_a_job_that_is_deleted_by_hand(engine_place, engine_place.delete)


def each_job_runs_once(place: EnginePlace, count: int) -> None:
    """Queue many short jobs, and let one agent run them all at a time."""
    site = place.site("many")
    runs = place.add(site, 'echo "$LAUNCH_RUN_ID" >> "$FOLDER/ran"', count)
    agent = site.agent_process("box", "--until-empty", jobs=place.slots or count)
    try:
        agent.wait(MANY_SECONDS)
    finally:
        agent.kill()
    ran = Counter((place.folder / "ran").read_text().split())
    assert ran == Counter(run.run_id for run in runs), agent.tail()
    ends = Counter((run.item.state_type, run.item.run_count) for run in site.api.items(queue=site.name, limit=None))
    assert ends == {(StateType.COMPLETED, 1): count}


def each_death_leaves_one_run(place: EnginePlace, folder: Path, *, every: bool) -> None:
    """Kill an agent at steps between its claim and the item's end; the next one goes on, and the job runs once.

    Args:
        place: of the engine.
        folder: for the agents' logs.
        every: take every step that a life without a death shows, and not only those of `PLACES`.
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
        crash_at(harness, unharmed.calls if every else [*PLACES, *place.more])
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


def nothing_is_lost_while_it_is_away(place: EnginePlace, agents: list[ChildProcess], seconds: float) -> None:
    """Let the engine be away while a job ends and another is queued: both end as they did, once."""
    site = place.site("away")
    (run,) = place.add(site, REPORT_LOSS + 'echo on; while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done; echo off')
    agents.append(site.agent_process(jobs=2))
    until(lambda: "on" in site.log(run), ONE_SECONDS)
    place.go_away()
    try:
        (late,) = place.add(site, "echo late")
        (place.folder / "go").touch()
        time.sleep(seconds)  # So long it is away.
        assert not {"Running", "Completed"} & {*site.states(late)}, "the engine was not away"
    finally:
        place.come_back()
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


def message_of_a_job_that_is_deleted_by_hand(place: EnginePlace, delete: Callable[[QueuedRun], object]) -> str:
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
