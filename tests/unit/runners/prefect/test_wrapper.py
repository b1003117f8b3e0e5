"""The wrapper of a job: a program of its own, whose server goes away, loses answers, and ends its run."""

from __future__ import annotations

import ast
import asyncio
import os
import random
import shlex
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_launch.core import masking
from prefect_launch.core.masking import MASK, Mask
from prefect_launch.core.states import StateType
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.prefect import logs, wrapper, wrapper_api
from prefect_launch.runners.remote.prefect.runner import PrefectRunner
from prefect_launch.server.values import LogRecord, State
from tests.support.waiting import until
from tests.unit.runners.prefect.world import PrefectWorld

LIMIT_SECONDS = 60.0
#: Writes to both streams by turns.
COUNT = 'i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo "line $i"; echo "error $i" >&2; done'
SLEEP = 'echo begun; trap "echo ended; exit 5" TERM; sleep 60'


def wait_for(world: PrefectWorld, gate: str) -> str:
    """Return the command by which a job waits until there is a file of this name in the world's folder."""
    return f"until [ -e {world.folder / gate} ]; do sleep 0.02; done;"


async def start(runner: PrefectRunner, plan: RunPlan) -> str:
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


async def watch(runner: PrefectRunner, handle: str, plan: RunPlan) -> ExitStatus:
    return await asyncio.wait_for(runner.watch(handle, plan), LIMIT_SECONDS)


def logged(world: PrefectWorld, handle: str) -> list[LogRecord]:
    return world.server._store.logs.get(child_of(handle), [])


def child_of(handle: str) -> UUID:
    return UUID(RunHandle.parse(handle).job)


