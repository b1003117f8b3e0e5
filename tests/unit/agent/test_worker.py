"""The Prefect worker of type `launch`: its agent's name, what it refuses and how it says so, and its health."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent.entry.worker import LaunchWorker
from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.settings import agent_config

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"work_queues": ["high"]}, "takes items of all priorities, not only of the work queues high. Leave --work-queue"),
    ({"base_job_template": {}}, "Leave --base-job-template out, and make the queue with 'prefect-launch queue create'"),
    ({}, "No Prefect server is known. Start one"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
async def test_command_line_says_what_is_wrong_without_a_traceback(options: dict[str, Any], words: str) -> None:
    told: list[str] = []
    with pytest.raises(SystemExit) as end:
        await LaunchWorker("gpu", **options).start(run_once=True, printer=told.append)
    assert end.value.code == 1
    assert told[-1].startswith("Error: ")
    assert words in told[-1]


async def test_error_over_a_wrong_setting_of_the_machine_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_config, "DEFAULT_CONFIG_FILE", str(tmp_path / "agent.yaml"))
    (tmp_path / "agent.yaml").write_text("max_job: 3\n")
    told: list[str] = []
    with pytest.raises(SystemExit):
        await LaunchWorker("gpu").start(printer=told.append)
    assert "Unknown agent setting 'max_job'. Did you mean 'max_jobs'?" in told[-1]


async def test_program_that_starts_a_worker_gets_the_error_itself() -> None:
    with pytest.raises(AgentConfigError, match="takes items of all priorities"):
        await LaunchWorker("gpu", work_queues=["high"]).start()


async def test_worker_without_a_name_has_the_name_of_every_agent_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAUNCH_AGENT_NAME", "evening")
    for given, name in ({}, "evening"), ({"name": "box 1"}, "box-1"):
        worker = LaunchWorker("gpu", **given)
        with pytest.raises(LaunchError):
            await worker.start(run_once=True)
        assert worker.name == name


async def test_health_check_of_a_worker_that_works_does_not_call_it_dead() -> None:
    worker = LaunchWorker("gpu")
    worker._last_polled_time = datetime.now(timezone.utc) - timedelta(days=1)
    assert not worker.is_worker_still_polling(10)
    async with worker._showing_life():
        await asyncio.sleep(0)
        assert worker.is_worker_still_polling(10)


async def test_health_check_that_fails_is_reported_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker, shown = LaunchWorker("gpu"), asyncio.Event()

    class Clock:
        calls = 0

        @classmethod
        def now(cls, zone: timezone) -> datetime:
            cls.calls += 1
            if cls.calls == 1:
                raise ValueError("a fault in the program")
            shown.set()
            return datetime.now(zone)

    monkeypatch.setattr("prefect_launch.core.supervision.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("prefect_launch.agent.entry.worker.datetime", Clock)
    async with worker._showing_life():
        await asyncio.wait_for(shown.wait(), 60)
    assert "task-failed health check (1 within 300 s): ValueError" in caplog.text
