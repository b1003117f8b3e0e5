"""Figures of several agents, kept in `benchmarks/measured.json`, and the table and chart of what an item costs then.

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
from benchmarks.page import replaced, table

_HERE: Final = Path(__file__).resolve().parent
MEASURED: Final = _HERE / "measured.json"
_DOCS: Final = _HERE.parent / "docs"
CHART: Final = _DOCS / "images" / "many-agents.svg"
PAGE: Final = _DOCS / "operations.md"
_COST: Final = "CPU of server and database for an item"
_RATE: Final = "rate"
_WHAT: Final = re.compile(rf"agents: ({_COST}|{_RATE}), PostgreSQL, (\d+) API, (\d+) agents")
_MS_STEP: Final = 50
#: Figures by the number of API processes, and by that of agents.
_Kept = Mapping[int, Mapping[int, float]]


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
    costs = _kept(_COST)
    lines: dict[str, list[Point]] = {
        _server(number): [(float(agents), cost) for agents, cost in sorted(of.items())] for number, of in costs.items()
    }
    most = max((cost for of in costs.values() for cost in of.values()), default=0.0)
    y = Axis("ms of CPU an item, of server and database", (most // _MS_STEP + 1) * _MS_STEP)
    return line_chart(
        "What an item costs with several agents (0: the calls alone)", Axis("agents", 10), y, lines, lines
    )


def page(text: str) -> str:
    """Return the page with the table of what is kept made anew."""
    rates, costs = _kept(_RATE), _kept(_COST)
    heads = [head for number in rates for head in (f"{_server(number)}: items a second", "CPU time of an item")]
    rows = [
        [str(agents) if agents else "none: the calls alone", *_cells(agents, rates, costs)]
        for agents in sorted({agents for of in rates.values() for agents in of})
    ]
    return replaced(text, "agents", table(["Agents", *heads], rows))


def _cells(agents: int, rates: _Kept, costs: _Kept) -> Iterator[str]:
    for number, of in rates.items():
        yield f"{of[agents]:.1f}" if agents in of else ""
        yield f"{costs[number][agents]:.0f} ms" if agents in of else ""


def _server(processes: int) -> str:
    return "1 API process" if processes == 1 else f"{processes} API processes"


def draw() -> None:
    """Draw the chart of what is kept, and write the table."""
    CHART.write_text(chart())
    PAGE.write_text(page(PAGE.read_text()))


def _kept(kind: str) -> _Kept:
    """Return the figures of one kind that are kept: by the number of API processes, by that of agents."""
    figures: dict[int, dict[int, float]] = {}
    for point in _points():
        found = _WHAT.fullmatch(point["what"])
        if found and found[1] == kind:
            figures.setdefault(int(found[2]), {})[int(found[3])] = point["figure"]
    return dict(sorted(figures.items()))


def _points() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads(MEASURED.read_text())
    return points


if __name__ == "__main__":
    draw()
