"""From the address of a run on a W&B server to the log of its repetition, through the command line alone."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.prefect_server import PrefectServerProcess
from tests.support.wandb_server import KEY, WandbServer, serving

TRAIN = """
import json, os, sys
print("lr", json.loads(os.environ["LAUNCH_CONFIG"])["lr"], "with", sys.argv[1:], flush=True)
"""


def test_run_of_a_wandb_server_is_queued_with_another_input_and_run_here_as_it_was(
    launch_cli: Cli, prefect_server: PrefectServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, run_id = (f"wandb-{uuid4().hex[:8]}" for _ in range(2))
    about = json.dumps({"program": "train.py", "args": ["--seed", "7"]})
    wandb = WandbServer()
    wandb.add_run(f"team/digits/{run_id}", {"wandb-metadata.json": about, "code/train.py": TRAIN}, {"lr": 0.1})
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_LAUNCH_WANDB_CONFIG", str(tmp_path / "wandb.yaml"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    launch_cli("queue", "create", queue)

    with serving(wandb) as address:
        uri = f"{address}/team/digits/runs/{run_id}"
        (tmp_path / "wandb.yaml").write_text("hosts: {}\n")
        unlisted = launch_cli("add", "-u", uri, "-q", queue, code=1)
        assert wandb.requests == []
        (tmp_path / "wandb.yaml").write_text(f"hosts: {{'{address}': }}\n")
        added = json.loads(launch_cli("add", "-u", uri, "-q", queue, "--set", "lr=0.5", "--json").stdout)
        here = launch_cli("run", "-u", uri, "--", "--seed", "8")
    agent = launch_cli("agent", "start", "-q", queue, "--until-empty")

    assert f"'hosts: {{{address}: SECRET-BLOCK}}'" in unlisted.stderr
    assert added["job"] == f"team/digits/run-{run_id}:v0"
    assert launch_cli("item", "logs", str(added["id"])).stdout == "lr 0.5 with ['--seed', '7']\n"
    assert "lr 0.1 with ['--seed', '7', '--seed', '8']" in here.stdout
    assert KEY not in "".join([agent.stdout, agent.stderr, here.stdout, here.stderr])
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
