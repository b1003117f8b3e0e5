"""Commands `prefect-launch add` and `prefect-launch run`: the same options, on a queue or here and now."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_launch.cli.launch_options import LaunchOptions, parameter_of
from prefect_launch.cli.options import JsonOption, examples, flattened, single
from prefect_launch.cli.process import connected

add_app = single()
run_app = single()

_ADD_EXAMPLES = examples(
    "prefect-launch add -j digits -q gpu --set epochs=3 --set learning_rate=0.01 -P high",
    "prefect-launch add -d team/train:1.2 -q box -v memory=4g --wait",
    'prefect-launch add -u https://github.com/team/train -g v1.2 -E "python train.py" -q gpu',
    "prefect-launch add -j digits -q gpu --build --repository registry.example:5000/team/digits",
    "prefect-launch add -q gpu -c launch-config.yaml",
    "prefect-launch add -j digits -q gpu --explain",
)
_RUN_EXAMPLES = examples(
    "prefect-launch run -j digits --set epochs=3",
    'prefect-launch run -d alpine -E \'echo hello\' -R \'{"local-container": {"memory": "1g"}}\'',
)


@add_app.command("add", epilog=_ADD_EXAMPLES)
@flattened()
def add(
    options: LaunchOptions,
    wait: Annotated[
        bool, typer.Option("--wait", metavar="", help="Print the log until the run ends; exit with 1 when it fails.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", metavar="", help="Dry run: queue nothing; show what would run, where and when."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put a job on a queue: exactly one of --job, --docker-image and --uri."""
    from prefect_launch.cli.add import add_to_queue, explain_add

    if explain:
        explain_add(connected(), options, as_json=json)
        return
    add_to_queue(connected(), options, wait=wait, as_json=json)


@run_app.command("run", epilog=_RUN_EXAMPLES)
@flattened("queue", "variables", "build", *map(parameter_of, ("priority", "registry.uri", "docker.pin")))
def run(
    options: LaunchOptions,
    verbose: Annotated[bool, typer.Option("--verbose", metavar="", help="Print Prefect's own log lines too.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a job here and now, without a queue; exit with 1 when it fails."""
    from prefect_launch.cli.add import run_here

    run_here(connected(verbose=verbose), options, as_json=json)
