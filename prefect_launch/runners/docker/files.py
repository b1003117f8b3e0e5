"""Container files: copies files into and out of containers as tar archives, so a remote engine works like a local one.

Into a container go the previous attempt's outputs, the code of a job that names a base image, and config files with a
run's values merged in. Out come the outputs of the job. Such an archive is written by the job, so nothing in it is
written outside of the target folder, and links and devices are left out.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import anyio

from prefect_launch.core.filesystem import HolesWriter, data_bytes, fail, make_folders, remove_tree, walk
from prefect_launch.core.output_limits import (
    MAX_DEPTH,
    OUTPUTS_FILE,
    TOO_DEEP,
    LeftOut,
    OutputLimits,
    OutputLinks,
    Selection,
)
from prefect_launch.core.units import format_size
from prefect_launch.errors import JobCodeError
from prefect_launch.inputs.config_files import merge_into_file, normal_path
from prefect_launch.runners.docker.engine import Engine, TooLargeError

#: Where `$LAUNCH_OUTPUT_DIR` points in every container; the folder above is for nothing else.
OUTPUT_DIR = "/launch/outputs"
#: Where the code of a job is, in an image that is run as it is; as in images that are built.
CODE_DIR = "/workspace"
#: Where the outputs of other items are that are inputs of a job.
INPUTS_PATH = "/launch/inputs"
#: What is read of an outputs folder beyond its limit: holes, and files that are left out.
_ZEROS_BYTES = 20 * 1024**3
_COPY_BYTES = 1024 * 1024
#: What an archive of one file has beside that.
_HEADERS_BYTES = 64 * 1024
#: What a config file may have.
_MAX_CONFIG_BYTES = 16 * 1024**2


def open_folder_archive(name: str) -> bytes:
    """Return an archive with one empty folder that every user may write to."""
    folder = tarfile.TarInfo(name)
    folder.type = tarfile.DIRTYPE
    folder.mode = 0o777
    return _archive([(folder, b"")])


async def put_files_in(engine: Engine, container_id: str, folder: Path, place: str) -> None:
    """Copy outputs, of the last attempt or of other items, into a container that does not run yet.

    Every user may change them. The container may be read-only: they are in a volume of its own.
    """
    parent, name = posixpath.split(place)
    with tempfile.TemporaryFile(prefix=f"launch-{name}-") as packed:
        await anyio.to_thread.run_sync(lambda: _pack_open(folder, packed, name=name))
        packed.seek(0)
        await engine.put_archive(container_id, parent, packed)


async def put_code_in(engine: Engine, container_id: str, folder: Path) -> None:
    """Copy a job's code into a container that does not run yet: its own copy, for whatever user it runs as.

    It is not mounted, so that a remote engine works like a local one, and no run changes the code of another.
    """
    with tempfile.TemporaryFile(prefix="launch-code-") as packed:
        await anyio.to_thread.run_sync(lambda: _pack_open(folder, packed, name=CODE_DIR.lstrip("/"), links=True))
        packed.seek(0)
        await engine.put_archive(container_id, "/", packed)


def _pack_open(folder: Path, into: BinaryIO, *, name: str, links: bool = False) -> None:
    def opened(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        taken = member.isreg() or member.isdir() or (links and (member.issym() or member.islnk()))
        if posixpath.basename(member.name) == ".git" or not taken:
            return None
        member.mode = 0o777 if member.isdir() or member.mode & 0o100 else 0o666
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=into, mode="w") as archive:
        archive.add(folder, arcname=name, recursive=False, filter=opened)
        for parent, folders, files in walk(folder, onerror=fail):
            inside = posixpath.join(name, Path(parent).relative_to(folder).as_posix())
            for each in sorted([*folders, *files]):
                path = os.path.join(parent, each)
                archive.add(path, arcname=posixpath.normpath(f"{inside}/{each}"), recursive=False, filter=opened)
            folders[:] = [each for each in folders if each != ".git"]


async def merge_config_file(
    engine: Engine, container_id: str, working_dir: str, path: str, values: Mapping[str, Any]
) -> None:
    """Merge values into a config file of a container that does not run yet.

    Raises:
        JobCodeError: when the image has no such file there, or it is no mapping.
    """
    name = normal_path(path)
    inside = posixpath.join(working_dir, name)
    with tempfile.TemporaryDirectory(prefix="launch-config-") as folder:
        packed = io.BytesIO()
        there = await engine.get_archive(container_id, inside, packed, _MAX_CONFIG_BYTES)
        changed = await anyio.to_thread.run_sync(_merged, packed, Path(folder), inside, values) if there else None
    if changed is None:
        raise JobCodeError(
            f"The config file {name!r} is not in the image, as a file in its working directory {working_dir!r}."
            " Correct the path, or put the file into the image."
        )
    await engine.put_archive(container_id, posixpath.dirname(inside), changed)


def empty_folder(folder: Path) -> None:
    """Remove all that is in a folder."""
    remove_tree(folder)
    folder.mkdir()


async def collect_outputs(engine: Engine, container_id: str, target: Path, limits: OutputLimits) -> LeftOut:
    """Copy what a job left in its outputs folder, within limits; return what had to be left behind.

    The engine hands holes over as zeros: they are read, and made holes again.
    """
    selection = Selection(limits)
    most = sys.maxsize if limits.max_bytes is None else limits.max_bytes + _ZEROS_BYTES
    with (
        tempfile.TemporaryFile(prefix=".outputs-", dir=target.parent) as file,
        HolesWriter(file.fileno(), "w+b", closefd=False) as packed,
    ):
        whole = True
        try:
            if not await engine.get_archive(container_id, OUTPUT_DIR, cast(BinaryIO, packed), most):
                return LeftOut()
        except TooLargeError:
            whole = False
        size = packed.finish()
        if not whole:  # Its results may not have come yet.
            await _collect_results(engine, container_id, target, selection)
        await anyio.to_thread.run_sync(_unpack, packed, size, target, selection)
    if not whole:
        why = f"the folder has more than {format_size(most)}, holes included"
        selection.leave_out("all further files", why, over_limit=True)
    return selection.left_out


async def _collect_results(engine: Engine, container_id: str, target: Path, selection: Selection) -> None:
    packed = io.BytesIO()
    try:
        there = await engine.get_archive(container_id, f"{OUTPUT_DIR}/{OUTPUTS_FILE}", packed, _MAX_CONFIG_BYTES)
    except TooLargeError:
        return
    if there:
        await anyio.to_thread.run_sync(_unpack_results, packed, target, selection)


async def collect_file(engine: Engine, container_id: str, path: str, size: int, target: Path) -> None:
    """Copy one file of a container to a place on this machine; one that is there is replaced."""
    with tempfile.TemporaryFile(prefix=".kept-") as packed:
        if await engine.get_archive(container_id, path, packed, size + _HEADERS_BYTES):
            await anyio.to_thread.run_sync(_unpack_file, packed, target)


def _unpack_file(packed: BinaryIO, target: Path) -> None:
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        member = archive.next()
        if member is not None and member.isreg():
            make_folders(target.parent)
            _write(archive, member, target)


def _unpack_results(packed: io.BytesIO, target: Path, selection: Selection) -> None:
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        member = archive.next()
        if member is not None and member.isreg() and selection.takes(OUTPUTS_FILE, member.size):
            _write(archive, member, target / OUTPUTS_FILE)


def _merged(packed: io.BytesIO, folder: Path, inside: str, values: Mapping[str, Any]) -> bytes | None:
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        member = archive.next()
        content = archive.extractfile(member) if member is not None and member.isreg() else None
        if member is None or content is None:
            return None
        file = folder / posixpath.basename(inside)
        file.write_bytes(content.read())
    merge_into_file(file, values)
    changed = file.read_bytes()
    member.size = len(changed)
    return _archive([(member, changed)])


def _archive(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _unpack(packed: HolesWriter, size: int, target: Path, selection: Selection) -> None:
    """Unpack an archive of the outputs folder; its own name comes off the members' paths.

    Args:
        packed: the archive, which may have been cut off.
        size: of it, in bytes.
        target: the folder.
        selection: decides which files are kept.
    """
    root = target.resolve()
    links = OutputLinks([OUTPUT_DIR])
    # The results come first: no other file may take their room.
    for results_only in (True, False):
        for archive, member in _members(packed, size):
            name = member.name.partition("/")[2]
            if not name or (name == OUTPUTS_FILE) is not results_only:
                continue
            path = (root / name).resolve()
            if root not in path.parents:
                selection.leave_out(name, "it is outside of the outputs folder")
            elif name.count("/") > MAX_DEPTH:
                selection.leave_out(name, TOO_DEEP)
            elif member.issym():
                links.add(name, member.linkname)
            elif not path.exists() or member.isdir():
                _unpack_member(archive, member, packed.fileno(), path, selection, name)
    links.leave_out(root, selection)


def _members(packed: HolesWriter, size: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the archive and those of its members that are whole."""
    packed.seek(0)
    with tarfile.open(fileobj=cast(BinaryIO, packed)) as archive:
        try:
            for member in archive:
                if member.offset_data + member.size > size:
                    return
                yield archive, member
                archive.members.clear()  # type: ignore[attr-defined]  # a job may leave millions
        except tarfile.ReadError:
            return


def _unpack_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    descriptor: int,
    path: Path,
    selection: Selection,
    name: str,
) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
    elif not member.isreg():
        selection.leave_out(
            name, f"it is {'a link' if member.islnk() else 'a pipe' if member.isfifo() else 'a device'}"
        )
    else:
        held = data_bytes(descriptor, member.offset_data, member.offset_data + member.size)
        if selection.takes(name, held):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(archive, member, path)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    if content is not None:
        with content, HolesWriter(path, "w") as file:
            shutil.copyfileobj(content, cast(BinaryIO, file), _COPY_BYTES)
            file.finish()
