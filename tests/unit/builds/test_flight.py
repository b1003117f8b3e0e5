"""One build at a time, whoever asks; the others wait, see its log, and end as it does."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_launch.builds import build_lease as flight
from prefect_launch.builds.build_lease import BUILD_LOGGER, Flights, Lease
from prefect_launch.builds.process_id import container_name, is_left_behind, started_at, this_place
from prefect_launch.errors import BuildError, InfrastructureError
from prefect_launch.server.values import LogRecord
from prefect_launch.testing import InMemoryServer


class Yard:
    """A place for images, a server, and those who ask for one image."""

    def __init__(self) -> None:
        self.server = InMemoryServer()
        self.images = 0
        self.builds = 0
        self.lines: list[str] = []
        self.failure: Exception | None = None
        self.build_seconds = 0.2

    async def is_there(self) -> bool:
        return self.images > 0

    async def build(self) -> None:
        self.builds += 1
        await asyncio.sleep(self.build_seconds)
        if self.failure is not None:
            raise self.failure
        self.images += 1

    async def ask(
        self, name: str = "box", *, log: Callable[[str], None] | None = None, item: UUID | None = None
    ) -> None:
        flights = Flights(self.server, f"agent {name}", silence_seconds=0.5)
        sink = log or self.lines.append
        await flights.once("image", item or uuid4(), sink, is_there=self.is_there, build=self.build)

    async def left(self) -> dict[str, object]:
        return await self.server.list_variables("launch-build")


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setattr(flight, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(flight, "BEAT_SECONDS", 0.1)
    return Yard()


async def test_eight_who_ask_at_once_get_one_build(yard: Yard) -> None:
    await asyncio.gather(*(yard.ask(f"box-{number}") for number in range(8)))
    assert (yard.builds, yard.images) == (1, 1)
    assert sum("builds this image already" in line for line in yard.lines) == 7
    assert await yard.left() == {}


async def test_image_that_is_there_is_not_built(yard: Yard) -> None:
    yard.images = 1
    await yard.ask()
    assert yard.builds == 0


async def test_who_waits_sees_the_log_of_the_build(yard: Yard) -> None:
    item, seen = uuid4(), list[str]()
    first = asyncio.create_task(yard.ask("one", item=item))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(yard.ask("two", log=seen.append))
    await asyncio.sleep(0.05)
    records = [
        LogRecord(name=name, message=name + " line", timestamp=datetime.now(timezone.utc))
        for name in (BUILD_LOGGER, "job")
    ]
    await yard.server.write_logs(item, records)
    await asyncio.gather(first, second)
    assert seen[0].startswith(f"agent one builds this image already, for the item {item}")
    assert seen[1:] == ["build line\n"]


async def test_build_that_fails_fails_for_all_who_waited_and_is_tried_once(yard: Yard) -> None:
    yard.failure = BuildError("no such package")
    ended = await asyncio.gather(*(yard.ask(f"box-{number}") for number in range(4)), return_exceptions=True)
    assert [str(one) for one in ended] == ["no such package"] * 4
    assert yard.builds == 1


async def test_build_that_failed_before_is_tried_again_by_the_next(yard: Yard) -> None:
    yard.failure = BuildError("no such package")
    with pytest.raises(BuildError):
        await yard.ask()
    yard.failure = None
    await yard.ask()
    assert (yard.builds, yard.images) == (2, 1)
    assert await yard.left() == {}


async def test_fault_of_one_machine_is_not_the_fault_of_the_next(yard: Yard) -> None:
    yard.failure = InfrastructureError("disk full")
    first = asyncio.create_task(yard.ask("one"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(yard.ask("two"))
    with pytest.raises(InfrastructureError):
        await first
    yard.failure = None
    await second
    assert (yard.builds, yard.images) == (2, 1)


async def test_build_that_is_cancelled_is_taken_over_by_one_who_waits(yard: Yard) -> None:
    first = asyncio.create_task(yard.ask("one"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(yard.ask("two"))
    await asyncio.sleep(0.05)
    first.cancel()
    await second
    assert (yard.builds, yard.images) == (2, 1)


def lease(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {"holder": "agent gone", "item": uuid4(), "place": "elsewhere", "pid": 1, "start": 1}
    values["at"] = datetime.now(timezone.utc)
    return Lease(**{**values, **changes}).model_dump(mode="json")


async def leave(yard: Yard, value: dict[str, object]) -> None:
    """Put a lease there as one who was killed would leave it."""
    name = f"launch_build_{hashlib.sha256(b'image').hexdigest()[:32]}"
    await yard.server.write_variable(f"{name}_1", value, tags=["launch-build", name])


@pytest.fixture
def ended_process() -> tuple[int, int]:
    """A process that has ended: its id, and when it was started."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    start = started_at(process.pid)
    process.wait()
    return process.pid, start


async def test_lease_of_a_process_that_is_gone_holds_nobody_up(yard: Yard, ended_process: tuple[int, int]) -> None:
    pid, start = ended_process
    await leave(yard, lease(place=this_place(), pid=pid, start=start))
    await asyncio.wait_for(yard.ask(), 0.45)
    assert (yard.images, await yard.left()) == (1, {})


async def test_lease_of_another_machine_holds_up_until_its_heart_is_silent(yard: Yard) -> None:
    await leave(yard, lease())
    asked = asyncio.get_running_loop().time()
    await yard.ask()
    assert asyncio.get_running_loop().time() - asked > 0.5
    assert (yard.images, await yard.left()) == (1, {})


async def test_builder_whose_heart_beats_is_waited_for(yard: Yard) -> None:
    yard.build_seconds = 1.2
    await asyncio.gather(yard.ask("one"), yard.ask("two"))
    assert yard.builds == 1


async def test_server_that_is_away_for_a_moment_holds_nothing_up_for_ever(yard: Yard) -> None:
    yard.server.down()
    task = asyncio.create_task(yard.ask())
    await asyncio.sleep(0.1)
    yard.server.up()
    await task
    assert yard.images == 1


async def test_lease_whose_answer_was_lost_is_ones_own(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    create = yard.server.create_variable

    async def made_and_sent_again(name: str, value: Any, *, tags: Collection[str] = ()) -> bool:
        await create(name, value, tags=tags)
        return await create(name, value, tags=tags)

    monkeypatch.setattr(yard.server, "create_variable", made_and_sent_again)
    await asyncio.wait_for(yard.ask(), 5)
    assert (yard.builds, await yard.left()) == (1, {})


async def test_lease_that_a_living_process_could_not_give_back_holds_nobody_up_for_ever(yard: Yard) -> None:
    yard.failure = InfrastructureError("disk full")
    asked = asyncio.create_task(yard.ask())
    await asyncio.sleep(0.1)
    yard.server.down()
    with pytest.raises(InfrastructureError):
        await asked
    yard.server.up()
    yard.failure = None
    assert len(await yard.left()) == 1
    await asyncio.wait_for(yard.ask(), 10)
    assert (yard.images, await yard.left()) == (1, {})


def test_container_of_a_process_that_runs_is_not_left_behind() -> None:
    assert not is_left_behind(container_name())
    assert is_left_behind(f"launch-build-{this_place()}-{os.getpid()}-1-abcd")
    assert not is_left_behind(f"launch-build-{'0' * 12}-{os.getpid()}-1-abcd")
    assert not is_left_behind("launch-build-something-else")
