"""`add --many`: an item for each launch config of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    made = InMemoryApi()
    made.create_run_queue("gpu", "local-container")
    with use_api(made):
        yield made


def add(file: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["add", "-d", "busybox:1", "-q", "gpu", "--many", str(file), *more])


def test_same_command_again_adds_what_is_missing_and_nothing_twice(api: InMemoryApi, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(json.dumps({"overrides": {"run_config": {"seed": seed}}}) + "\n" for seed in range(3)))
    assert "Added 3 items to the queue gpu, with run ids many-" in add(file).output
    assert "3 were there already. To add them once more, give another --run-id." in add(file).output
    assert len(items(api)) == 3
    assert "Added 3 items" in add(file, "--run-id", "again").output
    file.write_text(file.read_text() + '{"priority": "high"}\n')
    told = json.loads(add(file, "--run-id", "again", "--json").output)
    assert (told["added"], told["there"], len(told["ids"])) == (1, 3, 4)
    seeds = [item.parameters.get("overrides", {}).get("run_config", {}).get("seed") for item in items(api)]
    assert sorted(map(str, seeds)) == ["0", "0", "1", "1", "2", "2", "None"]


def test_list_that_is_empty_adds_nothing_and_says_so(api: InMemoryApi, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    file.write_text("[]")
    assert add(file).output == f"Nothing to add: the list in {file} is empty.\n"
    assert json.loads(add(file, "--json").output)["added"] == 0
    empty = tmp_path / "runs.yaml"
    empty.write_text("# none yet\n")
    assert add(empty).output == f"Nothing to add: the list in {empty} is empty.\n"


def test_entry_that_is_refused_is_named(api: InMemoryApi, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text('{"priority": "high"}\n{"priority": "hgih"}\n')
    assert str(add(file).exception).startswith("Spec 2 of 2: ")
    file.write_text('{"priority": "high"}\n{"priority"}\n')
    assert str(add(file).exception).startswith(f"Line 2 of the file '{file}' of --many is no JSON: ")
    file.write_text('{"priority": "high"}\n3\n')
    assert "must hold a list of mappings, and its entry 2 is int '3'." in str(add(file).exception)
    assert items(api) == []


def test_file_that_is_no_list_and_options_of_one_item_are_refused(api: InMemoryApi, tmp_path: Path) -> None:
    file = tmp_path / "runs.yaml"
    file.write_text("name: one\n")
    assert "must hold a list of mappings, not dict" in str(add(file).exception or add(file).output)
    assert "--many adds a list of items, and --wait is for one." in str(add(file, "--wait").exception)
    assert items(api) == []
