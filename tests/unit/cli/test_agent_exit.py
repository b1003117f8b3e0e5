"""The exit code of `agent start` when the agent leaves because something in it does not work."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefect_launch.cli.main import run
from prefect_launch.client.api import use_api
from prefect_launch.core import supervision
from tests.support.bench import QUEUE, Bench


def test_agent_without_a_working_heartbeat_ends_with_1_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path))
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.01)
    bench = Bench(tmp_path)

    async def fails(method: str) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "heartbeat":
            raise ValueError("a fault in the program")

    bench.server.before_call = fails
    with use_api(bench.api):
        code = run(["agent", "start", "-q", QUEUE, "--name", "box"])
    told = capsys.readouterr().err
    assert code == 1
    assert "Error: The background task 'heartbeat' failed 5 times within 300 s" in told
    assert told.count("Traceback") == supervision.MOST_FAILURES
    assert "agent box left" in told
