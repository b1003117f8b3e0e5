"""Comparison of runs: what each was, and what it came to, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prefect_launch.client.item_fields import request_of, source_of
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.client.run_filter import GROUPS, INPUTS, METRICS, OUTPUTS
from prefect_launch.client.runs_table import Run, complete
from prefect_launch.core.html_page import Html, html_page, html_rows
from prefect_launch.core.metric_chart import line_colour, lines_svg
from prefect_launch.core.metrics import Metrics, Series
from prefect_launch.core.nested import flat
from prefect_launch.core.svg import escaped
from prefect_launch.errors import LaunchError, SpecError

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.jobs.model import Job
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item

CODE: Final = "code"
ENVIRONMENT: Final = "environment"
RESULTS: Final = "results"
#: What a run asks for of its environment, beside its code.
_ASKED: Final = ("queue", "priority", "resource_args", "template_variables")
_CAME_TO: Final = ("state", "message", "attempts", "created", "waited_seconds", "duration_seconds")
_MAX_CHARTS: Final = 24
_COMMIT_CHARS: Final = 12


class ComparedRow(NamedTuple):
    """One value of each run.

    Attributes:
        section: what the value is of: inputs, code, environment or results.
        name: the value's name.
        values: in the order of the runs; `None` where one has none.
    """

    section: str
    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        """Whether any two of the values differ."""
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order in which they were named.
        rows: all that is known of them, by section.
    """

    runs: tuple[Run, ...]
    rows: tuple[ComparedRow, ...]

    def shown(self, *, everything: bool = False) -> list[ComparedRow]:
        """Return the rows that differ, and the results; or all of them."""
        return [row for row in self.rows if everything or row.differs or row.section == RESULTS]

    @property
    def names(self) -> list[str]:
        """A heading for each run: its name; with the end of its id where two have the same."""
        names = [run.handle.name for run in self.runs]
        return [
            name if names.count(name) == 1 else f"{name} ({run.handle.id[-8:]})"
            for name, run in zip(names, self.runs, strict=True)
        ]

    def fields(self) -> dict[str, Any]:
        """Return it for programs."""
        rows = [
            {"section": row.section, "name": row.name, "differs": row.differs, "values": row.values}
            for row in self.rows
        ]
        return {"runs": [run.handle.id for run in self.runs], "rows": rows}

    def html(self, text_of: Callable[[Any], str]) -> str:
        """Return it as one HTML file that needs nothing else, with a chart of each metric.

        Args:
            text_of: writes a value for people.
        """
        marks = [f'<span style="color:{line_colour(place)}">●</span>' for place in range(len(self.runs))]
        heads = [
            Html(f'{mark} <a href="{escaped(run.handle.url)}">{escaped(name)}</a>')
            for mark, run, name in zip(marks, self.runs, self.names, strict=True)
        ]
        parts = [f"<h1>Comparison of {len(self.runs)} runs</h1>"]
        for section in dict.fromkeys(row.section for row in self.rows):
            rows = [row for row in self.shown() if row.section == section]
            if rows:
                cells = [[row.name, *map(text_of, row.values)] for row in rows]
                parts += [f"<h2>{section.capitalize()}</h2>", html_rows([section, *heads], cells)]
        if charted := self._charted():
            legend = " ".join(f"{mark} {escaped(name)}" for mark, name in zip(marks, self.names, strict=True))
            parts += ["<h2>Metrics</h2>", f"<p>{legend}</p>", f"<figure>{lines_svg(charted)}</figure>"]
        same = [[row.section, row.name, text_of(row.values[0])] for row in self.rows if row not in self.shown()]
        if same:
            parts += ["<h2>The same in all</h2>", html_rows((), same)]
        return html_page(f"Comparison of {', '.join(self.names)}", parts)

    def _charted(self) -> dict[str, dict[str, Series]]:
        """Return the histories by metric and run, of the metrics that have one."""
        metrics = dict.fromkeys(
            name for run in self.runs for name, series in run.metrics.series.items() if series.last is not None
        )
        return {
            name: {run.handle.id: run.metrics.series.get(name, Series()) for run in self.runs}
            for name in list(metrics)[:_MAX_CHARTS]
        }


async def compare_runs(api: Api, session: Session, items: Sequence[Item]) -> Comparison:
    """Compare runs.

    Args:
        api: for the handles on them.
        session: an open connection.
        items: of two runs or more.

    Raises:
        SpecError: for fewer than two different runs.
        InfrastructureError: when outputs cannot be read from their store.
    """
    by_id = {item.id: item for item in items}
    if len(by_id) < 2:
        raise SpecError("A comparison needs two different runs or more: give their ids or names.")
    found = [Run(QueuedRun(api, item), item, {}, Metrics()) for item in by_id.values()]
    runs = await complete(session, found, GROUPS)
    code: list[Mapping[str, Any]] = await asyncio.gather(*(_code_of(session, run) for run in runs))
    sections: list[tuple[str, list[Mapping[str, Any]]]] = [
        (INPUTS, [_of_group(run, INPUTS) for run in runs]),
        (CODE, code),
        (ENVIRONMENT, [flat({name: _asked(run, name) for name in _ASKED}) for run in runs]),
        (RESULTS, [_results(run) for run in runs]),
    ]
    rows = [
        ComparedRow(section, name, tuple(values.get(name) for values in of_runs))
        for section, of_runs in sections
        for name in _names(of_runs)
    ]
    return Comparison(tuple(runs), tuple(rows))


def _names(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all that one has a value of."""
    return list(
        dict.fromkeys(name for values in found for name, value in values.items() if value not in (None, [], {}))
    )


def _of_group(run: Run, group: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in run.row.items() if name.startswith(f"{group}.")}


def _asked(run: Run, name: str) -> Any:
    return run.row[name] if name in run.row else request_of(run.item).get(name)


def _results(run: Run) -> dict[str, Any]:
    measured = {name: value for name, value in run.row.items() if name.partition(".")[0] in (OUTPUTS, METRICS)}
    return {**{name: run.row[name] for name in _CAME_TO}, **measured}


async def _code_of(session: Session, run: Run) -> dict[str, Any]:
    """Return what a run's code is: its job, commit, image, and command."""
    request = request_of(run.item)
    job = await _job_of(session, source_of(run.item)) if request.get("job") else None
    asked = {name: request.get(name) for name in ("job", "uri", "image", "digest", "entry_point", "args")}
    if job is None:
        return asked
    source = job.document.source.model_dump(mode="json", exclude_none=True)
    git = source.get("git") or job.metadata.get("git") or {}
    return {
        **asked,
        "image": asked["image"] or source.get("image"),
        "commit": (git.get("commit") or "")[:_COMMIT_CHARS] or None,
        "not committed": git.get("changed_count") or len(git.get("changed", ())) or None,
        "code": (source.get("artifact") or "").rpartition("/")[2][:_COMMIT_CHARS] or None,
        "entry_point": asked["entry_point"] or list(job.entry_point),
        "python": job.runtime,
        "base_image": source.get("base_image"),
    }


async def _job_of(session: Session, reference: str) -> Job | None:
    """Return the job of a run, unless it was deleted or cannot be read: the rest is worth comparing."""
    try:
        return await session.jobs.resolve(reference)
    except LaunchError:
        return None
