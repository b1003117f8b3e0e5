"""Report of a sweep: its state, best trial, charts, trials and failures; for its page, a file, or a program.

Bounded in size, however many trials there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from prefect_launch.core.html_page import Html, html_page, html_rows
from prefect_launch.core.metrics import format_number
from prefect_launch.core.svg import escaped, markdown_code, markdown_image, shortened
from prefect_launch.core.units import counted
from prefect_launch.core.validation import clean_text
from prefect_launch.inputs.metrics import written_number
from prefect_launch.sweeps.charts import history_svg, importance_svg, parallel_svg
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.failures import Failure, failures_by_cause
from prefect_launch.sweeps.history import Trial
from prefect_launch.sweeps.importance import Importances, measure_importance
from prefect_launch.sweeps.trial_items import SweepTrials
from prefect_launch.sweeps.trial_table import MAX_CHARS, MAX_PARAMS, counts_in_words, flat_params, trial_table

#: Trials in the table of the Markdown report; the live table next to it has more.
_MARKDOWN_ROWS: Final = 10
#: Columns of parameters there, those of the most important ones: the newer UI has no room for more.
_MARKDOWN_PARAMS: Final = 5
#: Trials in the table of an HTML report.
_HTML_ROWS: Final = 2_000
_MAX_CAUSES: Final = 10
_CAUSE_CHARS: Final = 300
#: Trials of one cause that are named.
_NAMED: Final = 5

#: Returns the address of an item's page.
Link = Callable[[UUID], str]


@dataclass(frozen=True)
class SweepReport:
    """What there is to tell of a sweep.

    Attributes:
        name: of the sweep.
        sweep_id: its id.
        state: for people, in lower case.
        message: of that state.
        config: its configuration.
        trials: its trials.
    """

    name: str
    sweep_id: UUID
    state: str
    message: str
    config: SweepConfig
    trials: SweepTrials

    @cached_property
    def best(self) -> Trial | None:
        """The best trial."""
        return self.trials.best(self.config.objective)

    @cached_property
    def importances(self) -> Importances:
        """How much each parameter decides."""
        return measure_importance(self.config, self.trials.history)

    @cached_property
    def failures(self) -> list[Failure]:
        """Why trials failed, the commonest cause first."""
        return failures_by_cause(self.trials.history.trials)

    @cached_property
    def charts(self) -> dict[str, str]:
        """The drawings, by what they show; none for a sweep without a metric."""
        if self.config.objective is None:
            return {}
        history, important = self.trials.history, self.importances
        drawn = {"History of the metric": history_svg(self.config, history)}
        if any(each.points != 1 for _, each in self.config.parameters):
            names = [one.name for one in important.parameters]
            drawn["Parameters and metric of each trial"] = parallel_svg(self.config, history, names)
            drawn["Importance of the parameters"] = importance_svg(important)
        return drawn

    @property
    def details(self) -> Iterator[tuple[str, str]]:
        """The facts about the sweep as a whole, by their names."""
        metric = self.config.objective
        yield "State", self.state
        if self.message:
            yield "Message", shortened(self.message, _CAUSE_CHARS)
        yield "Method", self.config.sampler or self.config.method
        if metric is not None:
            target = "" if metric.target is None else f", target {format_number(metric.target)}"
            yield "Metric", f"{metric.goal} {metric.name}{target}"
        cap = f" of at most {self.config.run_cap:,}" if self.config.run_cap else ""
        yield "Trials", f"{len(self.trials.history.trials):,}{cap}: {counts_in_words(self.trials)}"

    def _item(self, number: int) -> UUID:
        return self.trials.items[number].item.id

    def summary(self) -> dict[str, Any]:
        """Return state, best trial and trials for programs, the best trial first."""
        metric = self.config.objective
        return {
            "id": str(self.sweep_id),
            "name": self.name,
            "state": self.state,
            "message": self.message,
            "metric": metric.model_dump() if metric else None,
            "counts": {state.value: count for state, count in self.trials.counts.items()},
            "best": None if self.best is None else self.best.number,
            "trials": [self.trial_fields(trial) for trial in self.trials.ranked(metric)],
        }

    def fields(self) -> dict[str, Any]:
        """Return all of it for programs: the summary, the importance of the parameters, and the failures."""
        return {
            **self.summary(),
            "importance": {
                "by": self.importances.by,
                "values": self.importances.values,
                "parameters": [
                    {"name": one.name, "share": one.share, "correlation": one.correlation}
                    for one in self.importances.parameters
                ],
            },
            "failures": [{"cause": one.cause, "trials": list(one.trials)} for one in self.failures],
        }

    def trial_fields(self, trial: Trial) -> dict[str, Any]:
        """Return a trial for programs."""
        return {
            "number": trial.number,
            "state": trial.state.value,
            "metric": None if trial.metric is None else written_number(trial.metric),
            "tries": trial.tries,
            "cause": trial.cause,
            "params": dict(trial.params),
            "item": str(self._item(trial.number)),
        }

    # --- Markdown ---

    def markdown(self, link: Link) -> str:
        """Return it as Markdown, for the sweep's page.

        Args:
            link: returns the address of an item's page.
        """
        parts = [f"## Sweep {markdown_code(self.name)}"]
        parts.append(_rows(("", ""), [(name, markdown_code(words)) for name, words in self.details]))
        if self.best is not None and self.config.objective is not None:
            value = format_number(self.best.value or 0.0)
            parts.append(
                f"### Best: [trial {self.best.number}]({link(self._item(self.best.number))}),"
                f" {markdown_code(self.config.objective.name)} {value}"
            )
            params = list(flat_params(self.best.params).items())
            shown = [(markdown_code(name), markdown_code(_cut(words))) for name, words in params[:MAX_PARAMS]]
            parts.append(_rows(("Parameter", "Value"), shown))
            parts.append(f"`prefect-launch sweep best {self.sweep_id} --config` prints them as a launch config.")
        parts += [markdown_image(svg, words) for words, svg in self.charts.items()]
        if self.trials.history.trials:
            parts += ["### Trials", self._markdown_trials(link)]
        if self.failures:
            parts += ["### Failures", self._markdown_failures(link)]
        return clean_text("\n\n".join(parts) + "\n")

    def _markdown_trials(self, link: Link) -> str:
        table = trial_table(self.trials, self.config, max_rows=_MARKDOWN_ROWS)
        order = {one.name: place for place, one in enumerate(self.importances.parameters)}
        chosen = sorted(range(len(table.params)), key=lambda at: order.get(table.params[at], len(order)))
        shown = chosen[:_MARKDOWN_PARAMS]
        headings = [
            "Trial",
            "State",
            *(markdown_code(one) for one in (table.metric, *(table.params[at] for at in shown))),
        ]
        rows = [
            [
                f"[{row.trial.number}]({link(self._item(row.trial.number))})",
                row.state,
                row.metric,
                *(markdown_code(_cut(row.params[at])) for at in shown),
            ]
            for row in table.rows
        ]
        more = f"\n\nIn the table of the sweep, and in `prefect-launch sweep show`: {table.left_out:,} more."
        return _rows(headings, rows) + (more if table.left_out else "")

    def _markdown_failures(self, link: Link) -> str:
        rows = []
        for failure in self.failures[:_MAX_CAUSES]:
            named = ", ".join(f"[{number}]({link(self._item(number))})" for number in failure.trials[:_NAMED])
            more = ", …" if len(failure.trials) > _NAMED else ""
            rows.append(
                [f"{len(failure.trials):,}", markdown_code(shortened(failure.cause, _CAUSE_CHARS)), named + more]
            )
        left = len(self.failures) - _MAX_CAUSES
        return _rows(("Trials", "Cause", "Such as"), rows) + (f"\n\n{counted(left, 'more cause')}." if left > 0 else "")

    # --- HTML ---

    def html(self, link: Link) -> str:
        """Return it as one HTML file that needs nothing else; a click on a heading sorts the trials.

        Args:
            link: returns the address of an item's page.
        """
        parts = [f"<h1>Sweep {escaped(self.name)}</h1>", html_rows((), [list(pair) for pair in self.details])]
        if self.best is not None and self.config.objective is not None:
            value = escaped(f"{self.config.objective.name} {format_number(self.best.value or 0.0)}")
            parts.append(f"<h2>Best: {self._html_link(self.best.number, link, 'trial ')}, {value}</h2>")
            parts.append(html_rows((), [list(pair) for pair in flat_params(self.best.params).items()]))
        parts += [f"<figure>{svg}</figure>" for svg in self.charts.values()]
        if self.failures:
            rows = [
                [f"{len(one.trials):,}", one.cause, Html(", ".join(self._html_links(one.trials, link)))]
                for one in self.failures
            ]
            parts += ["<h2>Failures</h2>", html_rows(("Trials", "Cause", "Which"), rows)]
        table = trial_table(self.trials, self.config, max_rows=_HTML_ROWS)
        trials = [[Html(self._html_link(row.trial.number, link)), *row.cells[1:]] for row in table.rows]
        more = f"<p>Not in this table: {counted(table.left_out, 'more trial')}.</p>" if table.left_out else ""
        parts += ["<h2>Trials</h2>", html_rows(table.headings, trials, sortable=True), more]
        return html_page(f"Sweep {self.name}", parts)

    def _html_link(self, number: int, link: Link, before: str = "") -> str:
        return f'<a href="{escaped(link(self._item(number)))}">{before}{number}</a>'

    def _html_links(self, numbers: tuple[int, ...], link: Link) -> Iterator[str]:
        yield from (self._html_link(number, link) for number in numbers[: 2 * _NAMED])
        if len(numbers) > 2 * _NAMED:
            yield "…"


def _cut(words: str) -> str:
    return shortened(words, MAX_CHARS)


def _rows(headings: Any, rows: list[Any]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
