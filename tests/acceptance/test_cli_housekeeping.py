"""Cleaning a machine from the command line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.builds.image_records import ImageUsage
from tests.acceptance.conftest import Cli
from tests.support.prefect_server import PrefectServerProcess


def test_clean_tells_first_and_then_removes_what_no_item_needs(
    prefect_server: PrefectServerProcess, launch_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(home))
    queue = f"clean-{uuid4().hex[:8]}"
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text("print('here')\n")
    launch_cli("queue", "create", queue)
    launch_cli("job", "create", "code", str(code), "-E", "python main.py", "-n", queue)
    item = json.loads(launch_cli("add", "-j", queue, "-q", queue, "--json").stdout)["id"]
    launch_cli("agent", "start", "-q", queue, "--until-empty", "--name", queue)
    (folder,) = (home / "runs" / item).glob("1-*")
    then = time.time() - 3600
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then), follow_symlinks=False)
    told = launch_cli("agent", "clean", "--dry-run", "--keep-runs", "0").stdout
    assert f"{item}/{folder.name}" in told
    assert "Would remove 1 work folders" in told
    assert folder.exists()
    report = json.loads(launch_cli("agent", "clean", "--keep-runs", "0", "--json").stdout)
    assert [entry["name"] for cache in report["caches"] for entry in cache["evicted"]] == [f"{item}/{folder.name}"]
    assert not folder.exists()
    assert "Removed nothing" in launch_cli("agent", "clean").stdout


def test_clean_says_that_images_are_not_seen_while_their_engine_is_away(
    prefect_server: PrefectServerProcess, launch_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(home))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    ImageUsage(home).record("0123", ["prefect-launch/built:0123"])
    told = launch_cli("agent", "clean", "--keep-images", "1g").stdout
    assert f"built images: not seen (limit 1.0 GiB): The Docker Engine at unix://{tmp_path}/nobody.sock" in told
    assert "does not answer" in told
    assert "built images: 0 B" not in told
    *_, images = json.loads(launch_cli("agent", "clean", "--json").stdout)["caches"]
    assert "does not answer" in images["unreachable"]
