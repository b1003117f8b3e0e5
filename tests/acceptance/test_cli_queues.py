"""Queues through the command line, on a real server."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.prefect_server import PrefectServerProcess


@pytest.fixture
def name(prefect_server: PrefectServerProcess) -> str:
    """The name of a queue that is not there yet."""
    return f"q-{uuid4().hex[:8]}"


def test_queue_is_made_shown_paused_and_deleted(launch_cli: Cli, name: str) -> None:
    launch_cli("queue", "create", name, "--concurrency", "2")
    taken = launch_cli("queue", "create", name, code=1)
    launch_cli("queue", "pause", name)
    paused = json.loads(launch_cli("queue", "show", name, "--json").stdout)
    launch_cli("queue", "resume", name)
    listed = {entry["name"]: entry for entry in json.loads(launch_cli("queue", "list", "--json").stdout)}
    table = launch_cli("queue", "list").stdout
    gone = launch_cli("queue", "delete", name)
    unknown = launch_cli("queue", "show", name, code=1)

    assert "there already" in taken.stderr
    assert (paused["is_paused"], paused["concurrency_limit"], paused["waiting"]) == (True, 2, 0)
    assert listed[name]["is_paused"] is False
    assert f"{name} " in table
    assert "0 items" in gone.stdout
    assert unknown.stderr.startswith(f"Error: Unknown queue '{name}'")


def test_queue_with_template_variables_is_made_of_files(launch_cli: Cli, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("shm-size: '{{shm}}'\n")
    (tmp_path / "variables.json").write_text('{"shm": {"type": "string", "enum": ["1g", "2g"], "default": "1g"}}')
    given = ("-r", "local-container", "-c", "config.yaml", "--variables", "variables.json")

    limits = ("--limit", "memory=16g", "--limit", "timeout=1h")
    launch_cli("queue", "create", name, *given)
    launch_cli("queue", "create", name, *given, "--replace", "--allow", "network", "--concurrency", "3", *limits)
    shown = json.loads(launch_cli("queue", "show", name, "--json").stdout)
    wrong = launch_cli("add", "-d", "alpine", "-q", name, "-v", "shm=9g", code=1)
    long = launch_cli("add", "-d", "alpine", "-q", name, "--timeout", "2h", code=1)
    added = json.loads(launch_cli("add", "-d", "alpine", "-q", name, "-v", "shm=2g", "--json").stdout)

    assert shown["limits"] == {"memory": "16g", "timeout": "1h"}
    assert shown["config"] == {
        "resource_args": {"local-container": {"shm-size": "{{shm}}"}},
        "limits": shown["limits"],
    }
    assert shown["template_variables"]["shm"]["enum"] == ["1g", "2g"]
    assert (shown["submitter_options"], shown["concurrency_limit"]) == (["network"], 3)
    assert "'9g'" in wrong.stderr
    assert "at most 1 h is allowed on this queue" in long.stderr
    item = json.loads(launch_cli("item", "show", added["id"], "--json").stdout)
    assert (item["image"], item["template_variables"]) == ("alpine", {"shm": "2g"})


def test_queue_with_waiting_items_is_deleted_only_when_that_is_said(launch_cli: Cli, name: str) -> None:
    launch_cli("queue", "create", name, "-r", "local-container")
    launch_cli("add", "-d", "alpine", "-q", name)

    refused = launch_cli("queue", "delete", name, code=1)
    gone = launch_cli("queue", "delete", name, "--yes")

    assert "--yes" in refused.stderr
    assert "with 1 item that waited" in gone.stdout
