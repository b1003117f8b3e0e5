"""Images of a job's code for a resource elsewhere: one on the agent's engine alone is refused, a pushed one runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.client.create_job import acreate_job
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import TERMINAL
from prefect_launch.errors import AgentConfigError, SpecError
from prefect_launch.jobs.model import Job
from prefect_launch.runners.base import RunPlan
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryApi, InMemoryCluster, InMemoryRemoteRunner
from tests.support.bench import eventually
from tests.support.cluster_bench import registered_runner

RESOURCE, QUEUE = "in-memory-pods", "pods"
DESTINATION = "registry.example:5000/team/train"
PUSHED = f"{DESTINATION}@sha256:{'a' * 64}"


class InMemoryPods(InMemoryRemoteRunner):
    """A runner on an in-memory cluster that runs images alone."""

    name: ClassVar[str] = RESOURCE
    needs_image: ClassVar[bool] = True


class _BuiltBefore(ImageBuilder):
    """Finds the image of each job where it was pushed to."""

    async def find(self, plan: RunPlan) -> RunPlan | None:
        return plan.model_copy(update={"image": PUSHED, "build_request": None})


class Bench:
    """A queue of a cluster that runs images, a job of code, and agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = InMemoryApi(entity="acme", project="digits")
        self.api.create_run_queue(QUEUE, RESOURCE)
        self.cluster = InMemoryCluster()
        self.plans: list[RunPlan] = []

    async def job(self) -> Job:
        code = self.folder / "code"
        code.mkdir()
        (code / "train.py").write_text("print('hello')\n")
        return await acreate_job(str(code), "code", name="train", entrypoint=["python", "train.py"], api=self.api)

    async def add(self, job: Job) -> QueuedRun:
        """Put the job on the queue."""
        (run,) = await alaunch_add_many([{"job": job.reference}], QUEUE, api=self.api)
        return run

    @asynccontextmanager
    async def running(self, **config: Any) -> AsyncIterator[LaunchAgent]:
        """Run an agent beside the test."""
        settings = {"name": "box", "queues": [QUEUE], "home": self.folder / "home", "poll_seconds": 0.05, **config}
        runner = InMemoryPods(self.folder / "home", self.cluster)
        agent = LaunchAgent(self.api, settings, runners={RESOURCE: runner})
        loop = asyncio.create_task(agent.loop())
        try:
            yield agent
            agent.stop()
            await asyncio.wait_for(loop, 30)
        finally:
            loop.cancel()
            await asyncio.wait({loop})

    async def until_ended(self, run_id: str) -> Item:
        """Wait until an item has ended."""

        async def read() -> Item | None:
            return await self.api.server.read_item(UUID(run_id))

        found: Item = await eventually(read, lambda item: item.state_type in TERMINAL)
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with registered_runner(tmp_path, monkeypatch, RESOURCE, "tests.unit.agent.test_images_elsewhere:InMemoryPods"):
        yield Bench(tmp_path)


async def test_image_that_would_stay_on_the_agents_engine_is_refused_before_anything_is_submitted(
    bench: Bench,
) -> None:
    run = await bench.add(await bench.job())
    async with bench.running():
        ended = await bench.until_ended(run.id)
    assert ended.state_name == "Crashed"
    assert "[build]" in (ended.message or "")
    assert "Set builder.destination in the agent's config" in (ended.message or "")
    assert bench.cluster.calls["submit"] == 0


async def test_image_that_no_agent_would_push_is_refused_before_anything_is_queued(bench: Bench) -> None:
    job = await bench.job()
    async with bench.running():
        await eventually(lambda: _pushers(bench), lambda pushers: pushers == [False])
        with pytest.raises(SpecError, match=r"the agents of the queue 'pods' \(box\) keep the images .*destination"):
            await bench.add(job)
    assert await bench.api.server.count_items(pool=QUEUE) == 0


async def test_run_elsewhere_gets_the_pushed_image_by_its_digest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(plan: RunPlan) -> Any:
        bench.plans.append(plan)
        return make(plan)

    make, bench.cluster.script = bench.cluster.script, script
    monkeypatch.setattr("prefect_launch.builds.image_builder.ImageBuilder", _BuiltBefore)
    async with bench.running(builder={"destination": DESTINATION}):
        await eventually(lambda: _pushers(bench), lambda pushers: pushers == [True])
        run = await bench.add(await bench.job())
        assert (await bench.until_ended(run.id)).state_name == "Completed"
    assert [plan.image for plan in bench.plans] == [PUSHED]


def test_builder_with_a_destination_reaches_every_resource() -> None:
    from prefect_launch.builds.settings import BuilderSettings

    BuilderSettings(destination=DESTINATION).check_reaches("kubernetes")
    with pytest.raises(AgentConfigError, match="the resource 'kubernetes' pulls its images from a registry"):
        BuilderSettings().check_reaches("kubernetes")


async def _pushers(bench: Bench) -> list[bool | None]:
    async with bench.api.open() as session:
        return [agent.pushes_images for agent in await session.online_agents(QUEUE)]
