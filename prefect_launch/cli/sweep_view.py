"""Views of a sweep in a terminal: its details and its trials, the best one first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from prefect_launch.cli.item_view import state_of
from prefect_launch.cli.output import Column, print_details, print_table

if TYPE_CHECKING:
    from prefect_launch.server.values import Item
    from prefect_launch.sweeps.config import SweepConfig
    from prefect_launch.sweeps.trial_items import SweepTrials


def print_sweep(sweep: Item, config: SweepConfig, trials: SweepTrials) -> None:
    """Print a sweep and the table of its trials."""
    from prefect_launch.sweeps.trial_table import counts_in_words, trial_table

    metric = config.objective
    print_details(
        [
            ("Sweep", f"{sweep.name} ({sweep.id})"),
            ("State", state_of(sweep)),
            ("Message", sweep.message),
            ("Method", config.sampler or config.method),
            ("Metric", f"{metric.goal} {metric.name}" if metric else None),
            ("Trials", counts_in_words(trials)),
        ]
    )
    typer.echo()
    table = trial_table(trials, config)
    columns = [Column("TRIAL", right=True), Column("STATE"), Column(table.metric, right=True)]
    columns += [*(Column(name, gives_way=True) for name in table.params), Column("ITEM")]
    print_table(columns, [row.cells for row in table.rows], empty="No trial was queued yet.")
