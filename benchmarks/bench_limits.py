"""Where a Prefect server ends: computed from what each thing costs it, written into `docs/limits.md`, with its error.

`benchmarks/costs.json` has what was measured (`python -m benchmarks costs`); `benchmarks.simulation` computes what
follows. Two numbers of each database are fitted, both at the point with the least load: what passes of an item besides
CPU time, and what an agent needs to start a process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.bench_costs import AGENTS, POSTGRES, SQLITE, Arrivals, Backlog, Costs, read_costs
from benchmarks.chart import Axis, line_chart
from benchmarks.figures import Figure, percentile
from benchmarks.page import replaced, table
from benchmarks.place import Place
from benchmarks.simulation import Cost, SetUp, backlog_rate, dispatch_waits

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PAGE: Final = DOCS / "limits.md"
CHART: Final = DOCS / "images" / "limits-dispatch.svg"
#: Units of what was measured.
RATE: Final = "items/s"
WAIT: Final = "ms"
#: Of the machine on which the costs were measured.
_CORES: Final = 2
#: Of the time of the API processes: the rest is left for items.
_SHARE: Final = 0.5
#: Items of a long queue.
_MANY: Final = 400
#: Within which nine of ten items are to start.
_PATIENCE_MS: Final = 1000.0
#: Rates of the curves, as shares of what CPU time alone would let through.
_RATES: Final = (0.1, 0.3, 0.5, 0.65, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class Check:
    """What was measured, and what the model computes for it.

    Attributes:
        what: in words.
        measured: in the unit.
        computed: likewise.
        unit: of both.
    """

    what: str
    measured: float
    computed: float
    unit: str

    @property
    def error(self) -> float:
        """By how much the model is off, as a share of what was measured."""
        return self.computed / self.measured - 1


def measure(place: Place) -> list[Figure]:
    """Compute everything anew from what is kept; write the page and its chart, unless it is to be quick."""
    limits = Limits(read_costs())
    if not place.quick:
        PAGE.write_text(limits.page(PAGE.read_text()))
        CHART.write_text(limits.chart())
    return [Figure(check.what, check.computed, check.unit, check.measured, "measured") for check in limits.checks]


# --- the model ---


@dataclass(frozen=True)
class Model:
    """What follows from the costs of one database.

    Attributes:
        costs: with one API process.
    """

    costs: Costs

    @cached_property
    def _pause_ms(self) -> float:
        """What passes of an item besides CPU time: what is left when one comes after the other."""
        alone = self.costs.calls[0]
        return max(0.0, 1000 / alone.rate - alone.server_ms - alone.database_ms - alone.client_ms)

    @cached_property
    def _start_ms(self) -> float:
        """What an agent needs to start a process: what the wait at the lowest rate has besides."""
        least = self.costs.arrivals[0]
        return max(0.0, least.median_ms - median(self._waits_ms(SetUp(cores=_CORES), least)))

    def backlog_rate(self, set_up: SetUp, backlog: Backlog) -> float:
        """Return the rate at which items end that all wait."""
        cost = self._item(backlog)
        return backlog_rate(set_up, cost, clients=backlog.clients, slots=backlog.slots, items=backlog.items)

    def waits_ms(self, set_up: SetUp, come: Arrivals) -> list[float]:
        """Return how long items wait for their start that come to agents with free slots, ascending."""
        return [wait + self._start_ms for wait in self._waits_ms(set_up, come)]

    def _waits_ms(self, set_up: SetUp, come: Arrivals) -> list[float]:
        alone = self.costs.agents[0]
        others = (
            come.server_ms - self.costs.add_ms - alone.server_ms,
            come.database_ms - alone.database_ms,
            come.client_ms - alone.client_ms,
        )
        waits = dispatch_waits(
            set_up,
            self._item(alone),
            add=_cost(self.costs.add_ms),
            others=_cost(*(max(0.0, ms) for ms in others)),
            rate=come.rate,
            agents=AGENTS,
            items=come.items,
        )
        return [wait * 1000 for wait in waits]

    def _item(self, backlog: Backlog) -> Cost:
        return _cost(backlog.server_ms, backlog.database_ms, backlog.client_ms, self._pause_ms)


def _cost(*milliseconds: float) -> Cost:
    return Cost(*(ms / 1000 for ms in milliseconds))


def checks(costs: Mapping[str, Costs]) -> list[Check]:
    """Return each measured point beside what the model computes for the machine that it was measured on."""
    found = []
    for name, one in costs.items():
        model = Model(one if one.agents else costs[POSTGRES])
        set_up = SetUp(one.processes, _CORES)
        for backlog in (*one.calls, *one.agents):
            who = "the calls alone" if backlog in one.calls else f"{backlog.clients} agents"
            what = f"{name}: {who}, {backlog.clients * backlog.slots} at a time"
            found.append(Check(what, backlog.rate, model.backlog_rate(set_up, backlog), RATE))
        for arrivals in one.arrivals:
            what = f"{name}: {arrivals.rate:.1f} items/s come, median until the start"
            found.append(Check(what, arrivals.median_ms, median(model.waits_ms(set_up, arrivals)), WAIT))
    return found


# --- the page ---


class Limits:
    """The page's parts that are computed.

    Args:
        costs: what was measured, by the name of the set-up.
    """

    def __init__(self, costs: Mapping[str, Costs]) -> None:
        self._costs = costs
        sqlite, postgres = Model(costs[SQLITE]), Model(costs[POSTGRES])
        self._servers = {
            SQLITE: (sqlite, 1),
            POSTGRES: (postgres, 1),
            "PostgreSQL, 2 API processes": (postgres, 2),
            "PostgreSQL, 4 API processes": (postgres, 4),
        }

    @cached_property
    def checks(self) -> list[Check]:
        """Each measured point beside what the model computes for it."""
        return checks(self._costs)

    def error(self, unit: str) -> float:
        """Return by how much the model is off at most, of what is measured in this unit."""
        return max(abs(check.error) for check in self.checks if check.unit == unit)

    @cached_property
    def _curves(self) -> dict[str, list[tuple[float, list[float]]]]:
        """By server: rates at which items come, and how long they wait then."""
        found = {}
        for name, (model, processes) in self._servers.items():
            come = model.costs.arrivals[-1]
            rates = [share * 1000 * processes / come.server_ms for share in _RATES]
            points = [replace(come, rate=rate, items=_MANY) for rate in rates]
            found[name] = [(point.rate, model.waits_ms(SetUp(processes), point)) for point in points]
        return found

    def page(self, text: str) -> str:
        """Return the page with its tables made anew, each between a mark and its end."""
        for name, part in (("sizes", self._sizes()), ("costs", self._spent()), ("checks", self._checked())):
            text = replaced(text, name, part)
        return text

    def chart(self) -> str:
        """Return the chart of the waits."""
        lines = {name: [(rate, median(waits) / 1000) for rate, waits in curve] for name, curve in self._curves.items()}
        dots = {
            name: [(one.rate, one.median_ms / 1000) for one in costs.arrivals]
            for name, costs in self._costs.items()
            if costs.arrivals
        }
        most = max(rate for line in lines.values() for rate, _ in line)
        x = Axis("items a second", 5.0 * math.ceil(most / 5))
        return line_chart("Wait until an item's start, median", x, Axis("seconds", 2.0), lines, dots)

    def _sizes(self) -> str:
        rows = []
        for name, (model, processes) in self._servers.items():
            costs, backlog = model.costs, model.costs.agents[0]
            agents = replace(backlog, clients=max(AGENTS, 2 * processes), items=_MANY)
            rate = model.backlog_rate(SetUp(processes), agents)
            left = processes * (1000 * _SHARE - costs.rest_ms)
            each = (costs.idle_agent_ms, costs.quiet_job_ms, costs.chatty_job_ms)
            soon = f"{_rate_within(self._curves[name]):.1f} a second"
            rows.append((name, f"{rate:.0f} a second", soon, *(_rounded(left / ms) for ms in each)))
        heads = ("Server", "Items that wait already", "Items one by one", "Idle agents", "Quiet jobs", "Chatty jobs")
        return table(heads, rows)

    def _spent(self) -> str:
        on = [self._costs[name] for name in (SQLITE, POSTGRES)]
        rows = [
            ("An item that waits already", *(f"{one.agents[0].server_ms:.0f}" for one in on)),
            (
                f"An item that comes to {AGENTS} agents with free slots, its making included",
                *(f"{one.arrivals[0].server_ms:.0f}" for one in on),
            ),
            ("The making of an item", *(f"{one.add_ms:.0f}" for one in on)),
            ("An idle agent, each second", *(f"{one.idle_agent_ms:.1f}" for one in on)),
            ("A running job that prints nothing, each second", *(f"{one.quiet_job_ms:.2f}" for one in on)),
            ("A running job that prints five lines a second, each second", *(f"{one.chatty_job_ms:.1f}" for one in on)),
            ("Each API process at rest, each second", *(f"{one.rest_ms:.0f}" for one in on)),
        ]
        return table(("What", "On SQLite", "On PostgreSQL"), rows)

    def _checked(self) -> str:
        rows = [
            (
                check.what,
                f"{check.measured:.3g} {check.unit}",
                f"{check.computed:.3g} {check.unit}",
                f"{100 * check.error:+.0f} %",
            )
            for check in self.checks
        ]
        dates = ", ".join(sorted({_in_words(one.date) for one in self._costs.values()}))
        return (
            f"Measured on {dates}, on a quiet machine of {_CORES} cores."
            f" Computed rates are off by up to {100 * self.error(RATE):.0f} %, waits by up to"
            f" {100 * self.error(WAIT):.0f} %.\n\n" + table(("What", "Measured", "Computed", "Error"), rows)
        )


def _in_words(day: str) -> str:
    return f"{date.fromisoformat(day):%-d %B %Y}"


def _rate_within(curve: Sequence[tuple[float, Sequence[float]]]) -> float:
    """Return the rate up to which nine of ten items start in time; between two that were computed, on a line."""
    below = (0.0, 0.0)
    for rate, waits in curve:
        wait = percentile(waits, 0.9)
        if wait > _PATIENCE_MS:
            return below[0] + (rate - below[0]) * (_PATIENCE_MS - below[1]) / (wait - below[1])
        below = (rate, wait)
    return below[0]


def _rounded(number: float) -> str:
    """Return a number of which the first two digits are meant."""
    digits = max(0, len(str(int(number))) - 2)
    return f"{round(number, -digits):,.0f}"
