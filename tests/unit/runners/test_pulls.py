"""Whose credentials an image is pulled with."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.errors import ImagePullError
from prefect_launch.registries.base import Credentials
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.registries.keychain import Keychain, read_registries
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker.runner import ContainerImages, LocalContainerRunner
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine

HOST = "registry.example:5000"
ANN = Credentials("ann", "secret")


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InMemoryDocker:
    """An engine whose registry gives its image to nobody but Ann, on a machine that is logged in nowhere."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return InMemoryDocker(registry={f"{HOST}/train:1": {}}, registry_user=ANN)


def plan(folder: Path) -> RunPlan:
    return RunPlan(item_id="i", run_id="r", run_dir=folder, image=f"{HOST}/train:1")


async def test_image_is_pulled_with_the_block_that_the_config_names(docker: InMemoryDocker, tmp_path: Path) -> None:
    async def read_block(name: str, host: str) -> Credentials:
        assert (name, host) == ("of-ann", HOST)
        return ANN

    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    runner.registry = RemoteRegistries(
        Keychain(read_registries({HOST: {"credentials": "of-ann"}}), read_block=read_block)
    )

    await runner.prepare(plan(tmp_path))

    assert docker.pulled == [f"{HOST}/train:1"]


async def test_image_of_a_closed_registry_is_not_had_without_credentials(
    docker: InMemoryDocker, tmp_path: Path
) -> None:
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    runner.registry = RemoteRegistries()

    with pytest.raises(ImagePullError, match="unauthorized"):
        await runner.prepare(plan(tmp_path))


async def test_image_that_went_after_a_look_is_looked_for_again(tmp_path: Path) -> None:
    docker = InMemoryDocker(images={"train:1": {}})
    images = ContainerImages(InMemoryEngine(docker))
    wanted = RunPlan(item_id="i", run_id="r", run_dir=tmp_path, image="train:1")
    assert not await images.is_missing(wanted)
    del docker.images["train:1"]
    assert await images.is_missing(wanted)
    assert await images.take(wanted) is None
