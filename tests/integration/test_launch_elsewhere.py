"""`launch` on a resource elsewhere: the caller sees why the run waits, and an interrupt leaves nothing there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from prefect_launch import ExecutionError, alaunch
from prefect_launch.errors import ImagePullError, SpecError
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RemoteStatus
from prefect_launch.testing import InMemoryCluster, InMemoryRemoteRunner, Script
from tests.support.cluster_bench import registered_runner
from tests.support.live import Site
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tests.support.prefect_server import PrefectServerProcess

RESOURCE = "shared-cluster"


class SharedClusterRunner(InMemoryRemoteRunner):
    """A runner on the one in-memory cluster of the test."""

    name: ClassVar[str] = RESOURCE
    cluster: ClassVar[InMemoryCluster] = InMemoryCluster()
    refusal: ClassVar[ImagePullError | None] = None

    def __init__(self, home: Path) -> None:
        super().__init__(home, self.cluster)

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        jobs = await super().poll(handles)
        if self.refusal is None:
            return jobs
        status = RemoteStatus(state=RemoteState.PENDING, refusal=self.refusal)
        waits = {handle for handle, job in jobs.items() if job.status.state is RemoteState.PENDING}
        return {
            handle: job.model_copy(update={"status": status}) if handle in waits else job
            for handle, job in jobs.items()
        }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryCluster]:
    point = "tests.integration.test_launch_elsewhere:SharedClusterRunner"
    with registered_runner(tmp_path, monkeypatch, RESOURCE, point):
        monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
        cluster = InMemoryCluster()
        monkeypatch.setattr(SharedClusterRunner, "cluster", cluster)
        yield cluster


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    return Site(prefect_server.api_url, tmp_path, unique)


@asynccontextmanager
async def launched(site: Site) -> AsyncIterator[asyncio.Task[object]]:
    task: asyncio.Task[object] = asyncio.create_task(alaunch(site.api, docker_image="busybox:1", resource=RESOURCE))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_launch_on_a_resource_elsewhere_ends_when_the_run_there_has_ended(
    site: Site, cluster: InMemoryCluster
) -> None:
    cluster.script = lambda plan: Script(log=(b"hello\n",))
    async with launched(site) as task:
        run = await asyncio.wait_for(task, 60)
    assert str(run.status) == "finished"  # type: ignore[attr-defined]
    assert cluster.jobs == {}


@pytest.mark.parametrize("nodes", [0, 1], ids=["it waits", "it runs"])
async def test_interrupt_of_launch_ends_the_run_elsewhere(site: Site, cluster: InMemoryCluster, nodes: int) -> None:
    cluster.nodes, cluster.script = nodes, lambda plan: Script(seconds=600)
    async with launched(site) as task:
        await until(lambda: len(cluster.jobs) == 1 and len(cluster.started) == nodes and cluster.calls["release"] == 1)
        task.cancel()
        await asyncio.wait_for(asyncio.wait({task}), 60)
    assert cluster.jobs == {}


async def test_run_that_the_cluster_will_never_start_is_refused_and_removed(
    site: Site, cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.nodes = 0
    monkeypatch.setattr(SharedClusterRunner, "refusal", ImagePullError("The image 'busybox:1' cannot be pulled."))
    async with launched(site) as task:
        with pytest.raises((ImagePullError, ExecutionError), match="cannot be pulled"):
            await asyncio.wait_for(task, 60)
    assert (cluster.jobs, cluster.started) == ({}, [])


@pytest.mark.parametrize("resource", ["sagemaker", "vertex"])
async def test_resource_that_only_a_queue_can_reach_says_so(site: Site, resource: str) -> None:
    with pytest.raises(SpecError, match=rf"cannot go to {resource}: it needs options that only a queue's owner"):
        await alaunch(site.api, docker_image="busybox:1", resource=resource)
