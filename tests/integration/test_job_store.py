"""The contract of the job store on a real Prefect server, with a folder and with an S3 bucket; the block itself."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from prefect_launch.client.api import Api
from prefect_launch.client.create_job import acreate_job, create_job
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.store import JobStore
from prefect_launch.server.client import PrefectServer, connect
from tests.support.job_contract import JobStoreContract, image_draft, unique
from tests.support.prefect_server import PrefectServerProcess, warm_prefect
from tests.support.s3 import new_bucket, s3_service

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 service."""
    with s3_service() as address:
        yield address


@pytest.fixture
async def server(prefect_server: PrefectServerProcess) -> AsyncIterator[PrefectServer]:
    """The run's server."""
    async with connect() as server:
        yield server


class TestServerIndexAndLocalFolder(JobStoreContract):
    """What a user has who sets nothing up."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalFileSystem:
        return LocalFileSystem(basepath=str(tmp_path / "store"))


class TestServerIndexAndBucket(JobStoreContract):
    """What a team has."""

    @pytest.fixture
    def storage(self, s3: str) -> RemoteFileSystem:
        return new_bucket(s3)


async def test_saved_store_block_keeps_jobs_where_it_says(
    prefect_server: PrefectServerProcess, s3: str, tmp_path: Path
) -> None:
    bucket, name = new_bucket(s3), unique("store")
    await JobStore(storage=bucket, prefix="launch").asave(name)
    (tmp_path / "main.py").write_text("print(1)")

    job = await acreate_job(tmp_path, "code", name=unique("train"), api=Api(job_store=name))

    loaded: JobStore = await JobStore.aload(name)
    assert isinstance(loaded.storage, RemoteFileSystem)
    assert loaded.storage.basepath == bucket.basepath
    assert await (await loaded.files()).read(f"blobs/sha256/{job.digest[7:9]}/{job.digest[7:]}") is not None


async def test_store_can_name_a_saved_storage_block_of_any_type(server: PrefectServer, tmp_path: Path) -> None:
    name = unique("disk")
    await LocalFileSystem(basepath=str(tmp_path / "disk")).asave(name)
    registry = JobRegistry(server, JobStore(storage=f"local-file-system/{name}"), entity=unique("team"), project="p")

    await registry.put(image_draft("train"))

    assert list((tmp_path / "disk").rglob("blobs"))


async def test_block_file_registers_with_prefects_own_command(prefect_server: PrefectServerProcess) -> None:
    command = ["block", "register", "--file", str(PROJECT / "blocks" / "job_store.py")]

    ended = warm_prefect().run(command, cwd=PROJECT, environment=os.environ, seconds=120)

    assert ended.returncode == 0, ended.stderr
    assert "Launch Job Store" in ended.stdout


async def test_looking_up_a_cached_job_costs_one_request_by_alias_and_none_by_version(
    prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    requests: list[str] = []
    async with connect() as server:
        registry = JobRegistry(
            server,
            JobStore(storage=LocalFileSystem(basepath=str(tmp_path))),
            entity=unique("team"),
            project="p",
        )
        await registry.put(image_draft("train", f"a:{uuid4().hex}"))

        async def count(request: object) -> None:
            requests.append(str(request))

        server.client._client.event_hooks["request"].append(count)
        await registry.resolve("train:v0")
        assert len(requests) == 0
        await registry.resolve("train")
        assert len(requests) == 1


def test_job_is_made_and_found_from_synchronous_code(prefect_server: PrefectServerProcess, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)")
    api, name = Api(), unique("train")

    made = create_job(tmp_path, "code", name=name, aliases=["best"], api=api)

    assert made.reference == f"default/default/{name}:v0"
    assert api.job(f"{name}:best").digest == made.digest
