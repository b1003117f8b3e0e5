"""Moments as people read them."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import prefect_launch
from prefect_launch.core.units import local_minute, local_time, utc_minute, utc_time

NOON = datetime(2026, 5, 4, 12, 5, tzinfo=timezone.utc)


@pytest.fixture
def half_an_hour_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("half_an_hour_off")
def test_moment_is_told_with_its_zone() -> None:
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
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and words.search(node.value)
    ]
    assert set(told) <= owner
