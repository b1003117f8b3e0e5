"""What a session remembers of registries: no answer beyond the call, silence for long, one question at a time."""

from __future__ import annotations

import asyncio

import pytest

from prefect_launch import alaunch_add, launch_add
from prefect_launch.registries.digest_cache import PATIENCE_SECONDS, PEACE_SECONDS, DigestCache
from prefect_launch.testing import InMemoryApi, InMemoryRegistry

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
IMAGE = "registry.example:5000/team/train:1"
OTHER = "registry.example:5000/team/other:1"
RESOLVED = {"docker_image": IMAGE, "digest": OLD, "resolved": True}


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("prefect_launch.registries.digest_cache.monotonic", made)
    return made


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("prefect_launch.registries.digest_cache.PATIENCE_SECONDS", 0.02)
    return 0.02


async def test_answer_is_not_kept_for_the_next_call() -> None:
    registry = InMemoryRegistry({IMAGE: OLD})
    seen = DigestCache(lambda: registry)

    assert await seen.digest_of(IMAGE, 1) == OLD
    registry.digests[IMAGE] = NEW
    assert await seen.digest_of(IMAGE, 1) == NEW


def test_image_that_is_pushed_between_two_calls_gives_each_its_own(job_api: InMemoryApi) -> None:
    told = []
    for digest in (OLD, NEW):
        job_api.registry.digests[IMAGE] = digest
        told.append(launch_add(docker_image=IMAGE, queue_name="gpu").item.parameters["docker"]["digest"])

    assert told == [OLD, NEW]


async def test_answer_of_old_is_not_told_when_the_registry_is_silent(patience: float, clock: Clock) -> None:
    registry = InMemoryRegistry({IMAGE: OLD})
    seen = DigestCache(lambda: registry)
    assert await seen.digest_of(IMAGE, patience) == OLD

    registry.seconds = 60
    clock.now += 1
    assert [await seen.digest_of(image, patience) for image in (OTHER, IMAGE)] == [None, None]
    assert registry.asked == [IMAGE, OTHER]


async def test_registry_that_was_asked_at_the_end_of_a_calls_time_is_not_called_silent() -> None:
    registry = InMemoryRegistry({IMAGE: OLD}, seconds=0.2)
    seen = DigestCache(lambda: registry)

    assert [await seen.digest_of(IMAGE, seconds) for seconds in (0.0, 0.01, PATIENCE_SECONDS)] == [None, None, OLD]


async def test_what_is_known_is_told_while_another_image_is_asked_for() -> None:
    registry = InMemoryRegistry({OTHER: OLD}, error="wants a password")
    seen = DigestCache(lambda: registry)
    assert await seen.digest_of(IMAGE, 1) is None

    registry.error, registry.seconds = "", 0.5
    other = asyncio.create_task(seen.digest_of(OTHER, 5))
    await asyncio.sleep(0.05)
    assert await seen.digest_of(IMAGE, 1) is None
    assert not other.done()
    assert await other == OLD


async def test_registry_that_did_not_answer_is_left_in_peace_for_all_its_images(patience: float, clock: Clock) -> None:
    registry = InMemoryRegistry({IMAGE: OLD, OTHER: OLD, "elsewhere.example/train": NEW}, seconds=60)
    seen = DigestCache(lambda: registry)
    assert await seen.digest_of(IMAGE, patience) is None

    registry.seconds = 0
    assert await seen.digest_of(IMAGE, 1) is None
    assert await seen.digest_of(OTHER, 1) is None
    assert await seen.digest_of("elsewhere.example/train", 1) == NEW
    clock.now += PEACE_SECONDS + 0.1
    assert await seen.digest_of(OTHER, 1) == OLD
    assert registry.asked == [IMAGE, "elsewhere.example/train", OTHER]


async def test_image_that_was_refused_is_left_in_peace_and_its_registry_is_not(clock: Clock) -> None:
    registry = InMemoryRegistry({IMAGE: OLD, OTHER: OLD}, error="wants a password")
    seen = DigestCache(lambda: registry)
    assert await seen.digest_of(IMAGE, 1) is None

    registry.error = ""
    clock.now += PEACE_SECONDS - 0.1
    assert await seen.digest_of(IMAGE, 1) is None
    assert await seen.digest_of(OTHER, 1) == OLD
    clock.now += 0.2
    assert await seen.digest_of(IMAGE, 1) == OLD


async def test_those_who_ask_at_the_same_time_wait_for_one_answer(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = OLD
    job_api.registry.seconds = 0.05
    runs = await asyncio.gather(*(alaunch_add(docker_image=IMAGE, queue_name="gpu") for _ in range(20)))

    assert {run.item.parameters["docker"]["digest"] for run in runs} == {OLD}
    assert job_api.registry.asked == [IMAGE]


async def test_who_waits_for_anothers_answer_in_vain_does_not_silence_the_registry() -> None:
    registry = InMemoryRegistry({IMAGE: OLD}, seconds=0.2)
    seen = DigestCache(lambda: registry)
    first = asyncio.create_task(seen.digest_of(IMAGE, 5))
    await asyncio.sleep(0)

    assert await seen.digest_of(OTHER, 0.01) is None
    assert await first == OLD
    registry.digests[OTHER] = NEW
    assert await seen.digest_of(OTHER, 5) == NEW


def test_digest_that_was_copied_from_another_item_is_looked_up_again(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = NEW
    run = launch_add(config={"docker": RESOLVED}, queue_name="gpu")
    free = launch_add(config={"docker": {**RESOLVED, "pin": False}}, queue_name="gpu")
    job_api.registry.error = "it does not answer"
    unknown = launch_add(config={"docker": RESOLVED}, queue_name="gpu")

    assert run.item.parameters["docker"] == {**RESOLVED, "digest": NEW}
    assert free.item.parameters["docker"] == {"docker_image": IMAGE, "pin": False}
    assert unknown.item.parameters["docker"] == {"docker_image": IMAGE}
