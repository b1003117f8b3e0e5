"""The runner's contract on real containers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.docker.client import DockerEngine
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing.runner_contract import MISSING, ExecContract, RunnerContract

pytestmark = pytest.mark.engine


class ContainerWorld:
    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        self.image = image
        self.mark = uuid4().hex
        self.runners: list[LocalContainerRunner] = []

    def runner(self) -> LocalContainerRunner:
        runner = LocalContainerRunner(self.folder / "home", DockerEngine(event_labels=(Labels.ITEM,)))
        self.runners.append(runner)
        return runner

    def plan(self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> RunPlan:
        item = str(uuid4())
        run_dir = self.folder / "runs" / item
        run_dir.mkdir(parents=True)
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            image=self.image,
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            labels={Labels.ITEM: item, Labels.AGENT: self.mark},
        )

    async def clear(self) -> None:
        runner = self.runner()
        for found in await runner.find({Labels.AGENT: self.mark}):
            await runner.remove(found.handle)
        for one in self.runners:
            await one.aclose()


@pytest.fixture
async def world(tmp_path: Path, shell_image: str) -> AsyncIterator[ContainerWorld]:
    world = ContainerWorld(tmp_path, shell_image)
    yield world
    await world.clear()


class TestLocalContainer(RunnerContract, ExecContract):
    """Each promise of the contract, kept by containers."""
