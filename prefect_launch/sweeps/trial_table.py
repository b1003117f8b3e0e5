"""Table of a sweep's trials, the best first: the same on the sweep's page, in its report and in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect_launch.core.metrics import format_number
from prefect_launch.core.names import short_id
from prefect_launch.core.nested import flat
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import Trial
from prefect_launch.sweeps.trial_items import SweepTrials

#: Rows of the table on the sweep's page and in its report.
MAX_ROWS: Final = 100
#: Columns of parameters there.
MAX_PARAMS: Final = 30
#: Characters of a cell there.
MAX_CHARS: Final = 60
#: The part of the rows that trials without a value get, such as those that wait.
_OTHERS_SHARE: Final = 4


@dataclass(frozen=True)
class TrialTable:
    """Trials as rows of text.

    Attributes:
        metric: heading of the metric's column.
        params: headings of the parameters' columns.
        rows: a row for each trial that is shown.
        left_out: how many trials have no row.
    """

    metric: str
    params: tuple[str, ...]
    rows: tuple[TrialRow, ...]
    left_out: int = 0

    @property
    def headings(self) -> list[str]:
        """The headings of all columns; no two are equal."""
        found: list[str] = ["trial", "state"]
        for name in (self.metric, *self.params, "item"):
            while name in found:
                name = f"{name} (2)"
            found.append(name)
        return found


@dataclass(frozen=True)
class TrialRow:
    """One trial as a row.

    Attributes:
        trial: which one.
        state: with the try, from the second on.
        metric: the last value, or an empty text.
        params: in the order of the table's columns; empty where it has none of the name.
        item: the short id of its item.
    """

    trial: Trial
    state: str
    metric: str
    params: tuple[str, ...]
    item: str

    @property
    def cells(self) -> list[str]:
        """The cells of all columns."""
        return [str(self.trial.number), self.state, self.metric, *self.params, self.item]


def trial_table(trials: SweepTrials, config: SweepConfig, *, max_rows: int | None = None) -> TrialTable:
    """Return the table of a sweep's trials: those with a value first, and the best of them at the head.

    Args:
        trials: of the sweep.
        config: of the sweep.
        max_rows: how many rows at most; a quarter of them is kept for the newest trials that wait or run.
    """
    ranked = trials.ranked(config.objective)
    shown = ranked if max_rows is None or len(ranked) <= max_rows else _chosen(ranked, max_rows)
    flat = [flat_params(trial.params) for trial in shown]
    constant = {".".join(path) for path, each in config.parameters if each.points == 1}
    names = sorted(dict.fromkeys(name for params in flat for name in params), key=constant.__contains__)
    rows = tuple(
        TrialRow(
            trial,
            trial.state.value + (f" (try {trial.tries})" if trial.tries > 1 else ""),
            "" if trial.metric is None else format_number(trial.metric),
            tuple(params.get(name, "") for name in names),
            short_id(trials.items[trial.number].item.id),
        )
        for trial, params in zip(shown, flat, strict=True)
    )
    metric = config.objective.name if config.objective else "metric"
    return TrialTable(metric, tuple(names), rows, len(ranked) - len(rows))


def _chosen(ranked: list[Trial], max_rows: int) -> list[Trial]:
    """Return the best trials, and behind them the newest of the others that wait or run."""
    open_others = [trial for trial in ranked if trial.state.is_open and trial.value is None]
    newest = open_others[-(max_rows // _OTHERS_SHARE) :]
    numbers = {trial.number for trial in newest}
    return [*[trial for trial in ranked if trial.number not in numbers][: max_rows - len(newest)], *newest]


def counts_in_words(trials: SweepTrials) -> str:
    """Return how many trials are in each state, such as `3 finished, 1 running`."""
    return ", ".join(f"{count:,} {state.value}" for state, count in trials.counts.items()) or "none yet"


def flat_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters by dotted names, each value as JSON has it, but short; a text without its quotes."""
    return {name: value_in_words(value) for name, value in flat(params).items()}


def value_in_words(value: Any) -> str:
    """Return one value of a parameter as JSON has it, but short; a text without its quotes."""
    short = float(f"{value:.5g}") if isinstance(value, float) else value
    return short if isinstance(short, str) else json.dumps(short, ensure_ascii=False)


def table_artifact(table: TrialTable) -> str:
    """Return the table as the data of a table artifact.

    Its cells are short and plain: only one of the two UIs draws Markdown in a cell, and a wide one pushes the others
    out of sight.
    """
    columns = [at for at, _ in enumerate(table.headings) if at < 3 + MAX_PARAMS or at == len(table.headings) - 1]
    headings = [_plain(table.headings[at]) for at in columns]
    rows = []
    for row in table.rows:
        cells = row.cells
        rows.append(dict(zip(headings, (_plain(cells[at]) for at in columns), strict=True)))
    return json.dumps(rows)


def _plain(text: str) -> str:
    # `[text](address)` is a link in one of the UIs.
    text = text.replace("](", "] (")
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"
