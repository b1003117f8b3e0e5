"""Inputs of an argparse script, read from its source: what argparse itself makes of them is the measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import create_job
from prefect_launch.client.create_job import JobRequest, draft_job
from prefect_launch.errors import InputError, LaunchError
from prefect_launch.jobs.argparse_schema import read_argparse
from prefect_launch.jobs.model import CONFIG_INPUTS
from prefect_launch.jobs.schema import check_inputs, inputs_in_order, plain_schema, with_positions
from prefect_launch.sources.git_command import Git
from prefect_launch.spec.input_styles import input_arguments
from prefect_launch.testing import InMemoryApi
from tests.support.git_repository import Repository

SCRIPT = """
import argparse
import pathlib
import sys

sys.exit("it was run")


def make_parser():
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("data", help="Where the data is.")
    parser.add_argument("more", nargs="*", type=int)
    parser.add_argument("-l", "--learning-rate", type=float, default=1e-3, help="Step (default: %(default)s, 5%%)")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--opt", choices=["sgd", "adam"], default="adam")
    parser.add_argument("--layers", nargs="+", type=int, default=(64, 32))
    parser.add_argument("--size", nargs=2, type=float)
    parser.add_argument("--out", type=pathlib.Path, default="out dir")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--no-cache", dest="cache", action="store_false")
    parser.add_argument("--shuffle", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=False)
    group = parser.add_argument_group("model")
    group.add_argument("--name")
    parser.add_argument("--version", action="version", version="1")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--gpu", type=int, default=0)
    one.add_argument("--cpu", type=int, default=0)
    return parser
"""


def parser_of(script: str) -> argparse.ArgumentParser:
    names: dict[str, Any] = {}
    exec(script.replace('sys.exit("it was run")', ""), names)
    made: argparse.ArgumentParser = names["make_parser"]()
    return made


def stored(script: str) -> dict[str, Any]:
    """The schema as a job has it."""
    return with_positions(plain_schema(read_argparse(script.encode(), "train.py").schema))


@pytest.mark.parametrize(
    ("given", "by_hand"),
    [
        ({}, ""),
        ({"learning-rate": 0.5, "opt": "sgd"}, "-l 0.5 --opt sgd"),
        ({"more": [1, 2], "layers": [7]}, "1 2 --layers 7"),
        ({"size": [1.5, -2]}, "--size 1.5 -2"),
        ({"amp": True, "no-cache": True, "shuffle": False, "pin": True}, "--amp --no-cache --no-shuffle --pin"),
        ({"amp": False, "no-cache": False, "shuffle": True, "pin": False}, ""),
        ({"out": "-x y", "name": "--odd"}, "--out=-x\ty --name=--odd"),
        ({"gpu": 3}, "--gpu 3"),
    ],
)
def test_arguments_of_the_inputs_mean_to_argparse_what_they_mean_by_hand(given: dict[str, Any], by_hand: str) -> None:
    schema, parser = stored(SCRIPT), parser_of(SCRIPT)

    inputs = check_inputs(schema, {"data": "d 1", "epochs": 3, **given})
    words = input_arguments(dict(sorted(inputs.items())), "args", schema)

    typed = ["d 1", *(word.replace("\t", " ") for word in by_hand.split(" ") if word), "--epochs", "3"]
    parsed = vars(parser.parse_args(words))
    assert {**parsed, "layers": list(parsed["layers"])} == {
        **vars(parser.parse_args(typed)),
        "layers": given.get("layers", [64, 32]),
    }


def test_positional_value_that_begins_with_a_dash_is_none_of_the_options() -> None:
    given = {"data": "-x", "more": [-1, 2], "epochs": 3, "layers": [7]}

    words = input_arguments(given, "args", stored(SCRIPT), ["--opt", "sgd"])

    parsed = parser_of(SCRIPT).parse_args(words)
    assert (parsed.data, parsed.more, parsed.layers, parsed.opt) == ("-x", [-1, 2], [7], "sgd")


def test_schema_has_what_the_parser_checks() -> None:
    schema = stored(SCRIPT)

    assert list(inputs_in_order(schema)) == [
        *("data", "more", "learning-rate", "epochs", "opt", "layers", "size", "out", "amp", "no-cache", "shuffle"),
        *("pin", "name", "gpu", "cpu"),
    ]
    assert schema["required"] == ["data", "epochs"]
    assert schema["properties"]["learning-rate"]["description"] == "Step (default: 0.001, 5%)"
    for wrong in ({"opt": "rmsprop"}, {"size": [1]}, {"learning-rat": 1}, {"epochs": 1.5}, {"amp": "yes"}):
        with pytest.raises(InputError):
            check_inputs(schema, {"data": "d", "epochs": 3, **wrong})


@pytest.mark.parametrize(
    ("call", "rules", "told"),
    [
        ('"--x", default=os.cpu_count(), type=int', {"type": "integer"}, "x: its default is not known here"),
        ('"--x", default="3", type=int', {"type": "integer"}, "x: its default is not known here"),
        ('"--x", default=argparse.SUPPRESS', {"type": "string"}, None),
        ('"--x", default=0.5, dest="set"', {"type": "string"}, "x: its default is not known here"),
        ('"--x", choices=sorted(NAMES)', {"type": "string"}, "x: its choices are computed"),
        ('"--x", choices={"b", "a"}', {"type": "string", "enum": ["a", "b"]}, None),
        (
            '"--x", type=positive, default=[1]',
            {"anyOf": [{"type": "number"}, {"type": "string"}]},
            "x: its type positive is the script's own",
        ),
        ('"--x", type=bool', {"anyOf": [{"type": "number"}, {"type": "string"}]}, "takes every text but '' for true"),
        ('"--x", action="append"', None, "x has action='append': it is left out"),
        ('"--x", action=Own', None, "x has action=Own: it is left out"),
        ('"--x", nargs=argparse.REMAINDER', None, "x has nargs=argparse.REMAINDER: it is left out"),
        ('"-x", type=int', None, "-x has no long name: it is left out"),
        ('f"--{NAME}"', None, "an argument in line 5 has a computed name"),
        ('"--x", **MORE', None, "x has computed options: it is left out"),
    ],
)
def test_what_is_not_written_literally_stays_open_and_is_told(
    call: str, rules: dict[str, Any] | None, told: str | None
) -> None:
    script = f"""import argparse
