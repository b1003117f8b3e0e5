"""Which secrets submitters may name, as a queue's owner says it on the command line and sees it."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.testing import InMemoryApi


def test_queue_is_created_with_secrets_allowed_and_shows_them() -> None:
    config = json.dumps({"env": {"TOKEN": "{{ prefect.blocks.secret.own }}"}})
    with use_api(InMemoryApi()):
        run = CliRunner().invoke
        made = run(app, ["queue", "create", "q", "-c", config, "--allow-secret", "a", "--allow-secret", "b"])
        assert made.exit_code == 0, made.output
        shown = json.loads(run(app, ["queue", "show", "q", "--json"]).output)
        assert shown["submitter_secrets"] == ["a", "b"]
        assert shown["config"]["resource_args"]["local-process"] == json.loads(config)
        assert "allowed secrets  a, b" in " ".join(run(app, ["queue", "show", "q"]).output.split("\n"))
        replaced = run(app, ["queue", "create", "q", "--replace", "--allow-secret", "c"])
        assert replaced.exit_code == 0, replaced.output
        assert json.loads(run(app, ["queue", "show", "q", "--json"]).output)["submitter_secrets"] == ["c"]
