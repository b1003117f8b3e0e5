"""Views of a sweep: in a terminal, live or once; as lines in a pipe; as a report in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import typer

from prefect_launch.cli.output import Column, details_of, print_details, print_table, table_of, write_file
from prefect_launch.client.item_fields import state_of
from prefect_launch.core.terminal import printable, unguarded_stdout

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from rich.console import Console, RenderableType

    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session
    from prefect_launch.sweeps.history import Trial
    from prefect_launch.sweeps.report import SweepReport
    from prefect_launch.sweeps.trial_reader import TrialReader
    from prefect_launch.sweeps.trial_table import TrialTable

#: From one look at a watched sweep to the next.
_WATCH_SECONDS: Final = 2.0
#: Lines of the terminal that a live table leaves free.
_SPARE_LINES: Final = 3
#: Characters of the sparkline.
_SPARKLINE_CHARS: Final = 40
#: Causes of failures below the table.
_MOST_CAUSES: Final = 5


def read_report(api: Api, given: str) -> SweepReport:
    """Read a sweep by its id, a part of it, or its name.

    Raises:
        NotFoundError: when there is none, or there are several.
    """

    async def read(session: Session) -> SweepReport:
        from prefect_launch.sweeps.sweep_run import find_sweep

        return (await read_now(session, (await find_sweep(session, given)).id))[0]

    return api.call(read)


async def read_now(session: Session, sweep_id: UUID, reader: TrialReader | None = None) -> tuple[SweepReport, bool]:
    """Read a sweep.

    Args:
        session: an open connection.
        sweep_id: its id.
        reader: of its trials; it spares reading again what earlier calls have read.

    Returns:
        Its report, and whether it has ended.
    """
    from prefect_launch.sweeps.report import SweepReport
    from prefect_launch.sweeps.requests import message_of
    from prefect_launch.sweeps.sweep_run import config_of, read_sweep
    from prefect_launch.sweeps.trial_reader import TrialReader

    sweep = await read_sweep(session, sweep_id)
    config = config_of(sweep)
    reader = reader or TrialReader(session.server, sweep_id)
    await reader.list_items()
    trials = await reader.trials(config)
    return SweepReport(sweep.name, sweep_id, state_of(sweep), message_of(sweep), config, trials), sweep.is_terminal


# --- once ---


def print_sweep(report: SweepReport) -> None:
    """Print a sweep and the table of its trials."""
    from prefect_launch.sweeps.failures import failures_by_cause
    from prefect_launch.sweeps.trial_table import trial_table

    print_details(_details(report))
    typer.echo()
    table = trial_table(report.trials, report.config)
    print_table(_columns(table), [row.cells for row in table.rows], empty="No trial was queued yet.")
    for failure in failures_by_cause(report.trials.history.trials)[:_MOST_CAUSES]:
        typer.echo(printable(f"{len(failure.trials)} failed: {failure.cause}"))


def _details(report: SweepReport) -> list[tuple[str, object]]:
    from prefect_launch.core.metrics import sparkline
    from prefect_launch.sweeps.history import TrialState

    ended = [trial for trial in report.trials.history.trials if trial.state is TrialState.FINISHED]
    values = [trial.metric for trial in ended if trial.metric is not None]
    return [
        ("sweep", f"{report.name} ({report.sweep_id})"),
        *((name.lower(), value) for name, value in report.details),
        ("history", sparkline(values, _SPARKLINE_CHARS) if len(values) > 1 else None),
    ]


def _columns(table: TrialTable) -> list[Column]:
    columns = [Column("TRIAL", right=True), Column("STATE"), Column(table.metric, right=True)]
    return [*columns, *(Column(name, gives_way=True) for name in table.params), Column("ITEM")]


# --- live ---


def watch_sweep(api: Api, given: str, *, quiet: bool = False) -> SweepReport:
    """Show a sweep until it has ended: a live table in a terminal, a line for each change elsewhere.

    Args:
        api: the Prefect server.
        given: the sweep's id, a part of it, or its name.
        quiet: show nothing.

    Returns:
        The sweep as it has ended.

    Raises:
        NotFoundError: when there is no such sweep, or there are several.
    """
    import asyncio

    from rich.console import Console
    from rich.live import Live

    if quiet or not sys.stdout.isatty():
        lines = ChangeLines()
        return asyncio.run(until_ended(api, given, (lambda _: None) if quiet else lines.show))
    console = Console(highlight=False, file=unguarded_stdout())  # it draws its table over itself
    with Live(console=console, transient=True, auto_refresh=False) as live:
        report = asyncio.run(until_ended(api, given, lambda one: live.update(live_view(one, console), refresh=True)))
    print_sweep(report)
    return report


async def until_ended(
    api: Api, given: str, show: Callable[[SweepReport], None], *, pause_seconds: float = _WATCH_SECONDS
) -> SweepReport:
    """Show a sweep again and again, until it has ended.

    Args:
        api: the Prefect server.
        given: as for `watch_sweep`.
        show: shows it as it is now.
        pause_seconds: from one look to the next.

    Returns:
        The sweep as it has ended.
    """
    from prefect_launch.errors import ServerFailedError, ServerUnavailableError
    from prefect_launch.sweeps.sweep_run import find_sweep
    from prefect_launch.sweeps.trial_reader import TrialReader

    async with api.open() as session:
        sweep_id = (await find_sweep(session, given)).id
        reader = TrialReader(session.server, sweep_id)
        while True:
            try:
                report, has_ended = await read_now(session, sweep_id, reader)
            except (ServerUnavailableError, ServerFailedError):
                pass  # what is shown stays, until the server is back
            else:
                show(report)
                if has_ended:
                    return report
            await anyio.sleep(pause_seconds)


def live_view(report: SweepReport, console: Console) -> RenderableType:
    """Return a sweep and as many of its trials as fit into the terminal."""
    from rich.console import Group
    from rich.text import Text

    from prefect_launch.sweeps.trial_table import trial_table

    details = details_of(_details(report))
    height = len(console.render_lines(details)) + _SPARE_LINES
    table = trial_table(report.trials, report.config, max_rows=max(1, console.height - height - 1))
    rows = table_of(_columns(table), [row.cells for row in table.rows], console.width)
    left = f"… and {table.left_out:,} more" if table.left_out else ""
    return Group(details, Text(), rows, Text(left, style="dim"))


class ChangeLines:
    """Prints a line for each change of a sweep or of one of its trials."""

    def __init__(self) -> None:
        self._state: tuple[str, str] | None = None
        self._trials: dict[int, tuple[object, int]] = {}

    def show(self, report: SweepReport) -> None:
        """Print what has changed since the last call."""
        from prefect_launch.sweeps.trial_log import describe_trial

        for trial in report.trials.history.trials:
            if self._trials.get(trial.number) != (now := _now(trial)):
                self._trials[trial.number] = now
                _say(describe_trial(trial, report.config))
        if (state := (report.state, report.message)) != self._state:
            self._state = state
            _say(f"sweep {report.name} {report.state}{f': {report.message}' if report.message else ''}")
            if report.state == "completed" and report.best is not None:
                _say(f"best: {describe_trial(report.best, report.config)}")


def _now(trial: Trial) -> tuple[object, int]:
    return trial.state, trial.tries


def _say(words: str) -> None:
    typer.echo(printable(words))
    sys.stdout.flush()


# --- the report in a file ---


def write_report(report: SweepReport, ui_url: str, output: str | None) -> None:
    """Write a sweep's report as one HTML file, and print its path.

    Args:
        report: of the sweep.
        ui_url: address of the server's UI, for the links to the trials' pages.
        output: the file; `-` is standard output; `None` is `sweep-` and the sweep's short id, in this folder.

    Raises:
        SpecError: when the file cannot be written.
    """
    from prefect_launch.core.names import short_id

    html = report.html(lambda item_id: f"{ui_url}/runs/flow-run/{item_id}")
    if output == "-":
        typer.echo(html, nl=False)
        return
    path = Path(output or f"sweep-{short_id(report.sweep_id)}.html")
    write_file(path, html, "-o")
    typer.echo(f"The report of the sweep {printable(report.name)} is in {path}.")
