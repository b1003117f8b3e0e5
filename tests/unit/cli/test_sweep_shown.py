"""`prefect-launch sweep list`, `show` and `best`: what a person and a program see of a sweep."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from prefect_launch import launch_add
from prefect_launch.cli.main import app
from prefect_launch.core.states import ItemState
from prefect_launch.server.values import State
from prefect_launch.sweeps.requests import SchedulerProcess
from prefect_launch.sweeps.sweep_run import find_sweep, read_sweep
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import fails, loss, opened


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments])


def run_sweep(api: InMemoryApi, **config: Any) -> None:
    """Run a sweep to its end: trial 1 fails, trial 2 is the best."""

    async def run() -> None:
        result = fails if config.get("name") == "hopeless" else lambda p: None if p["lr"] == 0.2 else loss(p)
        async with opened(api, **config) as made, made.agent(result):
            await made.run()
            await made.enter(ItemState.COMPLETED)

    asyncio.run(run())


def test_show_has_the_trials_with_the_best_one_first(job_api: InMemoryApi) -> None:
    run_sweep(job_api, name="mine")
    shown = sweep("show", "mine")
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["metric", "minimize", "loss"] in lines
    assert ["TRIAL", "STATE", "loss", "lr", "ITEM"] in lines
    assert [line[:4] for line in lines[-5:-2]] == [
        *(["2", "finished", "0", "0.3"], ["3", "finished", "0.1", "0.4"], ["0", "finished", "0.2", "0.1"])
    ]
    assert lines[-2][:3] == ["1", "failed", "0.2"]
    assert "1 failed: " in shown.stdout.splitlines()[-1]
    assert "exit code 3" in shown.stdout.splitlines()[-1]
    told = json.loads(sweep("show", "mine", "--json").stdout)
    assert (told["state"], told["best"]) == ("completed", 2)
    assert [trial["number"] for trial in told["trials"]] == [2, 3, 0, 1]
    assert "exit code 3" in told["trials"][-1]["cause"]


def test_best_prints_the_parameters_as_a_launch_config(job_api: InMemoryApi) -> None:
    run_sweep(job_api, name="mine")
    printed = yaml.safe_load(sweep("best", "mine", "--config").stdout)
    assert printed == {"job": "acme/digits/train:v0", "overrides": {"run_config": {"lr": 0.3}}}
    assert launch_add(config=printed, queue_name="cpu").item.parameters["overrides"]["run_config"]["lr"] == 0.3
    assert sweep("best", "mine").stdout.startswith("trial 2 finished, loss 0: lr=0.3")
    assert json.loads(sweep("best", "mine", "--json").stdout)["params"] == {"lr": 0.3}


def test_best_of_a_sweep_with_no_value_is_refused_in_words(job_api: InMemoryApi) -> None:
    run_sweep(job_api, name="hopeless")
    assert "has finished with a finite value of its metric" in str(sweep("best", "hopeless").exception)


def test_sweeps_are_listed_and_an_unknown_one_is_reported_with_those_that_are_there(job_api: InMemoryApi) -> None:
    assert "There is no sweep yet." in sweep("list").stdout
    run_sweep(job_api, name="mine")
    (listed,) = json.loads(sweep("list", "--json").stdout)
    assert (listed["name"], listed["state"]) == ("mine", "completed")
    assert "mine" in sweep("list").stdout
    assert "(mine)" in str(sweep("show", "nothing-of-that").exception)


def test_sweep_whose_process_has_died_is_shown_with_the_command_that_goes_on_with_it(job_api: InMemoryApi) -> None:
    async def die() -> str:
        async with opened(job_api, name="mine") as made:
            await made.die_once_it_has_queued()
            gone = await asyncio.create_subprocess_exec("true")
            await gone.wait()
            process = SchedulerProcess.here(await read_sweep(made.session, made.id))
            assert "gone" not in sweep_says(), "it lives"
            await job_api.server.label_item(made.id, process.model_copy(update={"pid": gone.pid}).labels)
            return str(made.id)

    def sweep_says() -> str:
        return str(json.loads(sweep("show", "mine", "--json").stdout)["message"])

    hint = f"Its process is gone. 'prefect-launch sweep resume {asyncio.run(die())[-8:]}' continues it."
    assert sweep_says() == hint
    assert hint in sweep("show", "mine").stdout
    assert hint in sweep("list").stdout

    async def resumed() -> None:
        async with job_api.open() as session:
            await session.server.propose((await find_sweep(session, "mine")).id, State.of(ItemState.RUNNING))

    asyncio.run(resumed())
    assert "gone" not in sweep_says(), "the next process has not looked yet"


def test_run_takes_a_file_or_a_sweep_to_resume_and_not_both() -> None:
    assert "one of the two" in str(sweep("run").exception)
    assert "one of the two" in str(sweep("run", "sweep.yaml", "--resume", "mine").exception)


def test_prior_run_is_named_by_a_part_of_its_id_or_by_its_name_be_it_a_sweep_or_an_item(
    job_api: InMemoryApi, tmp_path: Path
) -> None:
    run_sweep(job_api, name="mine")
    mine = json.loads(sweep("show", "mine", "--json").stdout)
    item = mine["trials"][0]["item"]
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"method": "grid", "parameters": {"lr": {"values": [0.1]}}}))
    run = ("run", str(file), "-q", "cpu", "-j", "train")
    # A grid refuses both, by their whole ids.
    refused = str(sweep(*run, "--prior-run", "mine", "--prior-run", item[-8:]).exception)
    assert f"prior_runs ({mine['id']}, {item})" in refused
    unknown = str(sweep(*run, "--prior-run", "nothing").exception)
    assert "There is no sweep 'nothing'" in unknown
    assert "Nor is there an item" in unknown


@pytest.mark.parametrize(
    "how",
    [
        {"args": "hyphens", "launch": {"overrides": {"args": ["--fast"]}}},
        {"program": "main.py", "command": ["python", "${program}", "${args}"]},
    ],
    ids=["args", "command"],
)
def test_best_as_a_launch_config_runs_just_what_its_trial_ran(job_api: InMemoryApi, how: dict[str, Any]) -> None:
    run_sweep(job_api, name="mine", **how)
    printed = yaml.safe_load(sweep("best", "mine", "--config").stdout)
    best = job_api.queued_run(json.loads(sweep("best", "mine", "--json").stdout)["item"])
    ran = best.item.parameters["overrides"]  # The schema's defaults have come to it.
    assert printed["overrides"] == {**ran, "run_config": {"lr": 0.3}}
    assert "--lr=0.3" in [*printed["overrides"].get("args", ()), *printed["overrides"].get("entry_point", ())]
