"""Packages of code for Ray: a job's code as a zip archive in the cluster's store, and its requirements for pip.

The archive's name is a hash of its content, so the same code is sent once. Ray unpacks it once a node.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.filesystem import temporary_folder_async
from prefect_launch.core.units import format_size
from prefect_launch.environments.requirements import Requirements, read_requirements
from prefect_launch.errors import InfrastructureError, SourceError, SpecError, UnreachableError
from prefect_launch.inputs.vendoring import vendored_files
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.code import code_entries, merge_overrides, write_zip
from prefect_launch.runners.remote.ray.client import RayClient
from prefect_launch.runners.remote.ray.options import INPUTS_FOLDER

#: What the Jobs API takes (its own limit).
MAX_PACKAGE_BYTES: Final = 100 * 1024**2
_INPUTS_PREFIX: Final = "_prefect_launch_inputs/"
_PIECE_BYTES: Final = 1024**2


async def upload_code(client: RayClient, plan: RunPlan) -> str:
    """Send a run's code to the cluster, unless it has it already, and return the package's URI.

    Raises:
        SpecError: when it is larger than Ray takes.
        UnreachableError: when the cluster does not answer.
        InfrastructureError: when it refuses the package.
    """
    async with temporary_folder_async(prefix=".package-", parent=plan.run_dir) as folder:
        file = folder / "code.zip"
        name = f"_ray_pkg_{(await anyio.to_thread.run_sync(_pack, plan, file))[:32]}.zip"
        path = f"/api/packages/gcs/{name}"
        # Asked each time: it also keeps the package from being removed for the next ten minutes.
        there = await client.call("GET", path)
        if there.is_missing:
            sent = await client.call("PUT", path, file=file)
            if sent.status != 200:
                size = format_size((await anyio.Path(file).stat()).st_size)
                raise InfrastructureError(f"The Ray cluster does not take the job's code ({size}): {sent.reason}.")
        elif there.status != 200:
            raise UnreachableError(f"The Ray cluster's store does not answer: {there.reason}. Look at its head.")
        return f"gcs://{name}"


def _pack(plan: RunPlan, file: Path) -> str:
    """Write a run's code to a file, and return the hash of what it holds."""
    assert plan.code_dir is not None
    merge_overrides(plan)
    extra = _inputs() if _uses_inputs(plan.code_dir) else {}
    if not extra and next(code_entries(plan.code_dir), None) is None:
        extra = {".empty": b""}  # Ray takes no empty package.
    with file.open("wb+") as target:
        write_zip(plan.code_dir, target, extra=extra)
        size = target.seek(0, os.SEEK_END)
        if size > MAX_PACKAGE_BYTES:
            raise SpecError(
                f"The job's code has {format_size(size)}, packed; Ray takes {format_size(MAX_PACKAGE_BYTES)}."
                " Leave data out by a .launchignore, and let the job read it from a shared folder or a bucket."
            )
        target.seek(0)
        found = hashlib.sha256()
        while piece := target.read(_PIECE_BYTES):
            found.update(piece)
        return found.hexdigest()


def _uses_inputs(folder: Path) -> bool:
    programs = (path for name, path in code_entries(folder) if name.endswith((".py", ".ipynb")) and path.is_file())
    return any(b"prefect_launch" in path.read_bytes() for path in programs)


def _inputs() -> dict[str, bytes]:
    """Return the library for a job's inputs, by its names in the package."""
    return {
        f"{INPUTS_FOLDER}/{name.removeprefix(_INPUTS_PREFIX)}": text.encode()
        for name, text in vendored_files().items()
        if name.startswith(_INPUTS_PREFIX)
    }


# --- requirements ---


def pip_packages(plan: RunPlan) -> tuple[str, ...]:
    """Return the lines of a requirements file with what a run's code needs.

    Raises:
        SourceError: when its requirements cannot be read.
        SpecError: when they name more than packages of an index, which is all that Ray's pip gets to see.
    """
    found = read_requirements(plan.project_dir)
    if found.conda is not None:
        raise SourceError(found.conda.refusal)
    if found.local:
        raise SpecError(
            f"The job's requirements name its own files ({', '.join(found.local)}), and Ray's pip does not see the"
            " job's code. Name packages of an index, or put their code where the job imports it from."
        )
    main = next(iter(found.arguments[1:2]), None)
    return tuple(_lines(found, main)) if main else ()


def _lines(found: Requirements, path: str) -> Iterator[str]:
    for raw in found.files[path].decode().splitlines():
        line = raw.strip()
        option, _, name = line.partition(" ")
        if option == "-r" and name in found.files:
            yield from _lines(found, name)
        elif option in ("-r", "-c"):
            raise SpecError(
                f"The job's {path} has the line {line!r}, and Ray's pip gets one file. Write its lines into {path}."
            )
        elif line and not line.startswith("#"):
            yield line