async def run_again(world: PrefectWorld, handle: str) -> subprocess.CompletedProcess[str]:
    """Run a child's command, as a worker does."""
    child = await world.server.read_item(child_of(handle))
    assert child is not None
    return await asyncio.to_thread(
        subprocess.run,
        shlex.split((child.job_variables or {})["command"]),
        env={**os.environ, "PREFECT_API_URL": world.api.url, "PREFECT__FLOW_RUN_ID": str(child.id)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )


# --- the output ---


async def test_log_has_no_gap_and_no_repeat_when_the_server_is_away_meanwhile(world: PrefectWorld) -> None:
    runner, plan = (
        world.runner(),
        world.plan(f"echo first; {wait_for(world, 'go')} {COUNT}; touch {world.folder}/written"),
    )
    handle = await start(runner, plan)
    await until(lambda: logged(world, handle))
    world.api.is_away = True
    (world.folder / "go").touch()
    await until((world.folder / "written").exists)
    world.api.is_away = False
    assert (await watch(runner, handle, plan)).exit_code == 0
    lines = plan.log_path.read_text().splitlines()
    assert [line for line in lines if line.startswith("line")] == [f"line {i}" for i in range(1, 61)]
    assert [line for line in lines if line.startswith("error")] == [f"error {i}" for i in range(1, 61)]


async def test_records_whose_answers_were_lost_are_not_sent_again(world: PrefectWorld) -> None:
    world.api.lost_path, world.api.lose_answers = "/logs/", 2
    runner, plan = world.runner(), world.plan(f"echo one; {wait_for(world, 'go')} echo two")
    handle = await start(runner, plan)
    await until(lambda: world.api.lose_answers == 1)
    (world.folder / "go").touch()
    assert (await watch(runner, handle, plan)).exit_code == 0
    assert world.api.lose_answers == 0
    assert [record.message for record in logged(world, handle)] == ["one", "two"]
    assert plan.log_path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("path", ["/set_state", "/input"])
async def test_run_whose_answers_were_lost_runs_once_and_ends_as_it_did(world: PrefectWorld, path: str) -> None:
    world.api.lost_path, world.api.lose_answers = path, 2
    runner, plan = world.runner(), world.plan("echo once; exit 3")
    handle = await start(runner, plan)
    assert (await watch(runner, handle, plan)).exit_code == 3
    assert plan.log_path.read_text() == "once\n"


async def test_server_that_is_busy_or_refuses_the_plan_of_a_run_is_asked_again(world: PrefectWorld) -> None:
    world.api.statuses[:] = [503, 404]
    runner, plan = world.runner(), world.plan("echo one")
    handle = await start(runner, plan)
    assert (await watch(runner, handle, plan)).succeeded
    assert plan.log_path.read_text() == "one\n"


async def test_long_log_arrives_whole(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan("seq 1 200000")
    handle = await start(runner, plan)
    assert (await watch(runner, handle, plan)).succeeded
    assert plan.log_path.read_text() == "".join(f"{number}\n" for number in range(1, 200_001))
    assert len(logged(world, handle)) < 500  # Lines are joined: each record costs the server as much as one line.


def test_any_bytes_are_read_back_from_their_records_as_they_were() -> None:
    rng = random.Random(7)
    alphabet = [b"a", b"\n", b"\r", b"\0", b"\xff", "ü".encode(), "漢".encode(), b" ", b"\n\n", b"x" * 15_000]
    for _ in range(300):
        output = b"".join(rng.choice(alphabet) for _ in range(rng.randint(0, 12)))
        found = b""
        for name, level, message in wrapper.records_of(True, output):
            assert (level, "\0" in message) == (30, False)
            assert len(message.encode()) <= 27_000
            record = LogRecord(name=name, level=level, message=message, timestamp=datetime.now(timezone.utc))
            found += logs._content(record, wrapper.STREAMS[1])
        assert found == output


async def test_secret_that_is_written_in_two_parts_is_masked(
    world: PrefectWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapper, "_OPEN_LINE_SECONDS", 0.0)
    monkeypatch.setattr(wrapper, "_SEND_SECONDS", 0.01)
    run = uuid4()
    api = wrapper_api.Api({"PREFECT_API_URL": world.api.url, "PREFECT__FLOW_RUN_ID": str(run)})
    log, records = wrapper.Log(api, Mask(["s3cret-value"])), world.server._store.logs
    log.add(False, b"x" * 200 + b"s3cret-")
    await until(lambda: records.get(run))
    log.add(False, b"value, and on\n")
    await asyncio.to_thread(log.finish)
    found = b"".join(logs._content(record, wrapper.STREAMS[0]) for record in records[run])
    assert found == b"x" * 200 + MASK.encode() + b", and on\n"


# --- starts and stops ---


async def test_command_that_is_started_again_starts_no_job(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan("echo once")
    handle = await start(runner, plan)
    assert (await watch(runner, handle, plan)).succeeded
    again = await run_again(world, handle)
    assert (again.returncode, again.stdout) == (0, "")
    assert "it is not started again" in again.stderr
    assert [record.message for record in logged(world, handle)] == ["once"]


async def test_wrapper_that_is_told_to_end_ends_its_job_and_reports_it_as_preempted(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan(SLEEP)
    handle = await start(runner, plan)
    await until(lambda: logged(world, handle))
    world.worker.processes[child_of(handle)].send_signal(signal.SIGTERM)
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.preempted, end.stopped, end.succeeded) == (5, True, False, False)
    assert "was told to end" in end.describe()
    assert plan.log_path.read_text().splitlines()[0::2] == ["begun", "ended"]  # Between: the shell, of its `sleep`.


async def test_run_that_is_cancelled_in_the_ui_ends_as_a_stopped_one(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan(SLEEP)
    handle = await start(runner, plan)
    await until(lambda: logged(world, handle))
    await world.server.propose(child_of(handle), State(type=StateType.CANCELLING, name="Cancelling"))
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.stopped, end.succeeded) == (5, True, False)
    assert plan.log_path.read_text().splitlines()[0::2] == ["begun", "ended"]  # Between: the shell, of its `sleep`.


async def test_job_ends_when_its_flow_run_is_deleted(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan(SLEEP, stop_seconds=1.0)
    handle = await start(runner, plan)
    await until(lambda: logged(world, handle))
    await world.server.delete_item(child_of(handle))
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.succeeded) == (None, False)
    assert "somebody else removed it" in end.describe()
    process = world.worker.processes[child_of(handle)]
    await until(lambda: process.poll() is not None)


async def test_what_a_job_leaves_running_is_ended_with_it(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan("sleep 600 & echo $!")
    handle = await start(runner, plan)
    assert (await watch(runner, handle, plan)).succeeded
    process = int(plan.log_path.read_text())
    await until(lambda: not _has_process(process))


async def test_run_whose_wrapper_is_killed_with_its_machine_is_told_as_its_worker_tells_it_and_ends(
    world: PrefectWorld,
) -> None:
    runner, plan = world.runner(), world.plan("echo begun $$; sleep 60")
    handle = await start(runner, plan)
    await until(lambda: logged(world, handle))
    group = int(logged(world, handle)[0].message.split()[1])
    world.worker.processes[child_of(handle)].kill()
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.stopped, end.succeeded) == (None, False, False)
    assert "is Crashed: Process exited with status code: -9." in end.describe()
    assert plan.log_path.read_text() == f"begun {group}\n"
    await until(lambda: not _has_process(group))


def _has_process(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- where it runs ---


@pytest.mark.parametrize("module", [masking, wrapper, wrapper_api])
def test_wrapper_needs_the_standard_library_of_an_old_python_alone(module: Any) -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    # What a function imports, it needs when it is called; the wrapper calls none of those.
    nodes = [node for outer in tree.body if not isinstance(outer, ast.ClassDef) for node in ast.walk(outer)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in imported if name.partition(".")[0] not in {*sys.stdlib_module_names, "__future__"}}
    beside = {
        "masking",
        "prefect_launch.core.masking",
        "prefect_launch.runners.remote.prefect.wrapper_api",
        "wrapper_api",
    }
    assert foreign <= beside


async def test_job_sees_nothing_of_the_server_s_address_and_key(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan('env | grep "^PREFECT_"; echo "$LAUNCH_OUTPUT_DIR"')
    handle = await start(runner, plan)
    assert (await watch(runner, handle, plan)).succeeded
    [line] = plan.log_path.read_text().splitlines()
    assert line.endswith("/outputs")
