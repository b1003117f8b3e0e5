"""Outputs of custom jobs: a folder of each run's own in a bucket of Cloud Storage, which Vertex AI mounts into the job.

What a job leaves there comes back within the run's limits. The folder itself stays in the bucket: models are used from
there, and a lifecycle rule of the bucket can remove what is old.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio

from prefect_launch.core.output_limits import MAX_DEPTH, OUTPUTS_FILE, TOO_DEEP, LeftOut, Selection
from prefect_launch.errors import InfrastructureError, LaunchError, QueueError
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.vertex.client import GoogleClient, Service

_PAGE: Final = 1_000
_PIECE_BYTES: Final = 1024 * 1024


def _split(folder: str) -> tuple[str, str]:
    bucket, _, name = folder.removeprefix("gs://").partition("/")
    return bucket, name


async def make_folder(client: GoogleClient, folder: str) -> None:
    """Make a folder in a bucket, so that a job finds it where the bucket is mounted.

    Raises:
        QueueError: when there is no such bucket.
        LaunchError: when Google does not make it.
    """
    bucket, name = _split(folder)
    path, params = f"/upload/storage/v1/b/{bucket}/o", {"uploadType": "media", "name": name}
    answer = await client.call(Service.STORAGE, "POST", path, may_be_forbidden=True, params=params, content=b"")
    if answer.code == 403:
        raise QueueError(
            f"The agent may not write into gs://{bucket}: {answer.reason}. Give its account the role Storage Object"
            " User on the bucket, or correct spec.staging_bucket in the queue's config."
        )
    if answer.is_missing:
        raise QueueError(
            f"There is no bucket gs://{bucket}: {answer.reason}. Make it, or correct spec.staging_bucket in the queue's"
            " config."
        )
    client.good(answer, f"to write into gs://{bucket}")


async def remove_folder(client: GoogleClient, folder: str) -> None:
    """Remove a folder that was made for a job which is not; one that cannot be removed is left."""
    bucket, name = _split(folder)
    with suppress(LaunchError):
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        await client.call(Service.STORAGE, "DELETE", path, may_be_forbidden=True)


async def check_bucket(client: GoogleClient, folder: str) -> None:
    """Check that a bucket can be read.

    Raises:
        LaunchError: when it cannot.
    """
    bucket, _ = _split(folder)
    answer = await client.call(Service.STORAGE, "GET", f"/storage/v1/b/{bucket}/o", params={"maxResults": 1})
    client.good(answer, f"the bucket gs://{bucket}")


async def keep_outputs(client: GoogleClient, job: Mapping[str, Any], plan: RunPlan) -> LeftOut:
    """Bring what an ended job has left into its run's folder, and return what is left out.

    Args:
        client: of Cloud Storage.
        job: of the REST API.
        plan: of the run.

    Raises:
        LaunchError: when Google does not hand it over.
    """
    prefix = str(((job.get("jobSpec") or {}).get("baseOutputDirectory") or {}).get("outputUriPrefix") or "")
    if not prefix:
        raise InfrastructureError("the job has no folder for its outputs: somebody else has made it")
    bucket, folder = _split(f"{prefix.rstrip('/')}/")
    params = {"prefix": folder, "maxResults": _PAGE, "fields": "items(name,size),nextPageToken"}
    objects = await client.pages(Service.STORAGE, f"/storage/v1/b/{bucket}/o", "items", params)
    selection = Selection(plan.output_limits)
    for name, size in _chosen(objects, folder, selection):
        if selection.takes(name, size):
            await _fetch(client, f"/storage/v1/b/{bucket}/o/{quote(folder + name, safe='')}", plan.output_dir / name)
    return selection.left_out


def _chosen(objects: list[dict[str, Any]], folder: str, selection: Selection) -> Iterator[tuple[str, int]]:
    """Yield the files of a folder by their names in it, the results first: an object may have any name."""
    found = {str(one["name"]).removeprefix(folder): int(one.get("size") or 0) for one in objects}
    files = {name: size for name, size in found.items() if name and not name.endswith("/")}
    taken: set[str] = set()
    for name in sorted(files, key=lambda name: (name != OUTPUTS_FILE, name)):
        parts = name.split("/")
        if not all(parts) or {".", ".."} & {*parts} or "\0" in name or any(len(one.encode()) > 255 for one in parts):
            selection.leave_out(name, "its name is that of no file")
        elif len(parts) > MAX_DEPTH:
            selection.leave_out(name, TOO_DEEP)
        elif taken & {"/".join(parts[:count]) for count in range(1, len(parts))}:
            selection.leave_out(name, "a file has the name of its folder")
        else:
            taken.add(name)
            yield name, files[name]


async def _fetch(client: GoogleClient, path: str, target: Path) -> None:
    await anyio.Path(target.parent).mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:100]}.part")
    try:
        async with (
            client.stream(Service.STORAGE, path, alt="media") as response,
            await anyio.open_file(part, "wb") as file,
        ):
            async for piece in response.aiter_bytes(_PIECE_BYTES):
                await file.write(piece)
        await anyio.Path(part).replace(target)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.Path(part).unlink(missing_ok=True)  # Of a download that broke off.
