"""The contract of the job store, on the in-memory server: on a folder, and on a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from tests.support.job_contract import JobStoreContract
from tests.support.s3 import new_bucket, s3_service


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 service."""
    with s3_service() as address:
        yield address


class TestLocalFolder(JobStoreContract):
    """The default: a folder on this machine."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalFileSystem:
        return LocalFileSystem(basepath=str(tmp_path / "store"))


class TestBucket(JobStoreContract):
    """An S3 bucket, through fsspec."""

    @pytest.fixture
    def storage(self, s3: str) -> RemoteFileSystem:
        return new_bucket(s3)
