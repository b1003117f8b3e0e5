"""The digest of a tag, fixed when an item is queued: asked for in time, recorded, run, and never in anybody's way."""

from __future__ import annotations

import time

import anyio
import pytest
import respx

from prefect_launch import explain_launch, launch_add, launch_add_many
from prefect_launch.builds.registries.base import Credentials, Registry
from prefect_launch.errors import RegistryError
from prefect_launch.image_digest import SECONDS, at_digest, with_digest
from prefect_launch.spec import parse_spec
from prefect_launch.testing import InMemoryApi

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
IMAGE = "registry.example:5000/team/train:1"
URL = "https://registry.example:5000/v2/team/train/manifests/1"
PINNED = {"docker": {"docker_image": IMAGE, "pin": True}}


class Told(Registry):
    """A registry that tells one digest, after a while, or fails."""

    def __init__(self, digest: str | None = OLD, *, seconds: float = 0, error: str = "") -> None:
        self.asked: list[str] = []
        self._digest, self._seconds, self._error = digest, seconds, error

    async def digest_of(self, reference: str) -> str | None:
        self.asked.append(reference)
        await anyio.sleep(self._seconds)
        if self._error:
            raise RegistryError(self._error)
        return self._digest

    async def credentials_for(self, reference: str) -> Credentials | None:
        return None


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        (IMAGE, f"registry.example:5000/team/train@{OLD}"),
        ("registry.example:5000/team/train", f"registry.example:5000/team/train@{OLD}"),
        ("busybox", f"busybox@{OLD}"),
        (f"busybox@{NEW}", f"busybox@{NEW}"),
    ],
)
def test_digest_takes_the_place_of_the_tag(image: str, pinned: str) -> None:
    assert at_digest(image, OLD) == pinned
    assert at_digest(image, None) == image


async def test_digest_is_recorded_for_a_spec_that_asks_for_it() -> None:
    spec = await with_digest(parse_spec(PINNED), None, registry=Told())

    assert spec.docker.digest == OLD


async def test_registry_is_not_asked_by_a_spec_that_does_not_want_it() -> None:
    registry = Told()
    spec = parse_spec({"docker": {"docker_image": IMAGE}})

    assert await with_digest(spec, None, registry=registry) is spec
    assert registry.asked == []


async def test_slow_registry_costs_two_seconds_and_no_more() -> None:
    begun = time.monotonic()
    spec = await with_digest(parse_spec(PINNED), None, registry=Told(seconds=60))

    assert spec.docker.digest is None
    assert SECONDS <= time.monotonic() - begun < SECONDS + 1


async def test_registry_that_fails_keeps_nobody_from_queuing() -> None:
    spec = await with_digest(parse_spec(PINNED), None, registry=Told(error="no"))

    assert spec.docker.digest is None


async def test_image_that_many_specs_want_is_asked_for_once() -> None:
    registry, known = Told(), dict[str, str | None]()
    for _ in range(3):
        await with_digest(parse_spec(PINNED), None, known, registry)

    assert registry.asked == [IMAGE]


def test_item_has_the_digest_that_its_tag_meant_when_it_was_queued(job_api: InMemoryApi) -> None:
    with respx.mock as web:
        asked = web.head(URL).respond(200, headers={"Docker-Content-Digest": OLD})
        run = launch_add(config=PINNED, queue_name="gpu")
        many = launch_add_many([PINNED, PINNED], "gpu", api=job_api)

    assert run.item.parameters["docker"]["digest"] == OLD
    assert [one.item.parameters["docker"]["digest"] for one in many] == [OLD, OLD]
    assert asked.call_count == 2


def test_queue_that_pins_has_all_its_items_pinned_and_asks_once_for_each_image(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"memory": "1g", "docker": {"pin": True}})
    plain = {"docker": {"docker_image": IMAGE}}
    with respx.mock as web:
        asked = web.head(URL).respond(200, headers={"Docker-Content-Digest": OLD})
        run = launch_add(config=plain, queue_name="pinned")
        many = launch_add_many([plain] * 3, "pinned", api=job_api)

    assert run.item.parameters["docker"] == {"docker_image": IMAGE, "pin": True, "digest": OLD}
    assert [one.item.parameters["docker"]["digest"] for one in many] == [OLD] * 3
    assert asked.call_count == 2


def test_item_that_is_not_to_be_pinned_wins_over_its_queue(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"docker": {"pin": True}})
    free = {"docker": {"docker_image": IMAGE, "pin": False}}
    with respx.mock:  # nobody may be asked
        run = launch_add(config=free, queue_name="pinned")
        (again,) = launch_add_many([free], "pinned", api=job_api)

    assert run.item.parameters["docker"] == again.item.parameters["docker"] == free["docker"]


def test_queue_that_pins_takes_items_that_the_registry_does_not_know(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"docker": {"pin": True}})
    with respx.mock as web:
        web.head(URL).respond(404)
        run = launch_add(config={"docker": {"docker_image": IMAGE}}, queue_name="pinned")

    assert run.state == "queued"
    assert "digest" not in run.item.parameters["docker"]


def test_explanation_tells_that_the_queue_pins(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"docker": {"pin": True}})
    with respx.mock as web:
        web.head(URL).respond(200, headers={"Docker-Content-Digest": OLD})
        told = explain_launch(docker_image=IMAGE, queue_name="pinned")

    assert told.digest == OLD
    assert told.creates["Image"] == at_digest(IMAGE, OLD)
    assert ("docker.pin", True, "the queue") in [(change.what, change.becomes, change.by) for change in told.changes]


def test_same_run_id_finds_its_item_when_the_queue_has_begun_to_pin_meanwhile(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("box", "local-container")
    first = launch_add(docker_image=IMAGE, queue_name="box", run_id="once")
    job_api.upsert_run_queue("box", "local-container", config={"docker": {"pin": True}})
    with respx.mock as web:
        web.head(URL).respond(200, headers={"Docker-Content-Digest": NEW})
        (second,) = launch_add_many([{"docker": {"docker_image": IMAGE}, "run_id": "once"}], "box", api=job_api)

    assert second.id == first.id
    assert second.item.parameters["docker"] == {"docker_image": IMAGE}


def test_same_run_id_finds_its_item_when_the_tag_has_moved_meanwhile(job_api: InMemoryApi) -> None:
    with respx.mock as web:
        web.head(URL).respond(200, headers={"Docker-Content-Digest": OLD})
        first = launch_add(config=PINNED, queue_name="gpu", run_id="once")
        web.head(URL).respond(200, headers={"Docker-Content-Digest": NEW})
        second = launch_add(config=PINNED, queue_name="gpu", run_id="once")

    assert second.id == first.id
    assert second.item.parameters["docker"]["digest"] == OLD
