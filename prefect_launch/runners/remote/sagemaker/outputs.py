"""Outputs of a training job, from S3: the archive of `/opt/ml/output`, or its files where they are not packed.

SageMaker packs the folder into `output.tar.gz`, with `data/` in it, below the place that the queue names. The archive
is unpacked as it arrives: what does not fit is left out, and stays in S3.
"""

from __future__ import annotations

import posixpath
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import anyio
import anyio.from_thread

from prefect_launch.clouds.aws import aws_errors
from prefect_launch.core.cancellation import finished
from prefect_launch.core.output_limits import MAX_DEPTH, OUTPUTS_FILE, TOO_DEEP, LeftOut, Selection
from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.sagemaker.jobs import AwsClients, error_code

_ARCHIVE: Final = "output.tar.gz"
_DATA: Final = "data/"
#: Of SageMaker's own, beside the job's data.
_NOTES: Final = frozenset({"failure", "success"})
#: Results have room whatever comes before them.
_RESULTS_BYTES: Final = 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_NOT_THERE: Final = frozenset({"404", "NoSuchKey", "NotFound"})


def output_place(job: Mapping[str, Any]) -> tuple[str, str]:
    """Return the bucket that a job's output is in, and the beginning of its keys."""
    bucket, _, prefix = job["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://").partition("/")
    return bucket, posixpath.join(prefix.strip("/"), job["TrainingJobName"], "output").lstrip("/")


async def check_place(clients: AwsClients, uri: str) -> None:
    """Check that outputs can be looked for in a place in S3.

    Raises:
        LaunchError: when they cannot.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = await clients.get("s3")
    with aws_errors(f"what is below {uri} (s3:ListBucket)"):
        await client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)


async def keep_outputs(clients: AwsClients, job: Mapping[str, Any], plan: RunPlan) -> LeftOut:
    """Bring what an ended job has left into its run's folder, and return what is left out.

    Args:
        clients: of AWS.
        job: as described.
        plan: of the run.

    Raises:
        LaunchError: when S3 does not hand it over.
    """
    selection = _Kept(plan)
    bucket, prefix = output_place(job)
    client = await clients.get("s3")
    if job["OutputDataConfig"].get("CompressionType") == "NONE":
        await _keep_files(client, bucket, f"{prefix}/{_DATA}", selection)
        return selection.left_out
    with aws_errors(f"the outputs s3://{bucket}/{prefix}/{_ARCHIVE} (s3:GetObject)"):
        try:
            answer = await client.get_object(Bucket=bucket, Key=f"{prefix}/{_ARCHIVE}")
        except Exception as error:
            if error_code(error) in _NOT_THERE:
                return LeftOut()
            raise
        async with answer["Body"] as body:
            try:
                await finished(anyio.to_thread.run_sync(_unpack, _Body(body), selection))
            except (tarfile.TarError, EOFError, OSError) as error:
                raise InfrastructureError(
                    f"the archive s3://{bucket}/{prefix}/{_ARCHIVE} cannot be read ({error}); it is still there"
                ) from error
    return selection.left_out


async def _keep_files(client: Any, bucket: str, prefix: str, selection: _Kept) -> None:
    with aws_errors(f"the outputs below s3://{bucket}/{prefix} (s3:ListBucket, s3:GetObject)"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [one async for page in pages for one in page.get("Contents", ())]
        for one in sorted(found, key=lambda one: (one["Key"] != prefix + OUTPUTS_FILE, one["Key"])):
            path = selection.path_of(one["Key"].removeprefix(prefix), one["Size"])
            if path is None:
                continue
            answer = await client.get_object(Bucket=bucket, Key=one["Key"])
            async with answer["Body"] as body:
                await finished(anyio.to_thread.run_sync(_write, cast("BinaryIO", _Body(body)), path))


class _Kept:
    """The choice of the files that are kept, and where.

    Args:
        plan: of the run.
    """

    def __init__(self, plan: RunPlan) -> None:
        self._root = plan.output_dir.resolve()
        self._selection = Selection(plan.output_limits)

    @property
    def left_out(self) -> LeftOut:
        """What was left out so far."""
        return self._selection.left_out

    def leave_out(self, name: str, why: str) -> None:
        """Name a file that is not kept."""
        self._selection.leave_out(name, why)

    def path_of(self, name: str, size: int) -> Path | None:
        """Return where a file goes; None when it is left out."""
        path = self._root / name
        if name in ("", ".") or name.endswith("/"):
            return None
        if ".." in name.split("/") or name.startswith("/") or "\0" in name:
            self.leave_out(name, "it is outside of the outputs folder")
        elif name.count("/") > MAX_DEPTH:
            self.leave_out(name, TOO_DEEP)
        elif path.exists() or any(one.is_file() for one in path.parents):
            self.leave_out(name, "another file has its name")
        elif (name == OUTPUTS_FILE and size <= _RESULTS_BYTES) or self._selection.takes(name, size):
            return path
        return None


class _Body:
    """A file in S3 as a thread reads it."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, size: int = -1) -> bytes:
        return cast("bytes", anyio.from_thread.run(self._body.read, size))


def _unpack(body: _Body, selection: _Kept) -> None:
    with tarfile.open(fileobj=cast("BinaryIO", body), mode="r|gz") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # a job may leave millions
            name = posixpath.normpath(member.name)
            if member.isdir() or name in _NOTES:
                continue
            name = name.removeprefix(_DATA)
            if not member.isreg():
                selection.leave_out(name, "it is no regular file")
                continue
            path = selection.path_of(name, member.size)
            content = archive.extractfile(member) if path is not None else None
            if path is not None and content is not None:
                _write(cast("BinaryIO", content), path)


def _write(content: BinaryIO, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        shutil.copyfileobj(content, file, _PIECE_BYTES)
