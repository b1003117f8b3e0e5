"""The runner's contract on the in-memory fakes: the runner itself, and the container runner on an in-memory engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, Runner, RunPlan
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine
from prefect_launch.testing.remote_runner import (
    InMemoryCluster,
    InMemoryRemoteRunner,
    InMemoryTellingRunner,
    InMemoryUnholdingRunner,
)
from prefect_launch.testing.runner import InMemoryMachine, InMemoryRunner
from prefect_launch.testing.runner_contract import LOG, MISSING, RemoteRunnerContract, RunnerContract, run
from tests.unit.runners.scripts import script_of


class FakeWorld:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runner(self) -> Runner:
        raise NotImplementedError

    def plan(self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> RunPlan:
        item = str(uuid4())
        run_dir = self.folder / item
        run_dir.mkdir()
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            image="shell",
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            labels={Labels.ITEM: item, Labels.AGENT: "contract"},
        )


class InMemoryWorld(FakeWorld):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.machine = InMemoryMachine(lambda plan: script_of(plan.command, plan.args, plan.env))

    def runner(self) -> Runner:
        return InMemoryRunner(self.folder, self.machine)


class InMemoryDockerWorld(FakeWorld):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.docker = InMemoryDocker(
            lambda config: script_of(
                config["Entrypoint"], config["Cmd"], dict(one.split("=", 1) for one in config["Env"])
            ),
            images={"shell": {}},
        )

    def runner(self) -> Runner:
        return LocalContainerRunner(self.folder, InMemoryEngine(self.docker))


class InMemoryClusterWorld(FakeWorld):
    def __init__(self, folder: Path, kind: type[InMemoryRemoteRunner], lag_seconds: float = 0.0) -> None:
        super().__init__(folder)
        self.kind = kind
        self.cluster = InMemoryCluster(
            lambda plan: script_of(plan.command, plan.args, plan.env), lag_seconds=lag_seconds
        )

    def runner(self) -> Runner:
        return self.kind(self.folder, self.cluster)

    def fill(self) -> None:
        self.cluster.resize(0)

    def free(self) -> None:
        self.cluster.resize(1_000)

    def lose_answers(self, count: int) -> None:
        self.cluster.lost_answers = count


class TestInMemoryRunner(RunnerContract):
    """Each promise of the contract, kept by the in-memory runner."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> InMemoryWorld:
        return InMemoryWorld(tmp_path)


class TestLocalContainerOnInMemoryEngine(RunnerContract):
    """Each promise of the contract, kept by the container runner on an in-memory engine."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> InMemoryDockerWorld:
        return InMemoryDockerWorld(tmp_path)

    async def test_log_that_cannot_be_written_is_reported_as_not_complete(self, world: InMemoryDockerWorld) -> None:
        plan = world.plan(LOG)
        plan.log_path.mkdir()
        end = await run(world.runner(), plan)
        assert (end.log_complete, end.exit_code) == (False, 0)
        assert "the log could not be written" in end.warnings[0]


class TestInMemoryRemoteRunner(RemoteRunnerContract):
    """Each promise of the contract, kept on a cluster that holds jobs."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> InMemoryClusterWorld:
        return InMemoryClusterWorld(tmp_path, InMemoryRemoteRunner)


class TestInMemoryUnholdingRunner(RemoteRunnerContract):
    """Each promise of the contract, kept on a cluster that cannot hold jobs and shows them late."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> InMemoryClusterWorld:
        return InMemoryClusterWorld(tmp_path, InMemoryUnholdingRunner, InMemoryUnholdingRunner.lag_seconds)


class TestInMemoryTellingRunner(RemoteRunnerContract):
    """Each promise of the contract, kept on a cluster that tells of changes, and is hardly ever polled."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> InMemoryClusterWorld:
        return InMemoryClusterWorld(tmp_path, InMemoryTellingRunner)
