"""Programs that know nothing of a sweep, as they are: their arguments by `argparse`, and in the words of Hydra."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_launch import create_job
from prefect_launch.sweeps.flow import begin_sweep, run_sweep
from prefect_launch.sweeps.history import Trial
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_reader import read_trials
from tests.support.live import DEADLINE_SECONDS, Site

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from tests.support.prefect_server import PrefectServerProcess

ARGPARSE = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--opt", choices=["adam", "sgd"], required=True)
given = parser.parse_args()
print(f"val_loss: {given.lr + (given.opt == 'sgd')}")
"""
#: Reads words as Hydra does: each changes one value of a nested configuration.
HYDRA = """
import sys

config = {"optimizer": {"lr": 9.0}, "model": {"layers": 9}}
for word in sys.argv[1:]:
    path, _, value = word.partition("=")
    group, name = path.split(".")
    assert name in config[group]
    config[group][name] = float(value)
print(f"val_loss: {config['optimizer']['lr'] + config['model']['layers']}")
"""
COMMON: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "val_loss", "pattern": "val_loss: ([0-9.e+-]+)"},
    "scheduler": {"num_workers": 2},
}


async def trials_of(api: Api, parameters: dict[str, Any]) -> tuple[Trial, ...]:
    sweep_id = await begin_sweep(api, parameters)
    end = await asyncio.wait_for(run_sweep(api, sweep_id), DEADLINE_SECONDS)
    assert end.message == "All 2 trials have ended."
    async with api.open() as session:
        config = config_of(await read_sweep(session, sweep_id))
        return (await read_trials(session.server, sweep_id, config)).history.trials


def test_programs_with_argparse_and_hydra_arguments_are_swept_as_they_are(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    code = tmp_path / "code"
    code.mkdir()
    (code / "with_argparse.py").write_text(ARGPARSE)
    (code / "with_hydra.py").write_text(HYDRA)
    create_job(str(code), "code", name=site.name, entrypoint="python with_hydra.py", api=site.api)
    parsed = create_job(
        str(code), "code", name=f"{site.name}-parsed", entrypoint="python with_argparse.py", inputs_from="argparse",
        api=site.api,
    )  # fmt: skip
    by_command = {
        "program": "with_argparse.py",
        "command": ["${env}", "${interpreter}", "${program}", "${args}"],
        "parameters": {"lr": {"value": 0.25}, "opt": {"values": ["adam", "sgd"]}},
    }
    by_arguments = {
        "args": "hydra",
        "parameters": {
            "optimizer": {"parameters": {"lr": {"values": [0.5, 0.25]}}},
            "model.layers": {"value": 2},
        },
    }

    by_inputs = {"parameters": by_command["parameters"]}
    sweeps = [(site.name, by_command), (site.name, by_arguments), (parsed.name, by_inputs)]

    async def run() -> list[tuple[Trial, ...]]:
        agent = site.agent(max_jobs=2)
        working = asyncio.create_task(agent.loop())
        try:
            return [
                await trials_of(site.api, {"config": {**COMMON, **own}, "queue": site.name, "job": job})
                for job, own in sweeps
            ]
        finally:
            agent.stop()
            await working

    with_argparse, with_hydra, with_inputs = asyncio.run(run())

    for trials in (with_argparse, with_inputs):
        assert [(trial.params["opt"], trial.value) for trial in trials] == [("adam", 0.25), ("sgd", 1.25)]
    assert [(trial.params["optimizer"]["lr"], trial.value) for trial in with_hydra] == [(0.5, 2.5), (0.25, 2.25)]
