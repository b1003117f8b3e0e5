"""Code of a run as an archive that goes to a cluster: one rule of what it holds, as a tar or as a zip.

It holds what `prefect_launch.jobs.archive` takes of a folder by name: neither a repository nor caches, environments and
run data, at any depth. Links that stay inside are kept, or followed if the archive cannot hold links. Links that lead
out of the code are left out, and so is everything that is not a file. The same code gives the same bytes: names sorted,
no times, no owners.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, NamedTuple

from prefect_launch.core.filesystem import fail, walk
from prefect_launch.inputs.config_files import find_config_file, merge_into_file
from prefect_launch.jobs.archive import NEVER_TAKEN
from prefect_launch.runners.base import RunPlan

#: The first moment that a zip archive can tell.
_MOMENT: Final = (1980, 1, 1, 0, 0, 0)
_FILE_MODE: Final = 0o644
_PROGRAM_MODE: Final = 0o755
#: Links to folders that lead to folders with links to folders: deeper ones are left out.
_MOST_LINKS: Final = 8


class CodeEntry(NamedTuple):
    """A folder, file or link of the code.

    Attributes:
        name: relative, with forward slashes.
        path: on this machine.
    """

    name: str
    path: Path


def merge_overrides(plan: RunPlan) -> None:
    """Merge a run's values into the config files of its code; doing it again changes nothing. Blocks.

    Raises:
        JobCodeError: when there is no such file, or it cannot be read.
    """
    folder = (plan.project_dir or plan.code_dir or Path()) / (plan.working_dir or "")
    for path, values in plan.file_overrides.items():
        merge_into_file(find_config_file(path, folder), values)


def code_entries(folder: Path) -> Iterator[CodeEntry]:
    """Yield what of a folder goes into an archive, in an order that depends on the names alone; folders come first.

    Raises:
        OSError: when a folder cannot be read.
    """
    root = folder.resolve()
    for parent, folders, names in walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in NEVER_TAKEN)
        for name in sorted([*folders, *(name for name in names if name not in NEVER_TAKEN)]):
            path = Path(parent, name)
            if _is_carried(path, root):
                yield CodeEntry(path.relative_to(folder).as_posix(), path)


def _is_carried(path: Path, root: Path) -> bool:
    if path.is_symlink():
        return not os.path.isabs(os.readlink(path)) and Path(os.path.realpath(path)).is_relative_to(root)
    return path.is_file() or path.is_dir()


def write_tar(folder: Path, target: IO[bytes], *, extra: Mapping[str, bytes] | None = None, mode_bits: int = 0) -> None:
    """Write the code of a folder as a gzipped tar archive. Blocks.

    Args:
        folder: of the code.
        target: where to.
        extra: more files, by their names.
        mode_bits: set in the mode of each file and folder, such as 0o666; a folder that may be read may be entered.
    """
    with (
        gzip.GzipFile(filename="", fileobj=target, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in code_entries(folder):
            member = tar.gettarinfo(str(path), arcname=name)
            if member.islnk():  # Another name of a file that is in the archive already.
                member.type, member.linkname, member.size = tarfile.REGTYPE, "", path.stat().st_size
            member.mtime = member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode |= mode_bits | ((mode_bits & 0o444) >> 2 if member.isdir() else 0)
            if member.isreg():
                with path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
        for name, content in sorted((extra or {}).items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), _FILE_MODE | mode_bits
            tar.addfile(member, io.BytesIO(content))


def write_zip(folder: Path, target: IO[bytes], *, extra: Mapping[str, bytes] | None = None) -> None:
    """Write the code of a folder as a zip archive: links are followed, and empty folders left out. Blocks.

    Args:
        folder: of the code.
        target: where to.
        extra: more files, by their names.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in _followed(folder, "", _MOST_LINKS):
            is_program = path.stat().st_mode & stat.S_IXUSR
            member = _zip_member(name, _PROGRAM_MODE if is_program else _FILE_MODE)
            with path.open("rb") as file, archive.open(member, "w", force_zip64=True) as out:
                shutil.copyfileobj(file, out)
        for name, content in sorted((extra or {}).items()):
            archive.writestr(_zip_member(name, _FILE_MODE), content)


def _followed(folder: Path, prefix: str, most_links: int) -> Iterator[CodeEntry]:
    for name, path in code_entries(folder):
        if path.is_file():
            yield CodeEntry(prefix + name, path)
        elif path.is_symlink() and path.is_dir() and most_links and not _leads_up(path):
            yield from _followed(path.resolve(), f"{prefix}{name}/", most_links - 1)


def _leads_up(link: Path) -> bool:
    """Whether a link leads to a folder that it is in."""
    return link.parent.resolve().is_relative_to(link.resolve())


def _zip_member(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _MOMENT)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = (stat.S_IFREG | mode) << 16
    return member
