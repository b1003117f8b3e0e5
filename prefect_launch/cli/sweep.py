"""Commands `prefect-launch sweep`: check a sweep file."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_launch.cli.options import JsonOption, examples, group
from prefect_launch.cli.output import Column, print_details, print_json, print_table

if TYPE_CHECKING:
    from prefect_launch.sweeps.config import SweepConfig
    from prefect_launch.sweeps.preview import Preview

app = group("Check sweep files.")

_INFINITE = "infinite"


@app.callback()
def _group() -> None:
    """Check sweep files."""


@app.command(epilog=examples("prefect-launch sweep check sweep.yaml"))
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A sweep file: YAML or JSON, as W&B's sweeps have it.")],
    json: JsonOption = False,
) -> None:
    """Check a sweep file, and show how many points it has and the first five; nothing is written."""
    from prefect_launch.sweeps.config import parse_sweep
    from prefect_launch.sweeps.preview import preview_sweep
    from prefect_launch.sweeps.sweep_file import read_sweep_file

    config = parse_sweep(read_sweep_file(file))
    preview = preview_sweep(config)
    if json:
        print_json(_as_json(config, preview))
        return
    metric = config.objective
    print_details(
        [
            ("Method", config.sampler or config.method),
            ("Metric", f"{metric.goal} {metric.name}" if metric else None),
            ("Points", _INFINITE if preview.points is None else f"{preview.points:,}"),
            ("Trials", "no limit" if preview.trials is None else f"at most {preview.trials:,}"),
            ("Workers", config.scheduler.num_workers),
            ("Command", _command(config, preview)),
        ]
    )
    typer.echo()
    flat = [_flat(sample) for sample in preview.samples]
    names = list(dict.fromkeys(name for sample in flat for name in sample))
    rows = [[str(number), *(sample.get(name, "") for name in names)] for number, sample in enumerate(flat)]
    print_table([Column("TRIAL", right=True), *(Column(name, gives_way=True) for name in names)], rows, empty="")
    for warning in preview.warnings:
        typer.secho(f"Warning: {warning}", fg=typer.colors.YELLOW, err=True)


def _command(config: SweepConfig, preview: Preview) -> str | None:
    """Return the command, or the arguments, of the first trial; variables stay as they are written."""
    import shlex

    from prefect_launch.sweeps.command import variables_of

    variables = {name: f"${{envvar:{name}}}" for name in variables_of(config.command or ())}
    overrides = config.trial_overrides(preview.samples[0], variables)
    if "args" in overrides:
        return f"the job's own {shlex.join(overrides['args'])}"
    return shlex.join(overrides["entry_point"]) if "entry_point" in overrides else None


def _as_json(config: SweepConfig, preview: Preview) -> dict[str, Any]:
    return {
        "method": config.method,
        "sampler": config.sampler,
        "metric": config.objective.model_dump() if config.objective else None,
        "points": _INFINITE if preview.points is None else preview.points,
        "trials": preview.trials,
        "num_workers": config.scheduler.num_workers,
        "command": _command(config, preview),
        "samples": preview.samples,
        "warnings": preview.warnings,
    }


def _flat(params: dict[str, Any], before: str = "") -> dict[str, str]:
    """Return parameters by dotted names, each value as JSON has it, but short; a text without its quotes."""
    found: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            short = float(f"{value:.6g}") if isinstance(value, float) else value
            found[before + name] = short if isinstance(short, str) else json_format.dumps(short, ensure_ascii=False)
    return found
