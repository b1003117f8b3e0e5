"""Symbolic links in the binds of a container, which a job may have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.errors import QueueError, UnsafeSpecError
from prefect_launch.runners.base import HostFolder, RunPlan
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The owner's folder, with one of a team in it."""
    folder = tmp_path / "data"
    (folder / "vision" / "run").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return folder


async def binds(tmp_path: Path, docker: InMemoryDocker, option: dict[str, Any], *folders: HostFolder) -> list[str]:
    """Create a container with an option; return the sources of its mounts."""
    plan = RunPlan(item_id=str(uuid4()), run_id="r", run_dir=tmp_path, image="shell", options=option)
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    await runner.create(plan.model_copy(update={"host_folders": folders}))
    [made] = docker.containers.values()
    return [mount["Source"] for mount in made.config["HostConfig"]["Mounts"]]


@pytest.mark.parametrize("option", ["volume", "mount"])
@pytest.mark.parametrize("link", ["vision", "vision/l", "vision/l/deeper", "vision/inside"])
async def test_link_below_the_owner_s_folder_is_refused_and_no_container_is_made(
    tmp_path: Path, data: Path, option: str, link: str
) -> None:
    (data / "vision" / "l").symlink_to(tmp_path / "outside")
    (data / "vision" / "inside").symlink_to(data / "vision" / "run")
    if link == "vision":
        (data / "vision").rename(data / "moved")
        (data / "vision").symlink_to(tmp_path / "outside")
    path = data / link
    text = f"{path}:/d" if option == "volume" else f"type=bind,source={path},target=/d"
    docker = InMemoryDocker(images={"shell": {}})

    with pytest.raises(UnsafeSpecError, match=f"The folder '{path}' is not bound.*below '{data}'.*symbolic link"):
        await binds(tmp_path, docker, {option: text}, HostFolder(path=str(path), below=str(data), is_bounded=True))
    assert docker.containers == {}


async def test_link_of_the_owner_is_followed_and_the_engine_gets_the_real_folder(tmp_path: Path, data: Path) -> None:
    (tmp_path / "disk").symlink_to(data)
    path, below = f"{tmp_path}/disk/vision/run", f"{tmp_path}/disk"
    docker = InMemoryDocker(images={"shell": {}})
    option = {"volume": [f"{path}:/d", f"{tmp_path}/disk:/own", "cache:/c"]}
    found = await binds(tmp_path, docker, option, HostFolder(path=path, below=below, is_bounded=False))
    assert found == [str(data / "vision" / "run"), f"{tmp_path}/disk", "cache"]


async def test_folder_that_the_agent_cannot_see_is_refused(tmp_path: Path, data: Path) -> None:
    docker = InMemoryDocker(images={"shell": {}})
    folder = HostFolder(path=f"{data}/sound", below=str(data), is_bounded=True)
    with pytest.raises(QueueError, match="or this agent cannot look at it"):
        await binds(tmp_path, docker, {"volume": f"{data}/sound:/d"}, folder)
    assert docker.containers == {}


async def test_engine_on_another_host_binds_only_what_the_owner_has_bounded(tmp_path: Path, data: Path) -> None:
    docker = InMemoryDocker(images={"shell": {}}, is_local=False)
    option = {"volume": "/there/vision:/d"}
    free = HostFolder(path="/there/vision", below="/there", is_bounded=False)
    with pytest.raises(UnsafeSpecError, match="a pattern or an enum"):
        await binds(tmp_path, docker, option, free)
    assert docker.containers == {}
    assert await binds(tmp_path, docker, option, free.model_copy(update={"is_bounded": True})) == ["/there/vision"]
