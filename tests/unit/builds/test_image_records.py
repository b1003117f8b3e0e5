"""One build at a time, whoever asks; the others wait, see its log, and end as it does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from prefect_launch.builds import image_records as build_lease
from prefect_launch.builds.builder import LineSink
from prefect_launch.builds.engine_builder import container_name, is_left_behind, this_place
from prefect_launch.builds.image_records import BuildLease
from prefect_launch.errors import BuildError, InfrastructureError
from tests.support.bench import eventually

#: Begins a build of the key "image" in the home that it is given, says so, and never ends by itself.
BUILDS_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from uuid import uuid4
from prefect_launch.builds.image_records import BuildLease

async def is_built():
    return False

async def build(log):
    log("half of it\\n")
    await asyncio.sleep(600)

asyncio.run(BuildLease(Path(sys.argv[1]), "image").build_once(
    "agent killed", uuid4(), lambda text: print(text, flush=True), is_built=is_built, build=build))
"""


class Yard:
    """A place for images, and those who ask for one image."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.images = 0
        self.builds = 0
        self.lines: list[str] = []
        self.failure: Exception | None = None  # Of the next build alone.
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def is_built(self) -> bool:
        return self.images > 0

    async def build(self, log: LineSink) -> None:
        self.builds += 1
        log("build line\n")
        self.begun.set()
        await self.may_end.wait()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        self.images += 1

    async def ask(
        self, name: str = "box", *, log: Callable[[str], None] | None = None, item: UUID | None = None
    ) -> None:
        lease = BuildLease(self.home, "image")
        sink = log or self.lines.append
        await lease.build_once(f"agent {name}", item or uuid4(), sink, is_built=self.is_built, build=self.build)

    async def waiting(self, count: int) -> None:
        """Return when so many who wait have seen the log of the build."""
        await eventually(lambda: self.count("build line"), lambda seen: seen > count)

    async def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    def left(self) -> list[Path]:
        return list((self.home / "builds").iterdir())


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Yard:
    monkeypatch.setattr(build_lease, "_POLL_SECONDS", 0.02)
    return Yard(tmp_path)


async def test_eight_who_ask_at_once_get_one_build(yard: Yard) -> None:
    yard.may_end.clear()
    asked = [asyncio.create_task(yard.ask(f"box-{number}")) for number in range(8)]
    await yard.waiting(7)
    yard.may_end.set()
    await asyncio.gather(*asked)
    assert (yard.builds, yard.images) == (1, 1)
    assert await yard.count("builds this image already") == 7
    assert yard.left() == []


async def test_image_that_is_there_is_not_built(yard: Yard) -> None:
    yard.images = 1
    await yard.ask()
    assert yard.builds == 0


async def test_who_waits_sees_the_log_of_the_build(yard: Yard) -> None:
    item = uuid4()
    yard.may_end.clear()
    first = asyncio.create_task(yard.ask("one", item=item, log=lambda text: None))
    await yard.begun.wait()
    second = asyncio.create_task(yard.ask("two"))
    await yard.waiting(0)
    yard.may_end.set()
    await asyncio.gather(first, second)
    assert yard.lines == [
        f"agent one builds this image already, for the item {item}; its log follows.\n",
        "build line\n",
    ]


async def test_build_that_fails_fails_for_all_who_waited_and_is_tried_once(yard: Yard) -> None:
    yard.failure = BuildError("no such package")
    yard.may_end.clear()
    asked = [asyncio.create_task(yard.ask(f"box-{number}")) for number in range(4)]
    await yard.waiting(3)
    yard.may_end.set()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(one) for one in ended] == ["no such package"] * 4
    assert (yard.builds, yard.left()) == (1, [])


async def test_build_that_failed_before_is_tried_again_by_the_next(yard: Yard) -> None:
    yard.failure = BuildError("no such package")
    with pytest.raises(BuildError):
        await yard.ask()
    await yard.ask()
    assert (yard.builds, yard.images, yard.left()) == (2, 1, [])


async def test_fault_of_one_machine_is_not_the_fault_of_the_next(yard: Yard) -> None:
    yard.failure = InfrastructureError("disk full")
    yard.may_end.clear()
    first, second = asyncio.create_task(yard.ask("one")), asyncio.create_task(yard.ask("two"))
    await yard.waiting(1)
    yard.may_end.set()
    ended = await asyncio.gather(first, second, return_exceptions=True)
    assert sorted(map(str, ended)) == ["None", "disk full"]
    assert (yard.builds, yard.images, yard.left()) == (2, 1, [])


async def test_build_that_is_cancelled_is_taken_over_by_one_who_waits(yard: Yard) -> None:
    yard.may_end.clear()
    first = asyncio.create_task(yard.ask("one"))
    await yard.begun.wait()
    second = asyncio.create_task(yard.ask("two"))
    await yard.waiting(1)
    first.cancel()
    yard.may_end.set()
    await second
    assert (yard.builds, yard.images, yard.left()) == (2, 1, [])


async def test_who_waits_sees_the_log_of_each_build_that_it_waits_for(yard: Yard) -> None:
    yard.may_end.clear()
    first = asyncio.create_task(yard.ask("one", log=lambda text: None))
    await yard.begun.wait()
    others = [asyncio.create_task(yard.ask(name)) for name in ("two", "three")]
    await yard.waiting(1)
    first.cancel()
    await eventually(lambda: yard.count("builds this image already"), lambda seen: seen == 3)
    yard.may_end.set()
    await asyncio.gather(*others)
    assert (yard.builds, yard.images, yard.left()) == (2, 1, [])


async def test_build_of_a_process_that_is_killed_is_waited_for_and_then_holds_nobody_up(yard: Yard) -> None:
    command = [sys.executable, "-c", BUILDS_FOR_EVER, str(yard.home)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"half of it\n"
        asked = asyncio.create_task(yard.ask())
        await eventually(lambda: yard.count("half of it"), bool)
        assert yard.builds == 0
    finally:
        process.kill()
        await process.wait()
    await asked
    assert (yard.builds, yard.images, yard.left()) == (1, 1, [])


def test_container_of_a_process_that_runs_is_not_left_behind() -> None:
    assert not is_left_behind(container_name())
    assert is_left_behind(f"launch-build-{this_place()}-{os.getpid()}-1-abcd")
    assert not is_left_behind(f"launch-build-{'0' * 12}-{os.getpid()}-1-abcd")
    assert not is_left_behind("launch-build-something-else")
