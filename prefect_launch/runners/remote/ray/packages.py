"""Packages of code for Ray: a job's code as a zip archive in the cluster's store, and its requirements for pip.

The archive's name is a hash of its content, so the same code is sent once. Ray unpacks it once a node.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.filesystem import fail, walk
from prefect_launch.core.units import format_size
from prefect_launch.environments.requirements import Requirements, read_requirements
from prefect_launch.errors import InfrastructureError, SpecError, UnreachableError
from prefect_launch.inputs.config_files import find_config_file, merge_into_file
from prefect_launch.inputs.vendoring import vendored_files
from prefect_launch.jobs.archive import NEVER_TAKEN
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.ray.client import RayClient
from prefect_launch.runners.remote.ray.options import INPUTS_FOLDER

#: What the Jobs API takes (its own limit).
MAX_PACKAGE_BYTES: Final = 100 * 1024**2
_INPUTS_PREFIX: Final = "_prefect_launch_inputs/"
#: The first moment that a zip archive can tell.
_MOMENT: Final = (1980, 1, 1, 0, 0, 0)


async def upload_code(client: RayClient, plan: RunPlan) -> str:
    """Send a run's code to the cluster, unless it has it already, and return the package's URI.

    Raises:
        SpecError: when it is larger than Ray takes.
        UnreachableError: when the cluster does not answer.
        InfrastructureError: when it refuses the package.
    """
    content = await anyio.to_thread.run_sync(_packed, plan)
    name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip"
    path = f"/api/packages/gcs/{name}"
    # Asked each time: it also keeps the package from being removed for the next ten minutes.
    there = await client.call("GET", path)
    if there.is_missing:
        sent = await client.call("PUT", path, content=content)
        if sent.status != 200:
            raise InfrastructureError(
                f"The Ray cluster does not take the job's code ({format_size(len(content))}): {sent.reason}."
            )
    elif there.status != 200:
        raise UnreachableError(f"The Ray cluster's store does not answer: {there.reason}. Look at its head.")
    return f"gcs://{name}"


def _packed(plan: RunPlan) -> bytes:
    assert plan.code_dir is not None
    folder = (plan.project_dir or plan.code_dir) / (plan.working_dir or "")
    for path, values in plan.file_overrides.items():
        merge_into_file(find_config_file(path, folder), values)
    packed = io.BytesIO()
    uses_inputs = False
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in _files(plan.code_dir):
            content = file.read_bytes()
            uses_inputs = uses_inputs or (name.endswith((".py", ".ipynb")) and b"prefect_launch" in content)
            _add(archive, name, content, 0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
        if uses_inputs:
            for name, text in sorted(vendored_files().items()):
                if name.startswith(_INPUTS_PREFIX):
                    _add(archive, f"{INPUTS_FOLDER}/{name.removeprefix(_INPUTS_PREFIX)}", text.encode(), 0o644)
        if not archive.namelist():
            _add(archive, ".empty", b"", 0o644)  # Ray takes no empty package.
    if packed.tell() > MAX_PACKAGE_BYTES:
        raise SpecError(
            f"The job's code has {format_size(packed.tell())}, packed; Ray takes {format_size(MAX_PACKAGE_BYTES)}."
            " Leave data out by a .launchignore, and let the job read it from a shared folder or a bucket."
        )
    return packed.getvalue()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """List files by their names in the archive, sorted; a link is followed, since an archive for Ray holds none."""
    for parent, folders, names in walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in NEVER_TAKEN)
        for name in sorted(names):
            file = Path(parent, name)
            inside = Path(os.path.realpath(file)).is_relative_to(folder.resolve())
            if file.is_file() and inside:
                yield file.relative_to(folder).as_posix(), file


def _add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    member = zipfile.ZipInfo(name, _MOMENT)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = (stat.S_IFREG | mode) << 16
    archive.writestr(member, content)


# --- requirements ---


def pip_packages(plan: RunPlan) -> tuple[str, ...]:
    """Return the lines of a requirements file with what a run's code needs.

    Raises:
        SourceError: when its requirements cannot be read.
        SpecError: when they name more than packages of an index, which is all that Ray's pip gets to see.
    """
    found = read_requirements(plan.project_dir)
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
