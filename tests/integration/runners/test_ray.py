"""The runner's contract on a real Ray head, and what Ray alone does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import httpx
import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.ray.client import RayClient
from prefect_launch.runners.remote.ray.runner import RayRunner
from prefect_launch.testing.runner_contract import MISSING, RemoteRunnerContract
from tests.support.engine_cases import EngineContract, EnginePlace
from tests.support.live import REPORT_LOSS, Site, until
from tests.support.ray import GATE, RayHead

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


class LosingTransport(httpx.AsyncHTTPTransport):
    """The network, which loses the next answers when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.to_lose = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if self.to_lose > 0:
            self.to_lose -= 1
            await answer.aclose()
            raise httpx.ReadError("the answer was lost", request=request)
        return answer


class RayWorld:
    def __init__(self, folder: Path, head: RayHead) -> None:
        self.folder = folder
        self.head = head
        self.mark = uuid4().hex
        self.runners: list[RayRunner] = []
        self.transports: list[LosingTransport] = []
        self.held = ExitStack()

    def runner(self) -> RayRunner:
        transport = LosingTransport()
        client = RayClient(lambda: {"RAY_ADDRESS": self.head.address}, transport)
        runner = RayRunner(self.folder / "home", client)
        self.runners.append(runner)
        self.transports.append(transport)
        return runner

    def plan(
        self,
        script: str,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> RunPlan:
        item = str(uuid4())
        run_dir = self.folder / "runs" / item
        run_dir.mkdir(parents=True)
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            options={"resources": {GATE: 0.001}, **(options or {})},
            labels={Labels.ITEM: item, Labels.AGENT: self.mark},
        )

    def fill(self) -> None:
        self.held.enter_context(self.head.full())

    def free(self) -> None:
        self.held.close()

    def lose_answers(self, count: int) -> None:
        for transport in self.transports:
            transport.to_lose = count

    async def clear(self) -> None:
        self.free()
        runner = self.runner()
        for found in await runner.find({Labels.AGENT: self.mark}):
            await runner.stop(found.handle, 0.0)
        for one in self.runners:
            await one.aclose()


@pytest.fixture
async def world(tmp_path: Path, ray_head: RayHead) -> AsyncIterator[RayWorld]:
    world = RayWorld(tmp_path, ray_head)
    yield world
    await world.clear()


class TestRay(RemoteRunnerContract):
    """Each promise of the contract, kept by jobs of a Ray cluster."""

    limit_seconds: ClassVar[float] = 120.0
    stop_margin_seconds: ClassVar[float] = 60.0
    short_seconds: ClassVar[int] = 3
    starts_at_once: ClassVar[bool] = False


# --- from the queue to the end ---


@pytest.fixture
def site(prefect_server: PrefectServerProcess, ray_head: RayHead, tmp_path: Path, unique: str) -> Site:
    """A queue of Ray jobs of the test's own."""
    return Site(prefect_server.api_url, tmp_path, unique, resource="ray", config={"cpus": 0.1})


def test_code_runs_to_completed_with_its_log_and_outputs(site: Site) -> None:
    """Its working folder is a copy of its code, which it may change."""
    script = (
        'echo "hello $WANDB_NAME"; touch mine; ls; printf \'{"accuracy": 0.9}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"'
    )
    site.job(REPORT_LOSS + script)
    first, second = site.add({"name": "one"}, {"name": "two"})
    site.work_off()
    for run, name in ((first, "one"), (second, "two")):
        assert site.states(run)[-2:] == ["Running", "Completed"]
        assert site.log(run).splitlines() == [f"hello {name}", "mine", "run.sh"]
        assert (run.outputs(), run.metrics().value("loss")) == ({"accuracy": 0.9}, 0.5)


@pytest.fixture
def engine_place(prefect_server: PrefectServerProcess, ray_head: RayHead, tmp_path: Path, unique: str) -> EnginePlace:
    # So many jobs at a time as there is room for: each has a process of Ray's beside its own.
    config = {"cpus": 0.25, "env": {"FOLDER": str(tmp_path), "COUNT": str(tmp_path)}}

    def stop(run: QueuedRun) -> None:
        with ray_head.client() as client:
            client.post(f"/api/jobs/launch-{run.id}-1/stop").raise_for_status()

    return EnginePlace(
        prefect_server,
        tmp_path,
        unique,
        "ray",
        config,
        ray_head.relay.cut,
        ray_head.relay.mend,
        away_seconds=30.0,
        many=8,
        delete=stop,
        deleted="somebody stopped it on ray",
    )


class TestEngine(EngineContract):
    """An agent's promises, kept on a real head."""

    def test_item_whose_job_is_deleted_by_hand_says_so(self, engine_place: EnginePlace) -> None:
        super().test_item_whose_job_is_deleted_by_hand_says_so(engine_place)


def test_asked_for_stop_ends_the_job_and_says_so(site: Site, agents: list[ChildProcess]) -> None:
    site.job("trap 'echo saved; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
    (run,) = site.add()
    agents.append(site.agent_process())
    until(lambda: "ready" in site.log(run))
    run.cancel()
    until(lambda: run.item.is_terminal)
    assert site.states(run)[-1] == "Cancelled"
    lines = site.log(run).splitlines()
    assert (lines[0], lines[-1]) == ("ready", "saved")


# The last one: it takes all jobs with it.
def test_job_that_is_lost_with_the_head_crashes_its_item_and_says_why(
    site: Site, ray_head: RayHead, agents: list[ChildProcess]
) -> None:
    site.job("echo ready; exec sleep 600")
    (run,) = site.add(retries=0)
    agents.append(site.agent_process())
    until(lambda: "ready" in site.log(run))
    ray_head.restart()
    until(lambda: run.item.is_terminal)
    assert site.states(run)[-1] == "Crashed"
    assert "The head of the Ray cluster was started anew" in run.message
