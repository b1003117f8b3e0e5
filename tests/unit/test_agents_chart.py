"""Figures of several agents: how many items give one, and the table and the chart of what an item costs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import agents_chart
from benchmarks.agent_load import Compared, Load
from benchmarks.bench_throughput import PROCESS_SLOTS
from benchmarks.other_work import Pace
from benchmarks.place import Place


def test_new_figures_take_the_place_of_old_ones_and_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "measured.json"
    other = {"what": "depth: claim", "figure": 80, "unit": "ms", "machine": "m", "date": "2026-11-28"}
    kept.write_text(json.dumps([other]))
    monkeypatch.setattr(agents_chart, "MEASURED", kept)
    for cost in (300.0, 90.0):
        floor = Load(8, Pace(12.0, 1.2), 60.0, 20.0)
        agents_chart.keep("m", {1: [Compared(Load(8, Pace(10.0, 1.9), cost, 30.0), floor)]})
    figures = {point["what"]: point["figure"] for point in json.loads(kept.read_text())}
    assert figures == {
        "depth: claim": 80,
        "agents: rate, PostgreSQL, 1 API, 8 clients, the calls alone": 12.0,
        "agents: rate, PostgreSQL, 1 API, 8 agents": 10.0,
        "agents: CPU of server and database for an item, PostgreSQL, 1 API, 8 clients, the calls alone": 80,
        "agents: CPU of server and database for an item, PostgreSQL, 1 API, 8 agents": 120,
    }
    chart = agents_chart.chart()
    assert ">1 API process<" in chart
    assert ">1 API process, the calls alone<" in chart
    assert "| 8 | 10.0 (12.0) | 120 ms (80 ms) |" in agents_chart.page("")


def test_quick_run_measures_more_than_is_in_work_at_a_time(tmp_path: Path) -> None:
    place = Place(tmp_path, ExitStack(), quick=True, deepest=10)

    for slots in (4, PROCESS_SLOTS):  # The floor of containers takes half, two at a time.
        assert place.at_a_time(60, slots) > max(slots, 2 * 2 + 1)


def test_table_and_chart_are_what_the_command_makes_of_what_is_kept() -> None:
    page = agents_chart.PAGE.read_text()

    assert agents_chart.page(page) == page
    assert agents_chart.chart() == agents_chart.CHART.read_text()
