"""How a command gets inside a run: each runner's answer, without what it would be executed on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.errors import AgentConfigError, InfrastructureError, SpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners.base import ExecPlan, RunPlan
from prefect_launch.runners.docker.client import DockerEngine
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.runners.registry import make_runner
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine
from prefect_launch.testing.script import Script

COMMAND = ["python", "-c", "print()"]


def plan_in(folder: Path) -> RunPlan:
    return RunPlan(item_id=str(uuid4()), run_id="r", run_dir=folder, image="shell", command=("train",))


async def started(runner: LocalContainerRunner, plan: RunPlan) -> str:
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


@pytest.mark.parametrize(("has_terminal", "options"), [(True, ["--interactive", "--tty"]), (False, ["--interactive"])])
async def test_command_in_a_container_gets_a_terminal_only_where_the_caller_has_one(
    tmp_path: Path, has_terminal: bool, options: list[str]
) -> None:
    docker = InMemoryDocker(lambda config: Script(seconds=60), images={"shell": {}})
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    handle = await started(runner, plan_in(tmp_path))

    inside = await runner.exec_plan(handle, COMMAND, has_terminal=has_terminal)

    assert inside == ExecPlan(argv=("docker", "exec", *options, handle, *COMMAND))
    await runner.stop(handle, 0.0)


@pytest.mark.parametrize("handle", ["", "of-another-engine"])
async def test_container_that_does_not_run_on_this_engine_takes_no_command(tmp_path: Path, handle: str) -> None:
    docker = InMemoryDocker(images={"shell": {}})
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    plan = plan_in(tmp_path)
    ended = await started(runner, plan)
    await runner.watch(ended, plan)

    with pytest.raises(InfrastructureError, match=r"it has ended, or .* another engine.*DOCKER_HOST"):
        await runner.exec_plan(handle or ended, COMMAND, has_terminal=False)


@pytest.mark.parametrize(("program", "option"), [("docker", "--host"), ("podman", "--url")])
def test_client_program_speaks_to_the_engine_that_the_runner_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, option: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = DockerEngine("unix:///run/other.sock")
    with pytest.raises(AgentConfigError, match="none of the programs docker, podman"):
        engine.client_program()

    (tmp_path / program).touch(mode=0o755)

    assert engine.client_program() == (program, option, "unix:///run/other.sock")


@pytest.mark.parametrize(
    ("resource", "words"),
    [("ray", "Ray's Jobs API starts nothing in a job. Log in"), ("prefect", "a worker of Prefect runs it, .* by hand")],
)
async def test_resource_without_a_way_in_says_why_and_what_to_do(tmp_path: Path, resource: str, words: str) -> None:
    runner = make_runner(resource, tmp_path)

    with pytest.raises(SpecError, match=f"inside a run on the resource {resource}: {words}"):
        await runner.exec_plan("some@claim", COMMAND, has_terminal=False)


# --- a process ---


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run, whose first process has written over its own environment."""
    return RunFolder(tmp_path)


@pytest.fixture
def processes(folder: RunFolder) -> Iterator[list[subprocess.Popen[bytes]]]:
    mark = {OUTPUT_DIR_VARIABLE: str(folder.path / "outputs"), "ODD": "a=b\nc", "PATH": os.environ["PATH"]}
    found = [subprocess.Popen(["sleep", "60"], env=env) for env in ({"PATH": mark["PATH"]}, mark)]
    yield found
    for one in found:
        one.send_signal(signal.SIGKILL)
        one.wait()


def test_environment_is_read_from_another_process_where_the_first_one_does_not_show_it(
    folder: RunFolder, processes: list[subprocess.Popen[bytes]]
) -> None:
    first, child = processes
    folder.write(supervisor.STARTED, supervisor.identity(first.pid))

    shown = folder.environment()

    assert shown is not None
    assert (shown["ODD"], shown[OUTPUT_DIR_VARIABLE]) == ("a=b\nc", str(folder.path / "outputs"))
    child.kill()
    child.wait()
    assert folder.environment() is None


async def test_run_whose_folder_cannot_be_read_says_where_to_try_it(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"not on this machine, or .* as the user of the agent"):
        await LocalProcessRunner(tmp_path).exec_plan(str(tmp_path / "elsewhere"), COMMAND, has_terminal=False)


def test_environment_of_a_run_is_in_no_text_of_its_plan() -> None:
    assert "hunter2" not in repr(ExecPlan(argv=("sh",), env={"TOKEN": "hunter2"}))
