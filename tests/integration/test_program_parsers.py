"""Programs that know nothing of launch, with the real parser libraries: they get a job's inputs in their own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_launch import create_job
from tests.support.live import Site

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

REQUIREMENTS = "click>=8.1,<9\nhydra-core>=1.3,<2\njsonargparse>=4.40,<5\n"
ARGPARSE = """
import argparse, json

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=9.0)
parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True)
parser.add_argument("--log", action="store_true")
parser.add_argument("--layers", type=int, nargs="+")
parser.add_argument("--text")
parser.add_argument("--optimizer.name", dest="name")
parser.add_argument("--left", default="as it was")
print(json.dumps(vars(parser.parse_args())))
"""
CLICK = """
import json
import click

@click.command()
@click.option("--lr", type=float, default=9.0)
@click.option("--amp/--no-amp", default=True)
@click.option("--log", is_flag=True)
@click.option("--layers", type=int, nargs=2)
@click.option("--text")
@click.option("--optimizer.name", "name")
@click.option("--left", default="as it was")
def main(**given):
    print(json.dumps(given))

main()
"""
HYDRA = """
import json
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base=None, config_path=".", config_name="config")
def main(config):
    given = OmegaConf.to_container(config)
    name = given.pop("optimizer")["name"]
    print(json.dumps({**given, "name": name}))

main()
"""
HYDRA_CONFIG = "{lr: 9.0, amp: true, log: false, layers: [], text: '', optimizer: {name: sgd}, left: as it was}"
JSONARGPARSE = """
import json
from dataclasses import dataclass
from typing import List
from jsonargparse import ArgumentParser

@dataclass
class Optimizer:
    name: str = "sgd"

parser = ArgumentParser()
parser.add_argument("--lr", type=float, default=9.0)
parser.add_argument("--amp", type=bool, default=True)
parser.add_argument("--log", type=bool, default=False)
parser.add_argument("--layers", type=List[int], default=[])
parser.add_argument("--text", type=str)
parser.add_argument("--optimizer", type=Optimizer)
parser.add_argument("--left", type=str, default="as it was")
given = parser.parse_args().as_dict()
name = given.pop("optimizer")["name"]
print(json.dumps({**given, "name": name}))
"""
ENVIRONMENT = """
import json, os

given = {name: json.loads(os.environ[name.upper()]) for name in ("lr", "amp", "log", "layers", "optimizer")}
name = given.pop("optimizer")["name"]
print(json.dumps({**given, "text": os.environ["TEXT"], "name": name, "left": "as it was"}))
"""
#: By the name of a program: its source, and how its job is made.
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "argparse": (ARGPARSE, {"inputs_from": "argparse"}),
    "click": (
        CLICK,
        {
            "inputs_as": "args",
            "schema": {"properties": {"amp": {"type": "boolean", "default": True}}, "additionalProperties": True},
        },
    ),
    "hydra": (HYDRA, {"inputs_as": "hydra"}),
    "jsonargparse": (JSONARGPARSE, {"inputs_as": "jsonargparse"}),
    "environment": (ENVIRONMENT, {"inputs_as": "env"}),
}
GIVEN: tuple[dict[str, Any], ...] = (
    {"lr": 0.5, "amp": False, "log": True, "layers": [1, 2], "text": "it's -x, $HOME: [a]", "name": "adam"},
    {"lr": 1e-05, "amp": True, "log": False, "layers": [3, 4], "text": "--text", "name": "null"},
)


def test_programs_get_the_inputs_of_their_jobs_in_the_words_of_their_parsers(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    code = tmp_path / "code"
    code.mkdir()
    (code / "requirements.txt").write_text(REQUIREMENTS)
    (code / "config.yaml").write_text(HYDRA_CONFIG)
    specs = []
    for parser, (program, options) in PROGRAMS.items():
        (code / f"with_{parser}.py").write_text(program)
        job = f"{site.name}-{parser}"
        create_job(str(code), "code", name=job, entrypoint=f"python with_{parser}.py", api=site.api, **options)
        for given in GIVEN:
            grouped = "optimizer.name" if parser == "argparse" else "optimizer"
            value = given["name"] if parser == "argparse" else {"name": given["name"]}
            inputs = {**{name: each for name, each in given.items() if name != "name"}, grouped: value}
            specs.append({"job": job, "overrides": {"run_config": inputs}})

    runs = site.add(*specs)
    site.work_off(max_jobs=2)

    logs = [site.log(run) for run in runs]
    assert [run.state for run in runs] == ["completed"] * len(runs), logs
    parsed = [json.loads(log.strip().splitlines()[-1]) for log in logs]
    assert parsed == [{**given, "left": "as it was"} for _ in PROGRAMS for given in GIVEN]
