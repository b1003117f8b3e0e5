"""Which built images go from an engine when they take too much, and which stay."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from prefect_launch.agent.housekeeping.caches import ImageCache
from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.image_records import ImageUsage
from prefect_launch.core.disk_cache import EvictionReport

if TYPE_CHECKING:
    from docker import DockerClient

    from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.engine

MEBIBYTE = 1024 * 1024


class BuiltImages:
    """A home, and images of a test's own; each is a mebibyte more than its base."""

    def __init__(self, client: DockerClient, home: Path, base: str) -> None:
        self.client = client
        self.home = home
        self._base = base
        self._names: list[str] = []

    def image(self, hours: float = 0.0, *, noted: bool = True) -> str:
        """Make an image that was last used some hours ago; return its tag."""
        tag = uuid4().hex
        name = f"launch-test/built:{tag}"
        command = ["dd", "if=/dev/zero", "of=/data", "bs=1M", "count=1"]
        container = self.client.containers.create(self._base, command)
        container.start()
        container.wait(timeout=120)
        label = f'LABEL prefect-launch.base="{self._base}@sha256:x" made="{tag}"'
        container.commit("launch-test/built", tag=tag, changes=[label])
        container.remove()
        self._names.append(name)
        if noted:
            ImageUsage(self.home).record(tag, [name])
            then = time.time() - hours * 3600
            os.utime(self.home / "images" / tag, (then, then))
        return tag

    def names(self) -> set[str]:
        """The tags of this test's images that are there."""
        there = {tag for image in self.client.images.list() for tag in image.tags}
        return {name.rpartition(":")[2] for name in self._names if name in there}

    async def evict(self, limit: float | None, *, dry_run: bool = False) -> EvictionReport:
        engine = BuildEngine()
        try:
            return await ImageCache(self.home, None if limit is None else int(limit), lambda: engine).evict(
                dry_run=dry_run
            )
        finally:
            await engine.aclose()

    def clear(self) -> None:
        for name in {name for name in self._names if name.rpartition(":")[2] in self.names()}:
            self.client.images.remove(name, force=True)


@pytest.fixture
def images(engine: DockerEngine, shell_image: str, tmp_path: Path) -> Iterator[BuiltImages]:
    client = engine.client()
    images = BuiltImages(client, tmp_path, shell_image)
    yield images
    images.clear()
    client.close()


async def test_images_over_the_limit_go_the_one_last_used_longest_ago_first(images: BuiltImages) -> None:
    old, older, young = images.image(hours=2), images.image(hours=3), images.image()
    somebody_elses = images.image(noted=False)
    told = await images.evict(2.5 * MEBIBYTE, dry_run=True)
    assert images.names() == {old, older, young, somebody_elses}
    done = await images.evict(2.5 * MEBIBYTE)
    assert [entry.name for entry in told.evicted] == [entry.name for entry in done.evicted] == [older]
    assert done.evicted[0].size_bytes == pytest.approx(MEBIBYTE, rel=0.1)  # its base is not counted
    assert images.names() == {old, young, somebody_elses}
    assert {note.name for note in ImageUsage(images.home).records()} == {old, young}


async def test_image_that_a_container_needs_or_that_somebody_has_named_stays(images: BuiltImages) -> None:
    needed, named, free = images.image(hours=3), images.image(hours=3), images.image(hours=3)
    container = images.client.containers.create(f"launch-test/built:{needed}", ["true"])
    own = f"launch-test/somebodys-own:{named[:8]}"
    images.client.images.get(f"launch-test/built:{named}").tag(own)
    try:
        assert [entry.name for entry in (await images.evict(0)).evicted] == [free]
        assert images.names() == {needed, named}
        container.remove()
        assert [entry.name for entry in (await images.evict(0)).evicted] == [needed]
    finally:
        images.client.images.remove(own)


async def test_image_used_lately_stays_and_so_does_one_used_since_it_was_measured(images: BuiltImages) -> None:
    tag = images.image(hours=1)
    engine = BuildEngine()
    cache = ImageCache(images.home, 0, lambda: engine)
    (entry,) = await cache.entries()
    ImageUsage(images.home).record(tag, [])
    assert not await cache.remove(entry)
    await engine.aclose()
    assert (await images.evict(0)).evicted == ()
    assert images.names() == {tag}


async def test_note_of_an_image_that_was_removed_by_hand_goes(images: BuiltImages) -> None:
    tag = images.image(hours=1)
    images.client.images.remove(f"launch-test/built:{tag}")
    await images.evict(None, dry_run=True)
    assert [note.name for note in ImageUsage(images.home).records()] == [tag]
    assert (await images.evict(None)).evicted == ()
    assert ImageUsage(images.home).records() == []


async def test_home_that_has_built_nothing_asks_no_engine(tmp_path: Path) -> None:
    engine = BuildEngine(f"unix://{tmp_path}/nobody.sock")
    assert (await ImageCache(tmp_path, 0, lambda: engine).evict()).evicted == ()
    ImageUsage(tmp_path).record("0123", ["launch-test/built:0123"])
    done = await ImageCache(tmp_path, 0, lambda: engine).evict()
    assert f"unix://{tmp_path}/nobody.sock does not answer" in (done.unreachable or "")
    assert [note.name for note in ImageUsage(tmp_path).records()] == ["0123"]
