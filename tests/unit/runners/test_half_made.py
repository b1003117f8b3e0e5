"""A container is whole once all that its job finds at its start is in it: an agent may be killed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.errors import UnreachableError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine


class _FailingEngine(InMemoryEngine):
    async def put_archive(self, container_id: str, path: str, archive: Any) -> None:
        raise UnreachableError("The Docker Engine does not answer. Start it.")


async def test_container_without_its_code_is_not_whole(tmp_path: Path) -> None:
    docker = InMemoryDocker(images={"shell": {}})
    code, item = tmp_path / "code", str(uuid4())
    code.mkdir()
    (code / "run.sh").write_text("exit 0")
    plan = RunPlan(
        item_id=item,
        run_id="r",
        run_dir=tmp_path,
        image="shell",
        command=("sh", "run.sh"),
        code_dir=code,
        labels={Labels.ITEM: item},
    )

    with pytest.raises(UnreachableError):
        await LocalContainerRunner(tmp_path, _FailingEngine(docker)).create(plan)
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    [half] = await runner.find({Labels.ITEM: item})
    await runner.create(plan)
    [whole] = await runner.find({Labels.ITEM: item})

    assert (half.is_complete, whole.is_complete) == (False, True)
    assert half.handle == whole.handle
