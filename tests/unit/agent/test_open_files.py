"""The limit of open files, which an agent of hundreds of jobs reaches: raised, and told when it cannot be."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent.open_files import open_files_missing, raise_open_files_limit
from prefect_launch.settings.agent_config import AgentConfig, parse_agent_config


def config(folder: Path, max_jobs: int) -> AgentConfig:
    return parse_agent_config({"queues": ["q"], "home": folder, "max_jobs": max_jobs})


class Limits:
    """The limits of a process."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        self.now = limits


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> Limits:
    limits = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    return limits


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "is_told"),
    [
        (256, 4_096, 4_096, False),
        (1_024, 524_288, 65_536, False),
        (256, 1_024, 1_024, True),
        (100_000, 524_288, 100_000, False),
        (1_024, resource.RLIM_INFINITY, 65_536, False),
    ],
)
def test_agent_raises_its_limit_of_open_files_and_says_when_that_is_too_low(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, soft: int, hard: int, raised: int, is_told: bool
) -> None:
    limits = limited(monkeypatch, soft, hard)
    raise_open_files_limit(config(tmp_path, 500))
    assert limits.now == (raised, hard)
    assert ("needs 2256 for 500 jobs at a time" in caplog.text) is is_told


@pytest.mark.parametrize(("max_jobs", "is_missing"), [(1, False), (500, True), (-1, True)])
def test_check_finds_a_limit_that_is_too_low_for_so_many_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_jobs: int, is_missing: bool
) -> None:
    limited(monkeypatch, 256, 1_024)
    assert ("LimitNOFILE" in open_files_missing(config(tmp_path, max_jobs))) is is_missing
