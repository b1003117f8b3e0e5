"""The digest of a tag, fixed when an item is queued: looked up in time, recorded, run, and never in anybody's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import respx

from prefect_launch import create_job, explain_launch, launch_add, launch_add_many
from prefect_launch.client.api import machine_registries
from prefect_launch.errors import SpecError
from prefect_launch.planning.image_pinning import SECONDS, UNASKED_SECONDS, Digests, at_digest, with_digest
from prefect_launch.registries.digest_cache import DigestCache
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.testing import InMemoryApi, InMemoryRegistry
from tests.support.virtual_time import virtual_time

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
IMAGE = "registry.example:5000/team/train:1"
OTHER = "registry.example:5000/team/other:1"
URL = "https://registry.example:5000/v2/team/train/manifests/1"
PLAIN = {"docker": {"docker_image": IMAGE}}
PINNED = {"docker": {"docker_image": IMAGE, "pin": True}}
FREE = {"docker": {"docker_image": IMAGE, "pin": False}}
RESOLVED = {"docker_image": IMAGE, "digest": OLD, "resolved": True}


async def looked_up(registry: InMemoryRegistry, config: Mapping[str, object], **more: bool) -> LaunchSpec:
    return await with_digest(parse_spec(config), None, Digests(DigestCache(lambda: registry)), **more)


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


# --- who asks for it ---


async def test_digest_is_recorded_for_a_spec_that_asks_for_it() -> None:
    spec = await looked_up(InMemoryRegistry({IMAGE: OLD}), PINNED)

    assert spec.docker.digest == OLD
    assert not spec.docker.resolved


async def test_slow_registry_costs_who_asks_two_seconds_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with virtual_time(monkeypatch):
        begun = time.monotonic()
        spec = await looked_up(InMemoryRegistry({IMAGE: OLD}, seconds=60), PINNED)

        assert spec.docker.digest is None
        assert time.monotonic() - begun == pytest.approx(SECONDS)


async def test_registry_that_fails_keeps_nobody_from_queuing(caplog: pytest.LogCaptureFixture) -> None:
    spec = await looked_up(InMemoryRegistry(error="it is on fire"), PINNED)

    assert spec.docker.digest is None
    assert "it is on fire" in caplog.text


async def test_image_that_many_specs_want_is_asked_for_once() -> None:
    registry = InMemoryRegistry({IMAGE: OLD})
    digests = Digests(DigestCache(lambda: registry))
    for _ in range(3):
        await with_digest(parse_spec(PINNED), None, digests)

    assert registry.asked == [IMAGE]


# --- nobody asks for it ---


@pytest.mark.parametrize(
    "image", [IMAGE, "registry.example/train", "localhost/train:1", "127.0.0.1:5000/train", "docker.io/busybox:1"]
)
async def test_image_with_its_registrys_address_is_looked_up_unasked(image: str) -> None:
    spec = await looked_up(InMemoryRegistry({image: OLD}), {"docker": {"docker_image": image}})

    assert (spec.docker.digest, spec.docker.resolved, spec.docker.pin) == (OLD, True, None)


@pytest.mark.parametrize("image", ["train:1", "python:3.12", "team/train:1", f"registry.example/train@{NEW}"])
async def test_short_name_and_name_with_a_digest_are_not_looked_up(image: str) -> None:
    registry = InMemoryRegistry({image: OLD})
    asked = parse_spec({"docker": {"docker_image": image}})

    assert await with_digest(asked, None, Digests(DigestCache(lambda: registry))) is asked
    assert registry.asked == []


@pytest.mark.parametrize(("config", "by_queue"), [(FREE, {}), (FREE, {"by_queue": True}), (PLAIN, {"by_queue": False})])
async def test_item_or_queue_that_wants_none_has_nobody_asked(
    config: dict[str, object], by_queue: dict[str, bool]
) -> None:
    registry = InMemoryRegistry({IMAGE: OLD})

    assert (await looked_up(registry, config, **by_queue)).docker.digest is None
    assert registry.asked == []


async def test_registry_that_does_not_tell_is_no_warning_to_who_has_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    for registry in (InMemoryRegistry(error="no"), InMemoryRegistry()):
        spec = await looked_up(registry, PLAIN)
        assert (spec.docker.digest, spec.docker.resolved) == (None, False)

    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_settings_that_are_broken_keep_nobody_from_queuing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, text in ((".config/prefect-launch/agent.yaml", "registries: 7"), ("docker/config.json", "{")):
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
        with respx.mock:
            spec = await with_digest(parse_spec(PLAIN), None, Digests(DigestCache(machine_registries)))
        assert spec.docker.digest is None
        file.unlink()


async def test_slow_registry_costs_a_call_a_second_for_all_its_images_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = InMemoryRegistry({IMAGE: OLD}, seconds=60)
    digests = Digests(DigestCache(lambda: registry))
    with virtual_time(monkeypatch):
        begun = time.monotonic()
        for image in (IMAGE, OTHER, "elsewhere.example/train:1"):
            spec = await with_digest(parse_spec({"docker": {"docker_image": image}}), None, digests)
            assert spec.docker.digest is None

        assert time.monotonic() - begun == pytest.approx(UNASKED_SECONDS)


# --- items ---


def test_item_has_the_digest_that_its_tag_meant_when_it_was_queued(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = OLD
    run = launch_add(config=PINNED, queue_name="gpu")
    many = launch_add_many([PINNED, PINNED], "gpu", api=job_api)

    assert run.item.parameters["docker"] == {**PINNED["docker"], "digest": OLD}
    assert [one.item.parameters["docker"]["digest"] for one in many] == [OLD, OLD]
    assert job_api.registry.asked == [IMAGE, IMAGE]


def test_item_has_the_digest_though_nobody_asked_for_it(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = OLD
    run = launch_add(docker_image=IMAGE, queue_name="gpu")
    many = launch_add_many([PLAIN] * 3, "gpu", api=job_api)

    assert [one.item.parameters["docker"] for one in (run, *many)] == [RESOLVED] * 4
    assert job_api.registry.asked == [IMAGE, IMAGE]


def test_item_of_an_image_job_has_the_digest_of_its_image(job_api: InMemoryApi) -> None:
    create_job(IMAGE, "image", name="trainer", api=job_api)
    job_api.registry.digests[IMAGE] = OLD
    run = launch_add(job="trainer", queue_name="gpu")

    assert run.item.parameters["docker"] == {"digest": OLD, "resolved": True}


def test_item_is_queued_without_a_digest_while_its_registry_is_away(job_api: InMemoryApi) -> None:
    job_api.registry.error = "it does not answer"
    run = launch_add(docker_image=IMAGE, queue_name="gpu")

    assert run.state == "queued"
    assert run.item.parameters["docker"] == PLAIN["docker"]


def test_queue_that_pins_has_all_its_items_pinned_and_asks_once_for_each_image(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"memory": "1g", "docker": {"pin": True}})
    job_api.registry.digests[IMAGE] = OLD
    run = launch_add(config=PLAIN, queue_name="pinned")
    many = launch_add_many([PLAIN] * 3, "pinned", api=job_api)

    assert run.item.parameters["docker"] == {"docker_image": IMAGE, "pin": True, "digest": OLD}
    assert [one.item.parameters["docker"]["digest"] for one in many] == [OLD] * 3
    assert job_api.registry.asked == [IMAGE, IMAGE]


def test_item_that_is_not_to_be_pinned_wins_over_its_queue(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"docker": {"pin": True}})
    run = launch_add(config=FREE, queue_name="pinned")
    (again,) = launch_add_many([FREE], "pinned", api=job_api)

    assert run.item.parameters["docker"] == again.item.parameters["docker"] == FREE["docker"]
    assert job_api.registry.asked == []


def test_queue_that_wants_no_digests_has_none_and_an_item_may_ask_for_its_own(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("free", "local-container", config={"docker": {"pin": False}})
    job_api.registry.digests[IMAGE] = OLD
    free, pinned = launch_add_many([PLAIN, PINNED], "free", api=job_api)

    assert free.item.parameters["docker"] == PLAIN["docker"]
    assert pinned.item.parameters["docker"]["digest"] == OLD


def test_queue_that_pins_takes_items_that_the_registry_does_not_know(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"docker": {"pin": True}})
    run = launch_add(config=PLAIN, queue_name="pinned")

    assert run.state == "queued"
    assert "digest" not in run.item.parameters["docker"]


def test_registry_is_asked_over_http_as_this_machine_is_configured() -> None:
    async def ask() -> LaunchSpec:
        return await with_digest(parse_spec(PLAIN), None, Digests(DigestCache(machine_registries)))

    with respx.mock as web:
        web.head(URL).respond(200, headers={"Docker-Content-Digest": OLD})
        assert asyncio.run(ask()).docker.digest == OLD


# --- what is told ---


def test_explanation_tells_that_the_queue_pins(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("pinned", "local-container", config={"docker": {"pin": True}})
    job_api.registry.digests[IMAGE] = OLD
    told = explain_launch(docker_image=IMAGE, queue_name="pinned")

    assert told.digest == OLD
    assert told.creates["Image"] == at_digest(IMAGE, OLD)
    assert ("docker.pin", True, "the queue") in [(change.what, change.becomes, change.by) for change in told.changes]


def test_explanation_tells_the_digest_though_nobody_asked_for_it(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = OLD
    told = explain_launch(docker_image=IMAGE, queue_name="gpu")

    assert (told.image, told.digest) == (IMAGE, OLD)
    assert told.creates["Image"] == at_digest(IMAGE, OLD)
    assert "docker.pin" not in [change.what for change in told.changes]


# --- the same run id ---


def test_same_run_id_finds_its_item_when_the_queue_has_begun_to_pin_meanwhile(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("box", "local-container")
    first = launch_add(docker_image=IMAGE, queue_name="box", run_id="once")
    job_api.upsert_run_queue("box", "local-container", config={"docker": {"pin": True}})
    job_api.registry.digests[IMAGE] = NEW
    (second,) = launch_add_many([{**PLAIN, "run_id": "once"}], "box", api=job_api)

    assert second.id == first.id
    assert second.item.parameters["docker"] == {"docker_image": IMAGE}


@pytest.mark.parametrize("config", [PINNED, PLAIN])
def test_same_run_id_finds_its_item_when_the_tag_has_moved_meanwhile(
    job_api: InMemoryApi, config: dict[str, object]
) -> None:
    job_api.registry.digests[IMAGE] = OLD
    first = launch_add(config=config, queue_name="gpu", run_id="once")
    job_api.registry.digests[IMAGE] = NEW
    second = launch_add(config=config, queue_name="gpu", run_id="once")

    assert second.id == first.id
    assert second.item.parameters["docker"]["digest"] == OLD
    assert job_api.registry.asked == [IMAGE, IMAGE]


def test_same_run_id_finds_its_item_when_the_registry_is_away_now(job_api: InMemoryApi) -> None:
    job_api.registry.digests[IMAGE] = OLD
    first = launch_add(docker_image=IMAGE, queue_name="gpu", run_id="once")
    job_api.registry.error = "it does not answer"
    second = launch_add(docker_image=IMAGE, queue_name="gpu", run_id="once")

    assert second.id == first.id


def test_digest_that_the_caller_names_is_no_other_ones(job_api: InMemoryApi) -> None:
    named = {"docker": {"docker_image": IMAGE, "digest": OLD}, "run_id": "once"}
    launch_add(config=named, queue_name="gpu")
    with pytest.raises(SpecError, match="is taken by another spec"):
        launch_add(config={**named, "docker": {"docker_image": IMAGE, "digest": NEW}}, queue_name="gpu")
    assert job_api.registry.asked == []
