"""The end of `agent start`: by a signal that comes while it still loads, and by something in it that does not work."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.fixture
def signals_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[signal.Signals]]:
    """Signals that this process gets in the moment in which an agent's config file is read."""
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path))
    (tmp_path / "agent.yaml").write_text("poll_seconds: 0.1\n")
    signals: list[signal.Signals] = []
    read = yaml.safe_load

    def read_under_signals(text: str) -> Any:
        while signals:
            os.kill(os.getpid(), signals.pop(0))
        return read(text)

    monkeypatch.setattr(yaml, "safe_load", read_under_signals)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield signals
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_that_comes_while_the_agent_still_loads_drains_it(
    tmp_path: Path, signals_at_load: list[signal.Signals], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    (waiting,) = asyncio.run(bench.add())
    signals_at_load[:] = [number]
    with use_api(bench.api):
        code = run(["agent", "start", "-q", QUEUE, "--name", "box", "-c", str(tmp_path / "agent.yaml")])
    told = capsys.readouterr().err
    assert code == 128 + number
    assert "Draining: the agent takes no more items; it adopts its unfinished items first." in told
    assert "agent box left" in told  # Its loop has run: it has looked for what its last life left.
    assert asyncio.run(bench.states(waiting)) == ["Queued"]


def test_second_signal_while_the_agent_still_loads_ends_it_at_once(
    tmp_path: Path, signals_at_load: list[signal.Signals], capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    signals_at_load[:] = [signal.SIGTERM, signal.SIGTERM]
    with use_api(bench.api), pytest.raises(SystemExit) as ended:
        run(["agent", "start", "-q", QUEUE, "--name", "box", "-c", str(tmp_path / "agent.yaml")])
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.strip() == (
        "Leaving before the agent has started; its next start adopts its unfinished items, if any."
    )
    assert not bench.server.calls["read_pool"]
