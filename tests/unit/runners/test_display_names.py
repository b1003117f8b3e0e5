"""The names of runs in messages: what a person types in the resource's own tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefect_launch.runners.process import supervisor
from prefect_launch.runners.registry import runner_class

CONTAINER = "4f66ad9a0b2e" + "5" * 52
RUN = "launch-3b98f3c1-6c1f-4d6e-9d55-0a4d3a5f6f10-1"
FLOW_RUN = "0d5b2c5e-2f0f-4b3c-8a53-7f0a4d1a9b11"


@pytest.mark.parametrize(
    ("resource", "handle", "name"),
    [
        ("kubernetes", f"kind%2Fone/team/jobs.v1.batch/5f0c-uid/{RUN}@token", RUN),
        ("slurm", "4711@token", "4711"),
        ("ray", f"{RUN}@token", RUN),
        ("vertex", f"{RUN}@token", RUN),
        ("prefect", f"{FLOW_RUN}@token", FLOW_RUN),
        ("local-container", CONTAINER, "4f66ad9a0b2e"),
    ],
)
async def test_run_is_called_as_its_resource_calls_it(tmp_path: Path, resource: str, handle: str, name: str) -> None:
    assert await runner_class(resource)(tmp_path).display_name(handle) == name


async def test_local_process_is_called_by_its_process_id(tmp_path: Path) -> None:
    runner = runner_class("local-process")(tmp_path)
    (tmp_path / supervisor.STARTED).write_text(json.dumps({"pid": 4711}))
    assert await runner.display_name(str(tmp_path)) == "pid 4711"
