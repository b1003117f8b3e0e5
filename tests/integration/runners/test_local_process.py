"""What only processes do: supervisors, process groups, environments, secrets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.environments.venv import Environments
from prefect_launch.errors import JobCodeError, SourceError, SpecError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan, RunState
from prefect_launch.runners.process.files import RunFolder
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.testing.runner_contract import run
from tests.support.waiting import until

#: For a hang; what it bounds would take longer by itself.
PATIENCE_SECONDS = 60.0


@pytest.fixture
def runner(tmp_path: Path) -> LocalProcessRunner:
    return LocalProcessRunner(tmp_path / "home")


def make_plan(folder: Path, command: Sequence[str], files: Mapping[str, str] | None = None, **more: object) -> RunPlan:
    item = str(uuid4())
    code = folder / "runs" / item / "code"
    code.mkdir(parents=True)
    for name, text in (files or {}).items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(text)
    values = {"item_id": item, "run_id": item[:8], "run_dir": code.parent, "code_dir": code, "command": tuple(command)}
    return RunPlan.model_validate({**values, "labels": {Labels.ITEM: item}, **more})


async def started(runner: LocalProcessRunner, plan: RunPlan) -> str:
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


async def until_log_has(plan: RunPlan, text: str) -> str:
    for _ in range(1200):
        log = plan.log_path.read_text() if plan.log_path.exists() else ""
        if text in log:
            return log
        await asyncio.sleep(0.05)
    raise AssertionError(f"{text!r} never came into the log: {log!r}")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_files_beside_the_code_are_kept_by_a_pattern_or_told(runner: LocalProcessRunner, tmp_path: Path) -> None:
    script = "mkdir ckpt; echo one > ckpt/1.pt; echo 1 > loss.csv; echo more >> notes.txt; touch code.py"
    files = {"notes.txt": "", "code.py": "pass", "config.yaml": "a: 1"}
    plan = make_plan(tmp_path, ("sh", "-c", script), files, keep=["ckpt/**"], file_overrides={"config.yaml": {"a": 2}})

    end = await run(runner, plan)

    assert (plan.output_dir / "ckpt" / "1.pt").read_text() == "one\n"
    assert end.code_changes.named == ("code.py", "loss.csv", "notes.txt")
    assert await runner.watch(str(plan.run_dir), plan) == end, "an agent that comes back sees the same"


DETACH = "setsid sh -c 'trap \"\" TERM; echo pid $$; while true; do sleep 0.2; done' & sleep 0.5;"


async def test_process_that_left_the_group_ends_with_its_job(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", f"{DETACH} exit 5"))
    end = await run(runner, plan)
    detached = int(plan.log_path.read_text().split()[1])
    assert (end.exit_code, lives(detached)) == (5, False)


async def test_command_that_was_run_beside_the_job_ends_with_it(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sleep", "600"))
    handle = await started(runner, plan)
    inside = await runner.exec_plan(handle, ["sleep", "600"], has_terminal=False)
    command = await asyncio.create_subprocess_exec(*inside.argv, env=inside.env, cwd=inside.cwd)

    await runner.stop(handle, 0.0)

    assert await asyncio.wait_for(command.wait(), PATIENCE_SECONDS) == -signal.SIGHUP


async def test_stop_reaches_a_process_that_left_the_group(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", f"{DETACH} sleep 60"))
    handle = await started(runner, plan)
    detached = int((await until_log_has(plan, "pid ")).split()[1])
    await runner.stop(handle, 0.5)
    assert not lives(detached)
    assert (await runner.watch(handle, plan)).stopped


async def test_job_that_is_asked_to_end_may_clean_up(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", "trap 'echo saved; exit 7' TERM; echo up; while true; do sleep 0.1; done"))
    handle = await started(runner, plan)
    await until_log_has(plan, "up")
    begun = time.monotonic()
    await runner.stop(handle, 200)
    assert time.monotonic() - begun < 100
    end = await runner.watch(handle, plan)
    assert (end.exit_code, end.stopped) == (7, True)
    assert "saved" in plan.log_path.read_text()


async def test_run_outlives_the_agent_that_started_it(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", "sleep 1.5; echo done; exit 6"))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    agent = (
        "import asyncio, os, sys; from pathlib import Path\n"
        "from prefect_launch.runners.base import RunPlan\n"
        "from prefect_launch.runners.process.runner import LocalProcessRunner\n"
        "async def main():\n"
        "    plan = RunPlan.model_validate_json(Path(sys.argv[1]).read_text()); runner ="
        " LocalProcessRunner(Path(sys.argv[2]))\n"
        "    await runner.prepare(plan); await runner.start(await runner.create(plan)); os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    arguments = [sys.executable, "-c", agent, str(tmp_path / "plan.json"), str(tmp_path / "home")]
    assert (await asyncio.to_thread(subprocess.run, arguments)).returncode == 9
    [found] = await runner.find(plan.labels)
    assert found.state is RunState.RUNNING
    end = await runner.watch(found.handle, plan)
    assert (end.exit_code, plan.log_path.read_text()) == (6, "done\n")


async def test_job_does_not_go_on_when_its_supervisor_is_killed(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", "setsid sleep 600 & echo $! $$; sleep 600"))
    handle = await started(runner, plan)
    pids = [int(pid) for pid in (await until_log_has(plan, "\n")).split()]
    watching = asyncio.create_task(runner.watch(handle, plan))
    supervisor = RunFolder(plan.run_dir).supervisor_pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    end = await asyncio.wait_for(watching, PATIENCE_SECONDS)
    assert end.exit_code is None
    assert "supervisor" in end.describe()
    await until(lambda: not any(map(lives, pids)))
    await runner.start(handle)
    assert RunFolder(plan.run_dir).state is RunState.EXITED, "what may have run must not be started again"


async def test_secrets_are_on_no_command_line_and_in_no_file_once_the_job_runs(
    runner: LocalProcessRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "agents-own-key")
    plan = make_plan(
        tmp_path,
        ("sh", "-c", 'test ${#TOKEN} = 9 && test -z "$PREFECT_API_KEY" && echo seen; sleep 60'),
        env={"TOKEN": "hush-4711"},
    )
    await runner.prepare(plan)
    handle = await runner.create(plan)
    assert (plan.run_dir / "environment.json").stat().st_mode & 0o077 == 0
    await runner.start(handle)
    await until_log_has(plan, "seen")
    written = [*Path("/proc").glob("[0-9]*/cmdline"), *(file for file in plan.run_dir.rglob("*") if file.is_file())]
    text = b"".join(file.read_bytes() for file in written if file.exists())
    await runner.stop(handle, 0.1)
    assert b"hush-4711" not in text


async def test_values_are_merged_into_config_files_in_the_working_directory(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(
        tmp_path,
        ("cat", "conf.json"),
        {"deep/conf.json": '{"lr": 1, "net": {"depth": 2, "width": 3}}'},
        working_dir="deep",
        file_overrides={"conf.json": {"net": {"depth": 9}}},
    )
    await run(runner, plan)
    assert json.loads(plan.log_path.read_text()) == {"lr": 1, "net": {"depth": 9, "width": 3}}


async def test_values_for_a_config_file_that_is_not_there_are_refused(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path, ("true",), file_overrides={"conf.json": {"lr": 1}})
    with pytest.raises(JobCodeError, match=r"conf\.json"):
        await runner.create(plan)


@pytest.mark.parametrize("folder", ["..", "/etc", "nowhere", "file", "link"])
def test_working_directory_outside_of_the_code_is_refused(
    runner: LocalProcessRunner, tmp_path: Path, folder: str
) -> None:
    plan = make_plan(tmp_path, ("true",), {"file": ""}, working_dir=folder)
    assert plan.code_dir is not None
    (plan.code_dir / "link").symlink_to("/etc")
    with pytest.raises(SpecError, match="working directory"):
        runner.check(plan)


def test_image_on_local_process_is_refused(runner: LocalProcessRunner, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="local-container"):
        runner.check(make_plan(tmp_path, ("true",), image="busybox"))


async def test_options_reach_the_process(runner: LocalProcessRunner, tmp_path: Path) -> None:
    options = runner.check_options({"e": ["A=1 2"], "nice": "7"})
    plan = make_plan(tmp_path, ("sh", "-c", 'echo "$A" $(nice)'), options=options)
    await run(runner, plan)
    inherited = os.getpriority(os.PRIO_PROCESS, 0)  # The suite itself may run under `nice`.
    assert plan.log_path.read_text() == f"1 2 {min(inherited + 7, 19)}\n"


async def test_peak_memory_of_a_job_is_reported(runner: LocalProcessRunner, tmp_path: Path) -> None:
    end = await run(runner, make_plan(tmp_path, ("python", "-c", "x = bytearray(80_000_000)")))
    assert end.peak_memory_bytes is not None
    assert 80_000_000 < end.peak_memory_bytes < 400_000_000


def wheel(folder: Path, version: str) -> None:
    """Make an installable package `tiny`, so that no index is needed."""
    folder.mkdir(exist_ok=True)
    info = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def requirements(tmp_path: Path, line: str) -> dict[str, str]:
    wheel(tmp_path / "wheels", "1.0")
    wheel(tmp_path / "wheels", "2.0")
    return {"requirements.txt": f"--no-index\n--find-links {tmp_path / 'wheels'}\n{line}\n"}


async def test_job_runs_on_the_packages_it_asks_for(runner: LocalProcessRunner, tmp_path: Path) -> None:
    script = "import sys, tiny; print(tiny.VERSION, sys.prefix)"
    logs = []
    for version in ("1.0", "2.0", "1.0"):
        plan = make_plan(tmp_path, ("python", "-c", script), requirements(tmp_path, f"tiny=={version}"))
        assert (await run(runner, plan)).succeeded, plan.log_path.read_text()
        logs.append(plan.log_path.read_text().split())
    assert [version for version, _ in logs] == ["1.0", "2.0", "1.0"]
    assert logs[0] == logs[2], "the same requirements share an environment, whatever the code"
    assert logs[0][1] != logs[1][1]


async def test_second_launch_finds_the_environment_of_the_first(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("true",), requirements(tmp_path, "tiny==1.0"))
    first = await Environments(tmp_path / "env").ensure(plan.code_dir)
    made = (first.path / "pyvenv.cfg").stat()
    assert await Environments(tmp_path / "env").ensure(plan.code_dir) == first
    again = (first.path / "pyvenv.cfg").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


async def test_environment_wanted_by_many_at_once_is_made_once(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("true",), requirements(tmp_path, "tiny==1.0"))
    made = await asyncio.gather(*(Environments(tmp_path / "env").ensure(plan.code_dir) for _ in range(8)))
    assert len({one.path for one in made}) == 1
    assert (made[0].path / "bin" / "python").exists()


async def test_half_made_environment_is_made_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("true",), requirements(tmp_path, "tiny==1.0"))
    made = await Environments(tmp_path / "env").ensure(plan.code_dir)
    (made.path / ".ready").unlink()
    next(made.path.rglob("tiny.py")).unlink()
    again = await Environments(tmp_path / "env").ensure(plan.code_dir)
    assert next(again.path.rglob("tiny.py")).exists()


async def test_requirements_that_do_not_resolve_are_the_jobs_fault_with_the_reason(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path, ("true",), requirements(tmp_path, "tiny==9.9"))
    with pytest.raises(SourceError, match=r"tiny==9\.9"):
        await runner.prepare(plan)


async def test_python_that_this_machine_lacks_is_said_in_the_log(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("python", "-c", "print('ran')"), python_version="3.99")
    end: ExitStatus = await run(runner, plan)
    assert end.succeeded
    first, second = plan.log_path.read_text().splitlines()
    assert "Python 3.99" in first
    assert second == "ran"


# --- programs of the agent's own ---


async def test_program_of_the_agents_own_has_its_environment_which_is_in_no_file(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    shows = "import os; print(os.environ['KEY'][::-1], os.environ['LAUNCH_OUTPUT_DIR'], 'VIRTUAL_ENV' in os.environ)"
    plan = make_plan(tmp_path, [sys.executable, "-c", shows], is_agent_program=True, code_dir=None)
    inherited = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    runner.agent_environment = lambda: {**inherited, "KEY": "a-key-of-the-server"}
    handle = await started(runner, plan)
    end = await runner.watch(handle, plan)
    assert (end.exit_code, end.error) == (0, None)
    assert plan.log_path.read_text().split() == ["revres-eht-fo-yek-a", str(plan.output_dir), "False"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if b"a-key-of-the-server" in file.read_bytes()] == []
    assert not list((tmp_path / "home").glob("environments/*"))


async def test_program_of_the_agents_own_that_another_life_of_the_agent_starts_has_that_lifes_environment(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path, [sys.executable, "-c", "import os; print(os.environ['KEY'])"], is_agent_program=True)
    runner.agent_environment = lambda: {**os.environ, "KEY": "old"}
    handle = await runner.create(plan)
    next_life = LocalProcessRunner(tmp_path / "home")
    next_life.agent_environment = lambda: {**os.environ, "KEY": "new"}
    await next_life.start(handle)
    assert (await next_life.watch(handle, plan)).exit_code == 0
    assert plan.log_path.read_text() == "new\n"
    await next_life.aclose()
