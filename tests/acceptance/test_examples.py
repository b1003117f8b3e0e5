"""The examples, each as its README says: its blocks run on a real server, and its runs end as they should."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from prefect_launch import Api, LaunchAgent, runs_table
from prefect_launch.testing import InMemoryGpus
from tests.support.docker_engine import DockerEngine
from tests.support.prefect_server import PrefectServerProcess
from tests.support.reader import PROJECT, Reader, blocks_of

EXAMPLES = PROJECT / "examples"


@pytest.fixture
def reader(prefect_server: PrefectServerProcess, tmp_path: Path) -> Iterator[Reader]:
    """A reader of the examples, on the run's server and with this test's Prefect home."""
    server = f"export PREFECT_HOME={os.environ['PREFECT_HOME']} PREFECT_API_URL={prefect_server.api_url}"
    with Reader(tmp_path, {"export PREFECT_API_URL=http://127.0.0.1:4200/api": server}) as made:
        yield made
    assert not made.forgotten


def test_argparse_script_gets_arguments_and_inputs(reader: Reader) -> None:
    shown = reader.follow(blocks_of(EXAMPLES / "argparse" / "README.md"))

    assert re.findall(r"^epoch (\S+)  lr (\S+)", shown, re.MULTILINE) == [
        *((f"{epoch}/3", "0.5") for epoch in range(1, 4)),
        *((f"{epoch}/10", "0.05") for epoch in range(1, 11)),
    ]


def test_killed_loop_resumes_at_its_checkpoint(reader: Reader) -> None:
    shown = reader.follow(blocks_of(EXAMPLES / "pytorch" / "README.md"))

    log = shown[shown.rindex("attempt 1") :]
    resumed = re.search(r"attempt 2\nresumed after epoch (\d+)\n(.*)", log, re.DOTALL)
    assert resumed
    epochs = [int(epoch) for epoch in re.findall(r"^epoch (\d+) ", resumed[2], re.MULTILINE)]
    assert int(resumed[1]) >= 5
    assert epochs == list(range(int(resumed[1]) + 1, 41))
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)$", log, re.MULTILINE)]
    assert losses[-1] < losses[0] / 10


@pytest.mark.engine
def test_image_runs_as_it_is_and_as_a_job(
    engine: DockerEngine, python_image: str, reader: Reader, tmp_path: Path
) -> None:
    dockerfile = tmp_path / "examples" / "container" / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("python:3.12-slim", python_image))
    shown = reader.follow(blocks_of(EXAMPLES / "container" / "README.md"))

    assert sorted(re.findall(r"^(\w+) +completed +3\.1\d*$", shown, re.MULTILINE)) == ["image", "job"]


def test_notebook_runs_with_its_inputs_and_leaves_its_file(reader: Reader) -> None:
    shown = reader.follow(blocks_of(EXAMPLES / "notebook" / "README.md"))

    fitted = re.search(r"degree 3: error ([\d.]+)", shown)
    assert fitted
    assert float(fitted[1]) < 0.06
    assert "fit.csv" in shown


def test_hydra_program_gets_overrides_and_its_files_are_kept(reader: Reader) -> None:
    shown = reader.follow(blocks_of(EXAMPLES / "hydra" / "README.md"))

    assert "epoch 5/5  sgd  loss 1.2500" in shown
    assert "epoch 2/2  adam  loss" in shown
    assert ".hydra/overrides.yaml" in shown


def test_two_gpus_have_two_runs_at_a_time_each_with_cards_of_its_own(reader: Reader) -> None:
    queued, agent, looked = blocks_of(EXAMPLES / "gpu" / "README.md")
    reader.follow([queued])
    assert agent.text == "prefect-launch agent start --config examples/gpu/agent.yaml --until-empty\n"
    config = yaml.safe_load((EXAMPLES / "gpu" / "agent.yaml").read_text())
    asyncio.run(LaunchAgent(Api(), config, gpu_probe=InMemoryGpus(2)).loop(until_empty=True))
    shown = reader.follow([looked])

    ended = {run["name"]: run for run in runs_table(queue="gpus", states=["completed"])}
    cards = {name: run["outputs.cards"] for name, run in ended.items()}
    assert cards.pop("both") == "0,1"
    assert sorted(cards) == ["one-1", "one-2", "one-3"]
    assert set(cards.values()) == {"0", "1"}
    for one, other in combinations(ended.values(), 2):
        if set(one["outputs.cards"].split(",")) & set(other["outputs.cards"].split(",")):
            assert one["outputs.ended"] <= other["outputs.started"] or other["outputs.ended"] <= one["outputs.started"]
    assert "0,1" in shown
