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

from benchmarks.agent_load import Compared, Load
from benchmarks.chart import Axis, Point, line_chart
from benchmarks.page import replaced, table

_HERE: Final = Path(__file__).resolve().parent
MEASURED: Final = _HERE / "measured.json"
_DOCS: Final = _HERE.parent / "docs"
CHART: Final = _DOCS / "images" / "many-agents.svg"
PAGE: Final = _DOCS / "operations.md"
_COST: Final = "CPU of server and database for an item"
_RATE: Final = "rate"
_AGENTS: Final = "agents"
_CALLS: Final = "clients, the calls alone"
_WHO: Final = (_AGENTS, _CALLS)
_WHAT: Final = re.compile(rf"agents: ({_COST}|{_RATE}), PostgreSQL, (\d+) API, (\d+) ({'|'.join(_WHO)})")
_MS_STEP: Final = 50
#: Figures by the number of API processes, and by that of agents.
_Kept = Mapping[int, Mapping[int, float]]


def keep(machine: str, measured: Mapping[int, Collection[Compared]]) -> None:
    """Keep what was measured, by the number of API processes, in the place of what was kept before."""
    kept = [point for point in _points() if not point["what"].startswith("agents: ")]
    day = datetime.now(timezone.utc).date().isoformat()
    kept += [
        {"what": what, "figure": figure, "unit": unit, "machine": machine, "date": day}
        for processes, of in measured.items()
        for found in of
        for who, load in zip(_WHO, (found.load, found.floor), strict=True)
        for what, figure, unit in _told(processes, who, load)
    ]
    MEASURED.write_text(json.dumps(sorted(kept, key=lambda point: point["what"]), indent=1, ensure_ascii=False) + "\n")


def _told(processes: int, who: str, load: Load) -> Iterator[tuple[str, float, str]]:
    where = f"PostgreSQL, {processes} API, {load.agents} {who}"
    yield f"agents: {_RATE}, {where}", round(load.rate, 1), "items/s"
    yield f"agents: {_COST}, {where}", round(load.server_ms + load.database_ms), "ms"


def chart() -> str:
    """Return the chart of what is kept: the cost of an item, by the number of agents, and that of the calls alone."""
    lines: dict[str, list[Point]] = {
        f"{_server(number)}{end}": [(float(agents), cost) for agents, cost in sorted(of.items())]
        for who, end in ((_AGENTS, ""), (_CALLS, ", the calls alone"))
        for number, of in _kept(_COST, who).items()
    }
    most = max((cost for of in lines.values() for _, cost in of), default=0.0)
    y = Axis("ms of CPU an item, of server and database", (most // _MS_STEP + 1) * _MS_STEP)
    return line_chart("What an item costs with several agents", Axis("agents", 10), y, lines, lines)


def page(text: str) -> str:
    """Return the page with the table of what is kept made anew."""
    kept = {(kind, who): _kept(kind, who) for kind in (_RATE, _COST) for who in _WHO}
    rates = kept[_RATE, _AGENTS]
    heads = [head for number in rates for head in (f"{_server(number)}: items a second", "CPU time of an item")]
    rows = [
        [str(agents), *(_cell(kept, kind, number, agents) for number in rates for kind in (_RATE, _COST))]
        for agents in sorted({agents for of in rates.values() for agents in of})
    ]
    return replaced(text, "agents", table(["Agents", *heads], rows))


def _cell(kept: Mapping[tuple[str, str], _Kept], kind: str, processes: int, agents: int) -> str:
    ours, floor = (kept[kind, who].get(processes, {}).get(agents) for who in _WHO)
    return "" if ours is None or floor is None else f"{_told_as(kind, ours)} ({_told_as(kind, floor)})"


def _told_as(kind: str, figure: float) -> str:
    return f"{figure:.1f}" if kind == _RATE else f"{figure:.0f} ms"


def _server(processes: int) -> str:
    return "1 API process" if processes == 1 else f"{processes} API processes"


def draw() -> None:
    """Draw the chart of what is kept, and write the table."""
    CHART.write_text(chart())
    PAGE.write_text(page(PAGE.read_text()))


def _kept(kind: str, who: str) -> _Kept:
    """Return the figures of one kind that are kept: by the number of API processes, by that of agents."""
    figures: dict[int, dict[int, float]] = {}
    for point in _points():
        found = _WHAT.fullmatch(point["what"])
        if found and (found[1], found[4]) == (kind, who):
            figures.setdefault(int(found[2]), {})[int(found[3])] = point["figure"]
    return dict(sorted(figures.items()))


def _points() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads(MEASURED.read_text())
    return points


if __name__ == "__main__":
    draw()
