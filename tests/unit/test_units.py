"""Durations and points in time, as people write and read them."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import prefect_launch
from prefect_launch.core.units import (
    counted,
    format_duration,
    local_minute,
    local_time,
    parse_duration,
    utc_minute,
    utc_time,
)
from prefect_launch.errors import SpecError
from prefect_launch.spec.launch_spec import parse_spec


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *((600, 600), (0.5, 0.5), ("600", 600), ("90s", 90), ("45 min", 2700), ("2h", 7200), ("2 Hours", 7200)),
        *(("1h30m", 5400), ("1h 30 min", 5400), ("1.5h", 5400), ("2d", 172_800), ("1 day 1s", 86_401)),
    ],
)
def test_duration_is_read_in_every_usual_spelling(written: Any, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 nodes"), (1, "1 node"), (1.0, "1 node"), (1.5, "1.5 nodes"), (1200, "1,200 nodes")]
)
def test_one_thing_is_told_in_the_singular(count: float, said: str) -> None:
    assert counted(count, "node") == said


@pytest.mark.parametrize("written", [None, ""])
def test_no_duration_is_no_limit(written: Any) -> None:
    assert parse_duration(written) is None


@pytest.mark.parametrize(
    "written", [0, -1, True, float("nan"), float("inf"), "0", "-1", "abc", "2x", "h", "1h30", "1,5h", [], {}]
)
def test_what_is_no_duration_is_refused_with_the_ways_to_write_one(written: Any) -> None:
    with pytest.raises(SpecError, match=r"Invalid duration .* '1h30m'"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (2, "2 s"), (60, "1 min"), (90, "1 min 30 s"), (5400, "1 h 30 min"), (172_800, "2 d")],
)
def test_duration_is_written_exactly(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_spec_keeps_its_time_limit_in_seconds() -> None:
    spec = parse_spec({"job": "digits", "timeout": "2h"})
    assert spec.dump() == {"job": "digits", "timeout": 7200.0}
    assert parse_spec(spec.dump()) == spec


def test_spec_with_a_bad_time_limit_is_refused() -> None:
    with pytest.raises(SpecError, match="Invalid duration 'soon'"):
        parse_spec({"job": "digits", "timeout": "soon"})


NOON = datetime(2026, 5, 4, 12, 5, tzinfo=timezone.utc)


@pytest.fixture
def half_an_hour_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("half_an_hour_off")
def test_moment_is_written_with_its_zone() -> None:
    assert utc_time(NOON) == "2026-05-04 12:05:00 UTC"
    assert utc_time(NOON.astimezone(timezone(timedelta(hours=2)))) == "2026-05-04 12:05:00 UTC"
    assert local_time(NOON) == "2026-05-04 17:35:00 +05:30"
    assert utc_minute(NOON) == "2026-05-04 12:05 UTC"
    assert local_minute(NOON) == "2026-05-04 17:35 +05:30"
    assert re.fullmatch(r"\d\d:\d\d \+05:30", local_minute(datetime.now(timezone.utc)))


def test_machine_in_utc_says_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert local_time(NOON) == "2026-05-04 12:05:00 UTC"
    assert local_minute(NOON) == "2026-05-04 12:05 UTC"
    monkeypatch.undo()
    time.tzset()


def test_no_module_words_a_moment_without_its_zone() -> None:
    package = Path(prefect_launch.__file__).parent
    words = re.compile(r"%H:%M(?!.*%z)")
    owner = {"core/units.py", "runners/docker/logs.py", "testing/engine.py"}  # The last two: an engine's times.
    told = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if words.search(path.read_text())
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and words.search(node.value)
    ]
    assert set(told) <= owner