parser = argparse.ArgumentParser()
parser.set_defaults(set=1)
parser.add_argument("--known")
parser.add_argument({call})
"""
    schema, notes = read_argparse(script.encode(), "train.py")

    assert schema["properties"].get("x") == rules
    assert schema["additionalProperties"] == (rules is None)
    assert bool(notes) == bool(told)
    assert (told or "") in " ".join(notes)


def test_arguments_of_subcommands_are_left_out() -> None:
    script = """from argparse import ArgumentParser
parser = ArgumentParser()
parser.add_argument("--top")
fit = parser.add_subparsers().add_parser("fit")
fit.add_argument("--lr")
"""
    schema, notes = read_argparse(script.encode(), "train.py")

    assert list(schema["properties"]) == ["top"]
    assert notes == ("lr is of a subcommand: it is left out",)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("add_common(parser)", "what add_common adds to its parser is not read"),
        ("Trainer.add_argparse_args(parser)", "what Trainer.add_argparse_args adds to its parser is not read"),
        ("argparse.ArgumentParser(parents=[common])", "what argparse.ArgumentParser adds to its parser is not read"),
        ("argparse.ArgumentParser(parents=[parser])", None),
        ("add_own(parser)", None),
    ],
)
def test_parser_that_gets_arguments_elsewhere_takes_inputs_that_are_not_seen(line: str, told: str | None) -> None:
    script = f"""import argparse
def add_own(parser):
    parser.add_argument("--own")
parser = argparse.ArgumentParser()
parser.add_argument("--known")
{line}
"""
    schema, notes = read_argparse(script.encode(), "train.py")

    assert list(schema["properties"]) == ["own", "known"]
    assert schema["additionalProperties"] == bool(told)
    assert notes == ((told,) if told else ())


# --- jobs ---


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "inside").mkdir(parents=True)
    (folder / "train.py").write_text(SCRIPT)
    (folder / "inside" / "deep.py").write_text("import argparse\nargparse.ArgumentParser().add_argument('--deep')\n")
    (folder / "click.py").write_text("import click\n")
    (folder / "broken.py").write_text("def\n")
    (folder / "run.sh").write_text("exit\n")
    return folder


def test_job_of_a_folder_has_the_inputs_of_its_script_as_arguments(code: Path) -> None:
    api = InMemoryApi()
    given: dict[str, Any] = {"entrypoint": "python -u train.py", "inputs_from": "argparse", "api": api}

    job = create_job(code, "code", **given)
    inside = create_job(code, "code", build_context="inside", **{**given, "entrypoint": "python deep.py"})
    styled = create_job(code, "code", inputs_as="env", **{**given, "entrypoint": "python inside/deep.py"})

    assert job.inputs_as == "args"
    assert list(inputs_in_order(job.schema))[:2] == ["data", "more"]
    assert list(inputs_in_order(inside.schema)) == list(inputs_in_order(styled.schema)) == ["deep"]
    assert styled.inputs_as == "env"


async def test_job_of_a_commit_has_the_inputs_of_its_script(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit(train=SCRIPT.replace('"--name"', '"--name", default=NAME'))
    request = JobRequest(path=repository.url, job_type="git", entrypoint=("python", "train.py"), inputs_from="argparse")

    draft, _ = await draft_job(request, git=Git(allowed_protocols=("file",)))

    inputs = (draft.document.input_schemas or {})[CONFIG_INPUTS]
    assert (draft.document.inputs_as, len(inputs["properties"])) == ("args", 15)
    assert "Inputs of train.py: name: its default is not known here, and is left to the script." in caplog.text


@pytest.mark.parametrize(
    ("entry_point", "options", "told"),
    [
        ("python click.py", {}, "'click.py' has no argparse parser"),
        ("python broken.py", {}, "'broken.py' cannot be read: .*line 1"),
        ("sh run.sh", {}, "'sh run.sh' names no Python script"),
        ("python -m train", {}, "'python -m train' names no Python script"),
        ("python train.py", {"schema": {}}, "Leave one of them out"),
        ("python train.py", {"inputs_from": "click"}, "Unknown value of inputs_from 'click'"),
    ],
)
def test_script_whose_inputs_cannot_be_read_makes_no_job(
    code: Path, entry_point: str, options: dict[str, Any], told: str
) -> None:
    api = InMemoryApi()
    with pytest.raises(LaunchError, match=told):
        create_job(code, "code", entrypoint=entry_point, api=api, **{"inputs_from": "argparse", **options})
    with pytest.raises(LaunchError, match="its script is in the image"):
        create_job("busybox:1", "image", inputs_from="argparse", api=api)
    assert api.jobs() == []
