"""An engine to push from, and images to push."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.builds.build_engine import BuildEngine
from tests.support.docker_engine import DockerEngine


@pytest.fixture(autouse=True)
def docker_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's Docker is logged in nowhere."""
    folder = tmp_path / "docker-config"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


@pytest.fixture
async def push_engine(engine: DockerEngine) -> AsyncIterator[BuildEngine]:
    """The run's engine, as one that pushes."""
    made = BuildEngine()
    yield made
    await made.aclose()


@pytest.fixture
def image_in(engine: DockerEngine, shell_image: str) -> Iterator[Callable[[str], str]]:
    """Gives an image of its own a name in a registry, on this machine alone; gone from the engine afterwards."""
    client = engine.client()
    made = []

    def name_in(host: str) -> str:
        container = client.containers.create(shell_image, ["true"])
        name = f"{host}/team/train-{uuid4().hex[:8]}"
        # Bytes that do not shrink, and that no registry has yet: the layer is as large as it looks.
        container.put_archive("/", _archive("noise", os.urandom(1_000_000)))
        container.commit(name, "1")
        container.remove()
        made.append(f"{name}:1")
        return made[-1]

    yield name_in
    for name in made:
        for image in client.images.list(name.rpartition(":")[0]):
            client.images.remove(image.id, force=True)
    client.close()


def _archive(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
