"""What holds between writers: crashes between version and alias, late writers, and what a lookup costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.store import JobCache, JobStore
from prefect_launch.testing import InMemoryServer
from tests.support.job_contract import image_draft


class _Crash(Exception):
    """The writer's process ends here."""


@contextmanager
def _dying(server: InMemoryServer, *, at_change: int) -> Iterator[None]:
    """Let the writer die at its n-th change."""
    changes = 0

    async def before(method: str) -> None:
        nonlocal changes
        changes += method in ("create_variable", "write_variable")
        if changes == at_change:
            raise _Crash

    server.before_call = before
    with pytest.raises(_Crash):
        yield
    server.before_call = None


def _registry(server: InMemoryServer, folder: Path) -> JobRegistry:
    store = JobStore(storage=LocalFileSystem(basepath=str(folder)))
    return JobRegistry(server, store, entity="team", project="demo")


@pytest.mark.parametrize("at_change", [1, 2, 3])
async def test_writer_that_dies_at_any_step_leaves_a_job_that_can_be_used_and_written(
    server: InMemoryServer, tmp_path: Path, at_change: int
) -> None:
    await _registry(server, tmp_path).put(image_draft("train", "a:1"))

    with _dying(server, at_change=at_change):
        await _registry(server, tmp_path).put(image_draft("train", "a:2"), aliases=["best"])

    reader = _registry(server, tmp_path)
    assert (await reader.resolve("train")).image in ("a:1", "a:2")
    again = await reader.put(image_draft("train", "a:2"), aliases=["best"])
    assert (again.job.version, (await reader.resolve("train")).version) == (1, 1)
    assert (await reader.resolve("train:best")).version == 1
    assert (await reader.put(image_draft("train", "a:3"))).job.version == 2


async def test_first_writer_that_dies_before_latest_is_found_all_the_same(
    server: InMemoryServer, tmp_path: Path
) -> None:
    with _dying(server, at_change=2):
        await _registry(server, tmp_path).put(image_draft("train", "a:1"))

    assert (await _registry(server, tmp_path).resolve("train")).image == "a:1"


async def test_old_content_put_again_becomes_the_latest_version(server: InMemoryServer, tmp_path: Path) -> None:
    registry = _registry(server, tmp_path)
    for image in ("a:1", "a:2", "a:1"):
        await registry.put(image_draft("train", image))

    assert ((await registry.resolve("train")).image, (await registry.resolve("train")).version) == ("a:1", 2)


async def test_cached_job_costs_one_request_by_alias_and_none_by_version(
    server: InMemoryServer, registry: JobRegistry
) -> None:
    await registry.put(image_draft("train"))
    server.calls.clear()

    await registry.resolve("train:v0")
    assert server.calls.total() == 0
    await registry.resolve("train")
    assert server.calls == {"read_variable": 1}


async def test_cache_does_not_answer_for_a_job_that_was_made_anew_under_the_name(
    server: InMemoryServer, registry: JobRegistry
) -> None:
    await registry.put(image_draft("train", "a:1"))
    for name in await server.list_variables():
        await server.delete_variable(name)
    await JobRegistry(server, JobStore(storage=registry._store.storage), entity="team", project="demo").put(
        image_draft("train", "a:2")
    )

    assert (await registry.resolve("train")).image == "a:2"


async def test_jobs_of_one_name_in_two_projects_are_apart(server: InMemoryServer, registry: JobRegistry) -> None:
    one = (await registry.put(image_draft("train", "a:1"))).job
    other = JobRegistry(server, registry._store, entity="team", project="other")
    await other.put(image_draft("train", "a:2"))

    assert (await registry.resolve("train")).image == "a:1"
    assert (await registry.resolve("other/train")).image == "a:2"
    assert [each.path for each in await registry.list(project="demo")] == [one.path]
    assert len(await registry.list(entity="team")) == 2


async def test_cache_lets_go_of_what_was_not_asked_for_the_longest(registry: JobRegistry) -> None:
    cache = JobCache(size=2)
    jobs = [(await registry.put(image_draft(name))).job for name in ("a", "b", "c")]
    cache.add(jobs[0])
    cache.add(jobs[1])
    cache.get(jobs[0].path, 0)
    cache.add(jobs[2])

    assert cache.get(jobs[1].path, 0) is None
    assert cache.get(jobs[0].path, 0) is jobs[0]
