"""The page that says why a run did not complete."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from prefect_launch.agent.item.failure_report import Facts, build_report, read_last_lines
from prefect_launch.agent.item.outcome import ADVICE, Category, diagnose, outcome_of_error, outcome_of_exit
from prefect_launch.core.states import LAST_LINE, ItemState, StateType
from prefect_launch.errors import AgentConfigError, ImagePullError, InfrastructureError, QueueError, SpecError
from prefect_launch.runners.base import ExitStatus, Phase, RunPlan
from prefect_launch.testing import Script
from tests.support.bench import Bench

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("end", "lines", "category"),
    [
        (ExitStatus(exit_code=3), [], Category.JOB),
        (ExitStatus(exit_code=137, signal="SIGKILL", oom_killed=True), [], Category.OUT_OF_MEMORY),
        (ExitStatus(exit_code=137, signal="SIGKILL"), [], Category.KILLED),
        (ExitStatus(exit_code=139, signal="SIGSEGV"), [], Category.CRASHED_CODE),
        (ExitStatus(exit_code=127), ["sh: trian: not found"], Category.NO_PROGRAM),
        (ExitStatus(exit_code=127, error="no such program"), [], Category.NO_PROGRAM),
        (ExitStatus(exit_code=None, error="its supervisor was lost"), [], Category.LOST),
        (ExitStatus(exit_code=143, signal="SIGTERM", preempted=True), [], Category.PREEMPTED),
        (ExitStatus(exit_code=143, signal="SIGTERM", stopped=True), [], Category.CANCELLED),
        (ExitStatus(exit_code=1), ["ModuleNotFoundError: No module named 'torch'"], Category.MISSING_MODULE),
        (ExitStatus(exit_code=1), ["RuntimeError: CUDA out of memory. Tried to allocate"], Category.GPU_MEMORY),
        (ExitStatus(exit_code=1), ["OSError: [Errno 28] No space left on device"], Category.DISK_FULL),
        (ExitStatus(exit_code=1), ["MemoryError"], Category.OUT_OF_MEMORY),
        (ExitStatus(exit_code=1), ["ImportError: handled", *["step"] * 30], Category.JOB),
    ],
)
def test_end_of_a_process_has_a_category(end: ExitStatus, lines: list[str], category: Category) -> None:
    assert diagnose(outcome_of_exit(end), end, None, lines) is category


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (ImagePullError("unauthorized"), Category.IMAGE),
        (SpecError("x"), Category.SPEC),
        (QueueError("x"), Category.QUEUE),
        (InfrastructureError("x"), Category.MACHINE),
        (AgentConfigError("x"), Category.MACHINE),
        (OSError("disk"), Category.MACHINE),
        (ZeroDivisionError("x"), Category.INTERNAL),
    ],
)
def test_error_before_the_start_has_a_category(error: Exception, category: Category) -> None:
    assert diagnose(outcome_of_error(error, Phase.AGENT), None, error, []) is category


def test_every_category_has_a_summary_and_a_next_step() -> None:
    assert set(ADVICE) == set(Category)
    assert all(advice.summary and advice.next_step for advice in ADVICE.values())


async def test_page_shows_all_that_is_known(bench: Bench, tmp_path: Path) -> None:
    (item,) = await bench.add()
    end = ExitStatus(
        exit_code=137,
        signal="SIGKILL",
        oom_killed=True,
        started_at=START,
        ended_at=START + timedelta(seconds=61.5),
        peak_memory_bytes=512 * 1024 * 1024,
    )
    plan = RunPlan(
        item_id=str(item.id), run_id="r", run_dir=tmp_path, command=("python", "train.py"), args=("a|b",), image="m:1"
    )
    facts = Facts(agent="box", queue="gpu", attempt=2, plan=plan, end=end, image="m@sha256:1", last_lines=("one",))
    page = build_report(item, outcome_of_exit(end), facts, comes_back="It comes back.").markdown()
    for words in (
        "`137`",
        "SIGKILL",
        "61.5 s",
        "512 MiB",
        "m@sha256:1",
        "box",
        "out of memory",
        "It comes back.",
        "one",
    ):
        assert words in page
    assert "python train.py 'a\\|b'" in page


async def test_log_with_fences_and_markup_cannot_break_the_page(bench: Bench) -> None:
    (item,) = await bench.add()
    end = ExitStatus(exit_code=1)
    page = build_report(item, outcome_of_exit(end), Facts(end=end, last_lines=("````", "# no title"))).markdown()
    assert "`````text\n````\n# no title\n`````" in page


async def test_last_lines_are_without_colours_and_progress_and_long_ones_are_cut(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m\n10%\r50%\r100%\r\n" + b"x" * 2000 + b"\nbad \xff byte\n\n")
    lines = await read_last_lines(log)
    assert lines[:2] == ("red", "100%")
    assert len(lines[2]) < 600
    assert lines[3] == "bad \ufffd byte"
    assert len(lines) == 4


async def test_last_lines_are_at_most_fifty_and_none_without_a_log(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert await read_last_lines(log) == ()
    log.write_text("".join(f"{number}\n" for number in range(100)))
    lines = await read_last_lines(log)
    assert (len(lines), lines[-1]) == (50, "99")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(exit_code=3, log=(b"Traceback\n", b"ModuleNotFoundError: No module named 'x'\n")), "requirements.txt"),
        (Script(oom_killed=True), "Raise its memory"),
        (Script(prepare_error=ImagePullError("denied by the registry")), "enied by the registry"),
        (Script(create_error=SpecError("no such option")), "No such option"),
    ],
)
async def test_item_that_does_not_complete_gets_its_page(bench: Bench, script: Script, words: str) -> None:
    bench.plays(script)
    (item,) = await bench.add(run_id="Mine_1")
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type in (StateType.FAILED, StateType.CRASHED)
    (artifact,) = await bench.server.list_artifacts(item.id)
    assert (artifact["key"], artifact["type"]) == ("failure-report-mine-1", "markdown")
    assert words in artifact["data"]


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        (Script(exit_code=3, log=(b"Traceback\n", b"KeyError: 'lr'\n")), "KeyError: 'lr'"),
        (Script(exit_code=3), None),
        (Script(oom_killed=True, log=(b"step 7\n",)), None),
    ],
)
async def test_state_keeps_the_last_line_of_a_job_that_is_itself_at_fault(
    bench: Bench, script: Script, kept: str | None
) -> None:
    bench.plays(script)
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    state = (await bench.read(item.id)).state
    assert state is not None
    assert state.data.get(LAST_LINE) == kept


async def test_item_that_completes_gets_none(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    assert await bench.server.list_artifacts(item.id) == []


async def test_page_does_not_tell_where_on_its_machine_an_agent_keeps_its_things(bench: Bench) -> None:
    (item,) = await bench.add()
    plan = RunPlan(item_id=str(item.id), run_id="r", run_dir=bench.folder / "runs" / str(item.id) / "1")
    error = InfrastructureError(f"cannot write {plan.output_dir}")
    page = build_report(
        item, outcome_of_error(error, Phase.AGENT), Facts(plan=plan, home=bench.folder, error=error)
    ).markdown()
    assert str(bench.folder) not in page
    assert f"<home>/runs/{item.id}/1" in page


async def test_state_does_not_tell_it_either_but_the_agents_log_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "prefect_launch.agent")
    (item,) = await bench.add()
    agent = bench.agent()
    in_the_way = agent.config.home / "runs" / str(item.id)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no folder")
    await agent.loop(until_empty=True)

    ended = await bench.read(item.id)
    assert ended.state_type is StateType.CRASHED
    assert f"<home>/runs/{item.id}" in ended.message
    assert str(agent.config.home) not in ended.message
    assert any(str(in_the_way) in line for line in caplog.messages)


async def test_failure_of_the_agent_itself_does_not_tell_it_either(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)
    async with bench.agent().connected() as agent:
        await agent.finish_thread_id(
            str(item.id), OSError(f"{agent.config.home}/x is odd, {agent.config.home}-2 is not")
        )
        told = (await bench.read(item.id)).message
    assert told == f"[agent] The agent failed over it: OSError: <home>/x is odd, {agent.config.home}-2 is not"


async def test_item_that_the_agent_ends_without_running_it_gets_its_page_too(bench: Bench) -> None:
    first, second = await bench.add(2)
    for item in (first, second):
        await bench.move(item, ItemState.CLAIMED)
    async with bench.agent().connected() as agent:
        await agent.fail_run_queue_item(str(first.id), "its sweep has ended", "agent")
        await agent.finish_thread_id(str(second.id), ZeroDivisionError("ours"))
    (page,) = await bench.server.list_artifacts(first.id)
    assert "its sweep has ended" in page["data"]
    (page,) = await bench.server.list_artifacts(second.id)
    assert ADVICE[Category.INTERNAL].summary in page["data"]
    assert "ZeroDivisionError" in page["data"]
