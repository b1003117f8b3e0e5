"""Figures of several agents, kept in `benchmarks/measured.json`, and the chart of what an item costs then.

`python -m benchmarks agents-postgres` keeps what it measures and draws. `python -m benchmarks.agents_chart` only draws.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from benchmarks.agent_load import Load
from benchmarks.chart import Axis, Point, line_chart

_HERE: Final = Path(__file__).resolve().parent
MEASURED: Final = _HERE / "measured.json"
CHART: Final = _HERE.parent / "docs" / "images" / "many-agents.svg"
_COST: Final = "CPU of server and database for an item"
_RATE: Final = "rate"
_WHAT: Final = re.compile(rf"agents: ({_COST}|{_RATE}), PostgreSQL, (\d+) API, (\d+) agents")
_MS_STEP: Final = 50


def keep(machine: str, loads: Mapping[int, Collection[Load]]) -> None:
    """Keep what was measured, by the number of API processes, in the place of what was kept before."""
    kept = [point for point in _points() if not _WHAT.fullmatch(point["what"])]
    day = datetime.now(timezone.utc).date().isoformat()
    kept += [
        {"what": what, "figure": figure, "unit": unit, "machine": machine, "date": day}
        for processes, of in loads.items()
        for load in of
        for what, figure, unit in _told(processes, load)
    ]
    MEASURED.write_text(json.dumps(sorted(kept, key=lambda point: point["what"]), indent=1, ensure_ascii=False) + "\n")


def _told(processes: int, load: Load) -> Iterator[tuple[str, float, str]]:
    where = f"PostgreSQL, {processes} API, {load.agents} agents"
    yield f"agents: {_RATE}, {where}", round(load.rate, 1), "items/s"
    yield f"agents: {_COST}, {where}", round(load.server_ms + load.database_ms), "ms"


def chart() -> str:
    """Return the chart of what is kept: the cost of an item, by the number of agents; 0: the calls alone."""
    lines: dict[str, list[Point]] = {}
    for point in _points():
        found = _WHAT.fullmatch(point["what"])
        if found and found[1] == _COST:
            lines.setdefault(f"{found[2]} API process(es)", []).append((float(found[3]), point["figure"]))
    for line in lines.values():
        line.sort()
    most = max((cost for line in lines.values() for _, cost in line), default=0.0)
    y = Axis("ms of CPU an item, of server and database", (most // _MS_STEP + 1) * _MS_STEP)
    return line_chart(
        "What an item costs with several agents (0: the calls alone)", Axis("agents", 10), y, lines, lines
    )


def draw() -> None:
    """Draw the chart of what is kept."""
    CHART.write_text(chart())


def _points() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads(MEASURED.read_text())
    return points


if __name__ == "__main__":
    draw()
