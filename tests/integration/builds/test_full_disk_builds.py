"""A disk that fills up during a build: the item says whose, nothing is left, and it works when there is room again."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest

from prefect_launch.client.queued_run import QueuedRun
from tests.conftest import engine_required
from tests.support.agent_thread import running
from tests.support.builds import BuildSite
from tests.support.docker_engine import DockerEngine, EngineMissingError, PrivateEngine
from tests.support.images import ensure_shell_image
from tests.support.live import until
from tests.support.small_disk import fill, small_disk
from tests.support.stopped_builds import build_steps

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts small disks: needs root"),
]

MEBIBYTE = 1024 * 1024
WRITES = "FROM {image}\nWORKDIR /app\nCOPY . .\nRUN dd if=/dev/urandom of=/big bs=1M count=8\n"
COPIES = "FROM {image}\nWORKDIR /app\nCOPY . .\n"


@pytest.fixture(scope="module")
def small_engine() -> Iterator[PrivateEngine]:
    """An engine whose data is on a disk of 160 MiB: BuildKit keeps what it was sent, too."""
    try:
        engine = PrivateEngine(disk_mebibytes=160)
    except EngineMissingError as missing:
        if engine_required():
            raise
        pytest.skip(str(missing))
    yield engine
    engine.stop()


@pytest.fixture
def client(small_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    """A client of that engine, which DOCKER_HOST leads to."""
    monkeypatch.setenv("DOCKER_HOST", small_engine.host)
    made = DockerEngine(small_engine.host).client()
    yield made
    made.close()


@pytest.fixture
def image(client: docker.DockerClient) -> str:
    return ensure_shell_image(client)


@pytest.fixture
def site(prefect_server: PrefectServerProcess, client: docker.DockerClient, tmp_path: Path, unique: str) -> BuildSite:
    return BuildSite(prefect_server.api_url, tmp_path, unique, resource="local-container")


def job(site: BuildSite, dockerfile: str, *, large: bool = False) -> None:
    """Make a job; a large one has 6 MB of code that do not shrink much."""
    code = {"main.sh": "echo ran", "Dockerfile": dockerfile}
    more = {"large.txt": random.Random(site.name).randbytes(3 * MEBIBYTE).hex()} if large else {}
    site.code_job({**code, **more}, dockerfile="Dockerfile", entrypoint="sh main.sh")


def built(client: docker.DockerClient) -> set[str]:
    return {tag for image in client.images.list("prefect-launch/built") for tag in image.tags}


def message_of_a_full_disk(site: BuildSite, run: QueuedRun) -> str:
    assert site.states(run) == ["Queued", "Pending", "Building", "Failed"], run.message
    assert run.message.startswith("[build] No space left on device: ")
    (page,) = site.artifacts(run)
    assert "disk full" in page.data
    return run.message


@pytest.mark.parametrize(("backend", "large"), [("engine", False), ("engine", True), ("buildkit", False)])
def test_full_disk_of_the_engine_fails_the_item_and_the_next_one_is_built_when_there_is_room(
    site: BuildSite, client: docker.DockerClient, small_engine: PrivateEngine, image: str, backend: str, large: bool
) -> None:
    job(site, (COPIES if large else WRITES).format(image=image), large=large)
    before = built(client)
    filler = fill(small_engine.data, leaving=4 * MEBIBYTE)
    try:
        (first,) = site.add()
        site.work_off(builder={"backend": backend})
    finally:
        filler.unlink()
    message = message_of_a_full_disk(site, first)
    assert f"the disk of the Docker Engine at {small_engine.host} (its data: {small_engine.data}) is full." in message
    assert "Free space there ('docker system df'" in message
    assert large or "the step 'RUN dd if=/dev/urandom" in message
    assert built(client) == before
    (second,) = site.add()
    site.work_off(builder={"backend": backend})
    assert site.states(second)[-1] == "Completed", second.message


@pytest.mark.parametrize("backend", ["engine", "buildkit"])
def test_context_that_finds_no_room_on_the_agents_machine_fails_the_item(
    site: BuildSite,
    client: docker.DockerClient,
    image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    job(site, COPIES.format(image=image), large=True)
    before = built(client)
    with small_disk(tmp_path / "scratch", 4) as scratch, monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        (first,) = site.add()
        site.work_off(builder={"backend": backend})
        assert list(scratch.iterdir()) == []
    message = message_of_a_full_disk(site, first)
    assert "the disk of the machine that builds is full. Free space there ('prefect-launch agent clean'" in message
    assert f"The build context cannot be written in '{scratch}'" in message
    assert built(client) == before
    (second,) = site.add()
    site.work_off(builder={"backend": backend})
    assert site.states(second)[-1] == "Completed", second.message


@pytest.mark.parametrize("backend", ["engine", "buildkit"])
def test_log_of_a_build_that_finds_no_room_in_the_agents_home_ends_the_build(
    site: BuildSite, client: docker.DockerClient, image: str, tmp_path: Path, backend: str
) -> None:
    lines = "i=0; while [ $i -lt 4000 ]; do echo line-$i-of-a-long-log; i=$((i+1)); done"
    job(site, f"{COPIES.format(image=image)}RUN echo begun; sleep 2; {lines}; sleep 60; : {site.name}\n")
    (run,) = site.add()
    with small_disk(tmp_path / "home", 8) as home, running(site.agent(builder={"backend": backend})):
        until(lambda: any(line.endswith("begun") for line in site.notes(run).splitlines()))
        fill(home, leaving=8 * 1024)
        until(lambda: run.item.is_terminal)
        message = message_of_a_full_disk(site, run)
        assert "the disk of the machine that builds is full." in message
        assert "The build's log" in message
        until(lambda: not build_steps(site.name))
    assert not [name for name in built(client) if name in site.notes(run)]
