"""What a session remembers of registries: an answer for some seconds, silence for longer, one question at a time."""

from __future__ import annotations

import asyncio

import pytest

from prefect_launch import alaunch_add
from prefect_launch.seen_digests import KEEP_SECONDS, PEACE_SECONDS, SeenDigests
from prefect_launch.testing import InMemoryApi, InMemoryRegistry

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
IMAGE = "registry.example:5000/team/train:1"
OTHER = "registry.example:5000/team/other:1"


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("prefect_launch.seen_digests.monotonic", made)
    return made


async def test_answer_is_kept_for_some_seconds(clock: Clock) -> None:
    registry = InMemoryRegistry({IMAGE: OLD})
    seen = SeenDigests(registry)

    assert [await seen.digest_of(IMAGE, 1) for _ in range(3)] == [OLD] * 3
    registry.digests[IMAGE] = NEW
    clock.now += KEEP_SECONDS - 0.1
    assert await seen.digest_of(IMAGE, 1) == OLD
    clock.now += 0.2
    assert await seen.digest_of(IMAGE, 1) == NEW
    assert registry.asked == [IMAGE, IMAGE]


async def test_registry_that_did_not_answer_is_left_in_peace_for_all_its_images(clock: Clock) -> None:
    registry = InMemoryRegistry({IMAGE: OLD, OTHER: OLD, "elsewhere.example/train": NEW}, seconds=60)
    seen = SeenDigests(registry)
    assert await seen.digest_of(IMAGE, 0.01) is None

    registry.seconds = 0
    assert await seen.digest_of(IMAGE, 1) is None
    assert await seen.digest_of(OTHER, 1) is None
    assert await seen.digest_of("elsewhere.example/train", 1) == NEW
    clock.now += PEACE_SECONDS + 0.1
    assert await seen.digest_of(OTHER, 1) == OLD
    assert registry.asked == [IMAGE, "elsewhere.example/train", OTHER]


async def test_image_that_was_refused_is_left_in_peace_and_its_registry_is_not(clock: Clock) -> None:
    registry = InMemoryRegistry({IMAGE: OLD, OTHER: OLD}, error="wants a password")
    seen = SeenDigests(registry)
    assert await seen.digest_of(IMAGE, 1) is None

    registry.error = ""
    clock.now += KEEP_SECONDS + 0.1
    assert await seen.digest_of(IMAGE, 1) is None
    assert await seen.digest_of(OTHER, 1) == OLD
    clock.now += PEACE_SECONDS
    assert await seen.digest_of(IMAGE, 1) == OLD


async def test_those_who_ask_at_the_same_time_wait_for_one_answer(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = OLD
    job_api.registry.seconds = 0.05
    runs = await asyncio.gather(*(alaunch_add(docker_image=IMAGE, queue_name="gpu") for _ in range(20)))

    assert {run.item.parameters["docker"]["digest"] for run in runs} == {OLD}
    assert job_api.registry.asked == [IMAGE]


async def test_who_waits_for_anothers_answer_in_vain_does_not_silence_the_registry() -> None:
    registry = InMemoryRegistry({IMAGE: OLD}, seconds=0.2)
    seen = SeenDigests(registry)
    first = asyncio.create_task(seen.digest_of(IMAGE, 5))
    await asyncio.sleep(0)

    assert await seen.digest_of(OTHER, 0.01) is None
    assert await first == OLD
    registry.digests[OTHER] = NEW
    assert await seen.digest_of(OTHER, 5) == NEW
