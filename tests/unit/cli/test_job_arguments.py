"""Arguments of a job's program on the command line: what follows `--`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prefect_launch.cli.main import run
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items

ADD = ["add", "-j", "train", "-q", "cpu", "--set", "lr=0.1"]


def test_words_after_two_dashes_are_arguments_of_the_item_after_those_of_its_config(
    job_api: InMemoryApi, capsys: pytest.CaptureFixture[str]
) -> None:
    config = '{"overrides": {"args": ["--data", "big"]}}'

    assert run([*ADD, "-c", config, "--name", "mine", "--", "--lr", "0.5", "-q", "--", "a b"]) == 0

    (item,) = items(job_api)
    assert item.parameters["overrides"]["args"] == ["--data", "big", "--lr", "0.5", "-q", "--", "a b"]
    assert item.parameters["overrides"]["run_config"]["lr"] == 0.1
    capsys.readouterr()
    assert run(["item", "show", "mine"]) == 0
    assert "--data big --lr 0.5 -q -- 'a b'" in capsys.readouterr().out


def test_dry_run_shows_the_command_with_its_arguments(job_api: InMemoryApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ADD, "--explain", "--", "--more", "a b"]) == 0
    assert "python main.py --more 'a b'" in capsys.readouterr().out

    assert run(["add", "-j", "box", "-q", "gpu", "--explain", "--json", "--", "--more"]) == 0
    assert json.loads(capsys.readouterr().out)["creates"]["Cmd"] == ["--more"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*ADD, "epochs=3"], "Got unexpected extra argument (epochs=3)"),
        ([*ADD, "epochs=3", "--", "--more"], "Got unexpected extra argument (epochs=3)"),
        ([*ADD, "--more"], "No such option: --more; arguments of the program follow '--'"),
        ([*ADD, "-c", '{"overrides": {"args": "--a"}}', "--", "--more"], "override args must be a list of strings"),
        (["job", "create", "code", "--", "."], "Missing argument 'DIR'"),
        (["job", "create", "image", "busybox:1", "--", "--more"], "Give it with -E"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_argument_of_the_job_is_refused_as_ever(
    job_api: InMemoryApi, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(arguments) == 1
    assert told in capsys.readouterr().err
    assert items(job_api) == []


@pytest.mark.parametrize("kind", ["code", "image"])
def test_job_that_is_made_with_arguments_has_them_in_its_entry_point(
    job_api: InMemoryApi, tmp_path: Path, kind: str
) -> None:
    source = {"code": str(tmp_path / "code"), "image": "team/train:1"}[kind]

    assert run(["job", "create", kind, source, "-n", "made", "-E", "python main.py", "--", "--lr", "0.1", "a b"]) == 0

    assert job_api.job("made").entry_point == ("python", "main.py", "--lr", "0.1", "a b")


def test_job_that_reads_its_inputs_from_a_parser_is_described_with_them(
    job_api: InMemoryApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import argparse\nargparse.ArgumentParser().add_argument('--lr', type=float, default=0.5)\n"
    (tmp_path / "code" / "train.py").write_text(script)
    options = ["-n", "parsed", "-E", "python train.py", "--inputs-from", "argparse"]

    assert run(["job", "create", "code", str(tmp_path / "code"), *options]) == 0
    capsys.readouterr()
    assert run(["job", "describe", "parsed"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^inputs as +args$", shown, re.MULTILINE)
    assert re.search(r"^lr +number +0\.5", shown, re.MULTILINE)

    assert run(["add", "-j", "parsed", "-q", "cpu", "--set", "lr=2", "--explain"]) == 0
    assert re.search(r"^command +python train.py --lr=2$", capsys.readouterr().out, re.MULTILINE)
