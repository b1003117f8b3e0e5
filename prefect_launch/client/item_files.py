"""Files that an item has left: their list, and their way from the job store into a folder of the caller."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from anyio import to_thread

from prefect_launch.core.file_patterns import FilePatterns
from prefect_launch.core.filesystem import make_folders, temporary_folder_async
from prefect_launch.core.names import safe_name
from prefect_launch.core.units import counted
from prefect_launch.errors import LaunchError, NotFoundError, clause, nearest_name, unknown_name

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item

#: How many files a refusal names.
_NAMED: Final = 5


def default_folder(name: str) -> Path:
    """Return the folder in the working directory that the files of an item come to, by the item's name."""
    return Path(safe_name(name, fallback="outputs"))


async def list_files(session: Session, item: Item) -> dict[str, int]:
    """Return the files that an item's last attempt left, the whole log included: their sizes in bytes, by path.

    Raises:
        NotFoundError: when none is stored (yet).
        InfrastructureError: when the job store fails.
    """
    try:
        return await session.jobs.list_outputs(str(item.id), item.last_attempt)
    except NotFoundError as error:
        if item.is_terminal:
            raise
        raise NotFoundError(
            f"Item {item.name} ({item.id}) is {item.state_name}: its files are stored when it has ended."
        ) from error


async def download(session: Session, item: Item, pattern: str | None, root: Path, *, overwrite: bool) -> list[Path]:
    """Copy the files that an item's last attempt left into a folder; each appears whole or not at all.

    Args:
        session: an open connection.
        item: the item.
        pattern: which files, as in `.gitignore`; None: all.
        root: the folder that they come to; it is made.
        overwrite: whether a file that is there, and differs, is replaced.

    Returns:
        The files in the folder, in the order of their names.

    Raises:
        NotFoundError: when none is stored, or none matches.
        SpecError: when the pattern is none.
        LaunchError: when a file would be replaced, or the folder cannot be written to.
        InfrastructureError: when the job store fails.
    """
    wanted = None if pattern is None else FilePatterns([pattern], "The pattern")
    files = await list_files(session, item)
    if wanted is not None:
        chosen = wanted.select(files)
        if not chosen:
            raise _no_match(str(pattern), files, item)
        files = {name: files[name] for name in chosen}
    with _writing(root):
        await to_thread.run_sync(_check_free, root, files, overwrite)
        made = [each for each in (root, *root.parents) if not each.exists()]
        try:
            await to_thread.run_sync(make_folders, root)
            async with temporary_folder_async(".download-", root) as part:
                await session.jobs.fetch_outputs(str(item.id), item.last_attempt, list(files), part)
                await to_thread.run_sync(partial(_put_in_place, part, root, list(files), overwrite=overwrite))
        finally:
            await to_thread.run_sync(_remove_empty, made)
    return [root / name for name in files]


def _no_match(pattern: str, files: Collection[str], item: Item) -> NotFoundError:
    near = nearest_name(pattern, files)
    if near is None:
        by_name = {PurePosixPath(name).name: name for name in files}
        near = by_name.get(nearest_name(PurePosixPath(pattern).name, by_name) or "")
    return unknown_name("file", pattern, files, where=f" of the item {item.name} ({item.id})", near=near)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"The folder {str(root)!r} cannot be written to: {clause(error)}. Name another one, or free space there."
        ) from error


def _check_free(root: Path, files: Mapping[str, int], overwrite: bool) -> None:
    """Refuse what can be refused before anything is fetched: files that differ in size, and ways out of the folder."""
    inside = os.path.realpath(root)
    for name in files:
        parent = os.path.realpath((root / name).parent)
        if parent != inside and not parent.startswith(f"{inside.rstrip(os.sep)}{os.sep}"):
            raise LaunchError(
                f"{str(root / name)!r} leads out of the folder {str(root)!r}, by a link to {parent!r}. Remove the link,"
                " or name another folder."
            )
    if not overwrite:
        _refuse(root, [name for name, size in files.items() if _differs_in_size(root / name, size)])


def _differs_in_size(place: Path, size: int) -> bool:
    return os.path.lexists(place) and (place.is_symlink() or not place.is_file() or place.stat().st_size != size)


def _put_in_place(part: Path, root: Path, names: Collection[str], *, overwrite: bool) -> None:
    """Move files into a folder, where those that are there already, and the same, stay as they are."""
    new = [name for name in names if not _is_same(part / name, root / name)]
    if not overwrite:
        _refuse(root, [name for name in new if os.path.lexists(root / name)])
    for name in new:
        make_folders((root / name).parent)
        (part / name).replace(root / name)


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and not other.is_symlink() and filecmp.cmp(one, other, shallow=False)


def _refuse(root: Path, names: Collection[str]) -> None:
    if not names:
        return
    shown = ", ".join(list(names)[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    raise LaunchError(
        f"The folder {str(root)!r} has {counted(len(names), 'other file')} of the same name already: {shown}. Nothing"
        " was written. Replace with --overwrite (overwrite=True), or name another folder."
    )


def _remove_empty(folders: Collection[Path]) -> None:
    """Remove the folders, the deepest first, that are still empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
