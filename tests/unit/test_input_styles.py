"""Inputs as a job's program takes them: arguments in the words of its parser, or environment variables."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import create_job, explain_launch, launch_add, launch_add_many
from prefect_launch.client.build_first import image_job
from prefect_launch.errors import InputError, LaunchError, SpecError
from prefect_launch.planning.plan import Request, local_config, preview_plan
from prefect_launch.runners.base import RunPlan
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.input_styles import input_arguments, input_variables
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs, items

GIVEN = {
    "lr": 1e-05,
    "text": "-a b",
    "amp": True,
    "log": False,
    "layers": [1, 2],
    "none": None,
    "optimizer": {"name": "adam", "nesterov": True},
}


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (
            "args",
            [
                "--lr=1e-05",
                "--text=-a b",
                "--amp",
                "--layers",
                "1",
                "2",
                "--optimizer.name=adam",
                "--optimizer.nesterov",
            ],
        ),
        (
            "jsonargparse",
            [
                "--lr=1e-05",
                "--text=-a b",
                "--amp=true",
                "--log=false",
                "--layers=[1, 2]",
                "--none=null",
                "--optimizer.name=adam",
                "--optimizer.nesterov=true",
            ],
        ),
        (
            "hydra",
            [
                "lr=1e-05",
                "text='-a b'",
                "amp=true",
                "log=false",
                "layers=[1,2]",
                "none=null",
                "optimizer.name=adam",
                "optimizer.nesterov=true",
            ],
        ),
        ("env", []),
        ("json", []),
    ],
)
def test_inputs_are_arguments_in_the_words_of_the_programs_parser(style: str, words: list[str]) -> None:
    assert input_arguments(GIVEN, style, None) == words


@pytest.mark.parametrize(
    ("default", "value", "words"),
    [(True, False, ["--no-amp"]), (True, True, ["--amp"]), (False, False, []), (False, True, ["--amp"])],
)
def test_flag_that_is_on_by_default_is_turned_off_by_its_counterpart(
    default: bool, value: bool, words: list[str]
) -> None:
    schema = {"properties": {"amp": {"type": "boolean", "default": default}}}

    assert input_arguments({"amp": value}, "args", schema) == words


def test_inputs_are_variables_by_their_names_in_upper_case() -> None:
    given = {"learning-rate": 0.5, "tag": "a b", "amp": False, "layers": [1, 2], "o": {"lr": 1}, "none": None}

    assert input_variables(given) == {
        "LEARNING_RATE": "0.5",
        "TAG": "a b",
        "AMP": "false",
        "LAYERS": "[1, 2]",
        "O": '{"lr": 1}',
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"path": "/x"}, "'path' would set the environment variable PATH"),
        ({"launch_run_id": "x"}, "LAUNCH_RUN_ID"),
        ({"ld-preload": "x"}, "LD_PRELOAD"),
        ({"pythonpath": "x"}, "PYTHONPATH"),
        ({"cuda_visible_devices": "0"}, "CUDA_VISIBLE_DEVICES"),
        ({"1st": "x"}, "'1st' makes no environment variable"),
        ({"größe": 1}, "'größe' makes no environment variable"),
        ({"a-b": 1, "a_b": 2}, "Two inputs set the environment variable A_B"),
    ],
)
def test_input_that_makes_no_variable_of_its_own_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        input_variables(given)


# --- jobs ---


def make(api: InMemoryApi, folder: Path, **options: Any) -> str:
    given = {"name": "mine", "entrypoint": "python main.py", **options}
    return create_job(str(folder / "code"), "code", api=api, **given).name


def plan(api: InMemoryApi, **config: Any) -> RunPlan:
    job = api.job("mine")
    request = Request(spec=parse_spec({"job": "mine", **config}), item_id="i", config=local_config("local-process"))
    return asyncio.run(preview_plan(request, MachineSettings(home=Path("home")), job))


def test_job_that_takes_arguments_gets_its_inputs_before_those_of_the_item(
    job_api: InMemoryApi, tmp_path: Path
) -> None:
    schema = {"properties": {"lr": {"type": "number", "default": 0.5}, "amp": {"type": "boolean", "default": True}}}
    make(job_api, tmp_path, inputs_as="args", schema=schema)

    made = plan(job_api, overrides={"run_config": {"amp": False}, "args": ["--more"]})

    assert (made.command, made.args) == (("python", "main.py"), ("--lr=0.5", "--no-amp", "--more"))
    assert json.loads(made.env["LAUNCH_CONFIG"]) == {"amp": False, "lr": 0.5}
    told = explain_launch(job="mine", queue_name="cpu", config=inputs(amp=True))
    assert told.creates["command"] == ["python", "main.py", "--lr=0.5", "--amp"]


def test_output_of_another_item_is_given_as_an_argument_by_its_path(job_api: InMemoryApi, tmp_path: Path) -> None:
    make(job_api, tmp_path, inputs_as="args")
    item = "0198b2a4-0000-7000-8000-000000000001"

    (word,) = plan(job_api, overrides={"run_config": {"data": {"item": item, "path": "model.pt"}}}).args

    assert re.fullmatch(rf"--data=.*/{item}/model\.pt", word)


def test_job_that_takes_variables_gets_its_inputs_in_its_environment(job_api: InMemoryApi, tmp_path: Path) -> None:
    make(job_api, tmp_path, inputs_as="env")

    made = plan(job_api, overrides={"run_config": {"lr": 0.5, "tag": "${run_id} {{ x }}"}})

    assert (made.env["LR"], made.env["TAG"], made.args) == ("0.5", "${run_id} {{ x }}", ())
    assert json.loads(made.env["LAUNCH_CONFIG"])["lr"] == 0.5


def test_input_that_would_set_what_its_queue_fixes_is_refused_before_it_is_queued(
    job_api: InMemoryApi, tmp_path: Path
) -> None:
    make(job_api, tmp_path, inputs_as="env")
    job_api.create_run_queue("fixed", "local-process", config={"env": {"OMP_NUM_THREADS": "4"}})

    for given, told in (({"omp_num_threads": 64}, "OMP_NUM_THREADS.*set by the queue"), ({"path": "/x"}, "PATH")):
        with pytest.raises(LaunchError, match=told):
            launch_add(job="mine", queue_name="fixed", config=inputs(**given))
    assert items(job_api) == []


@pytest.mark.parametrize(
    ("inputs_as", "told"), [("args", "the argument '--text' has 150,007 bytes"), ("env", "TEXT has")]
)
def test_input_that_is_too_long_for_a_process_is_refused_before_it_is_queued(
    job_api: InMemoryApi, tmp_path: Path, inputs_as: str, told: str
) -> None:
    make(job_api, tmp_path, inputs_as=inputs_as)

    with pytest.raises(SpecError, match=told):
        launch_add(job="mine", queue_name="cpu", config=inputs(text="x" * 150_000))
    assert items(job_api) == []


def test_job_whose_schema_would_set_the_path_of_programs_is_not_made(job_api: InMemoryApi, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'path' would set"):
        make(job_api, tmp_path, inputs_as="env", schema={"properties": {"path": {"type": "string"}}})
    with pytest.raises(SpecError, match=r"Unknown value of inputs_as 'arg'\. Did you mean 'args'"):
        make(job_api, tmp_path, inputs_as="arg")


def test_job_of_the_default_way_is_the_version_that_it_was(job_api: InMemoryApi, tmp_path: Path) -> None:
    make(job_api, tmp_path)
    make(job_api, tmp_path, inputs_as="json")

    job = job_api.job("mine")
    assert job.version == 0
    assert b"inputs_as" not in job.document.dump()
    make(job_api, tmp_path, inputs_as="hydra")
    assert (job_api.job("mine").version, job_api.job("mine").inputs_as) == (1, "hydra")
    assert image_job(job_api.job("mine"), "r.example/mine:1", ("python",)).document.inputs_as == "hydra"


# --- inputs that nothing is known to read ---

NOTE = r"The job {name} has no input schema: its program must read \$LAUNCH_CONFIG\..*--inputs-as args"


def test_inputs_of_a_job_without_a_schema_are_noted_once(
    job_api: InMemoryApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(job_api, tmp_path, name="unread")
    make(job_api, tmp_path, name="styled", inputs_as="args")
    told = explain_launch(job="unread", queue_name="cpu", config=inputs(lr=0.5))
    assert re.search(NOTE.format(name="unread"), told.note)
    assert "unread" not in caplog.text

    launch_add(job="unread", queue_name="cpu")
    assert "unread" not in caplog.text
    launch_add(job="unread", queue_name="cpu", config=inputs(lr=0.5))
    launch_add_many([{"job": name, **inputs(seed=1)} for name in ("unread", "unread", "styled")], "cpu")
    launch_add(job="train", queue_name="cpu", config=inputs(lr=0.5))

    (noted,) = [record.getMessage() for record in caplog.records if "no input schema" in record.getMessage()]
    assert re.fullmatch(NOTE.format(name="unread") + ".*", noted)
    assert len(items(job_api)) == 6
