"""Options of `agent start` that hands know from W&B's `launch-agent`."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.cli.main import run
from prefect_launch.client.api import use_api
from prefect_launch.testing import InMemoryApi
from tests.support.bench import QUEUE, Bench


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path))


def test_agents_lines_are_appended_to_the_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.log").write_text("before\n")
    with use_api(Bench(tmp_path).api):
        code = run(["agent", "start", "-q", QUEUE, "--name", "box", "-l", str(tmp_path / "agent.log"), "--until-empty"])

    first, *lines = (tmp_path / "agent.log").read_text().splitlines()
    assert (code, first) == (0, "before")
    assert lines
    assert "agent box left" in lines[-1]
    assert "agent box" not in capsys.readouterr().err


def test_log_file_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with use_api(InMemoryApi()):
        assert run(["agent", "start", "-q", "gpu", "-l", str(tmp_path / "no" / "agent.log")]) == 1

    assert "no/agent.log' cannot be written: No such file or directory" in capsys.readouterr().err


def test_entity_of_the_agent_is_checked_as_that_of_its_config(capsys: pytest.CaptureFixture[str]) -> None:
    with use_api(InMemoryApi()):
        assert run(["agent", "start", "-q", "gpu", "-e", "a b"]) == 1

    assert "'a b'" in capsys.readouterr().err
