"""Checks of an entry point, a working directory, a build context and a Dockerfile against a job's code.

An entry point is read from text as a shell would read it, and never run by one.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from prefect_launch.errors import SourceError, SpecError, unknown_name

#: The reference's own, when a job names no entry point.
DEFAULT_ENTRY_POINT: Final = ("python", "main.py")

_FILE_ENDINGS: Final = (".py", ".sh", ".ipynb")
#: After one of these, what follows is no file of the job's.
_NO_FILE: Final = frozenset({"-m", "-c"})


def parse_entry_point(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return a command as its parts; empty when none was given.

    Args:
        given: `"python train.py --lr 0.1"`, or the list of its parts.

    Raises:
        SpecError: when quotes do not match, a part is no text, or holds a character that no command can.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        try:
            parts: tuple[object, ...] = tuple(shlex.split(given))
        except ValueError as error:
            raise SpecError(f"The entry point {given!r} cannot be read: {error}. Close its quotes.") from None
    elif isinstance(given, Sequence):
        parts = tuple(given)
    else:
        raise SpecError(f"The entry point must be text or a list of text, not {type(given).__name__} {given!r}.")
    if not parts:
        raise SpecError(
            f"The entry point {given!r} is empty. Name a command, such as 'python train.py', or leave it out."
        )
    for part in parts:
        if not isinstance(part, str) or "\0" in part:
            raise SpecError(f"The entry point {given!r} holds {part!r}; each of its parts must be text.")
    return tuple(str(part) for part in parts)


def refuse_parents(entry_point: Sequence[str]) -> None:
    """Refuse an entry point that leaves the job's code.

    Raises:
        SpecError: when a part of it holds `..` as a part of a path.
    """
    for part in entry_point:
        if ".." in part.split("/"):
            raise SpecError(
                f"The entry point {shlex.join(entry_point)!r} leaves the job's code with '..'. Name a file in it."
            )


def entry_file(entry_point: Sequence[str]) -> str | None:
    """Return the file of the code that a command runs, if it names one: `train.py` of `python -u train.py`."""
    for part in entry_point:
        if part in _NO_FILE:
            return None
        if part.endswith(_FILE_ENDINGS) and not posixpath.isabs(part) and not part.startswith("-"):
            return posixpath.normpath(part)
    return None


def check_in_code(
    entry_point: Sequence[str],
    paths: Collection[str],
    *,
    folder: str = ".",
    is_copied: bool = False,
    where: str,
    hint: str = "",
    unlisted: Collection[str] = (),
    place: str = "build context",
) -> None:
    """Refuse an entry point whose file is not in the code.

    Args:
        entry_point: the command.
        paths: what is packed, as relative POSIX paths.
        folder: of the code, that the command runs in.
        is_copied: whether a Dockerfile copies the code, any folder of it to any place: then any may hold the file.
        where: where the code is, for the message.
        hint: what else may be wrong, for the message.
        unlisted: folders of the code whose files are not in `paths`: submodules.
        place: what the folder is, for the message.

    Raises:
        SourceError: naming the file, the nearest one, and the others.
    """
    wanted = entry_file(entry_point)
    if wanted is None:
        return
    top = posixpath.normpath(folder)
    if may_hold(posixpath.normpath(posixpath.join(top, wanted)), paths, unlisted):
        return
    if is_copied and (unlisted or any(f"/{path}".endswith(f"/{wanted}") for path in paths)):
        return
    own = [posixpath.relpath(path, top) for path in paths if top == "." or path.startswith(f"{top}/")]
    scripts = [path for path in own if path.endswith(_FILE_ENDINGS)]
    inside = "" if top == "." else f"the {place} {top!r} of "
    listed = unknown_name("entry point file", wanted, scripts, where=f" in {inside}{where}")
    raise SourceError(f"{listed} Give the entry point that you mean.{hint}")


def may_hold(path: str, paths: Collection[str], unlisted: Collection[str] = ()) -> bool:
    """Whether code has a file, or may have: one in a folder that is a link, or that is not listed.

    Args:
        path: of the file, a normal relative POSIX path.
        paths: what the code has: files and links.
        unlisted: folders of the code whose files are not in `paths`.
    """
    return path in paths or is_in(path, unlisted) or any(parent in paths for parent in _parents(path))


# --- working directory ---


def check_working_dir(
    working_dir: str | None,
    paths: Collection[str],
    *,
    build_context: str | None,
    where: str,
    unlisted: Collection[str] = (),
) -> str:
    """Return the folder of the code that a command runs in, by its path there.

    Args:
        working_dir: the folder, relative to the build context.
        paths: what the code has, as relative POSIX paths.
        build_context: the folder of the code that the job runs in.
        where: where the code is, for the message.
        unlisted: folders of the code whose files are not in `paths`: submodules.

    Raises:
        SpecError: when it is no folder of the code; names the nearest one.
    """
    top = posixpath.normpath(build_context or ".")
    given = posixpath.normpath(posixpath.join(top, working_dir or "."))
    inside = not posixpath.isabs(given) and given.split("/")[0] != ".."
    if working_dir is None or (inside and (given in _folders(paths) or may_hold(given, paths, unlisted))):
        return given
    named = f"the build context {top!r} of {where}" if top != "." else where
    folders = {posixpath.relpath(folder, top) for folder in _folders(paths) if is_in(folder, (top,)) or top == "."}
    if folders <= {"."}:
        raise SpecError(
            f"Unknown working directory {working_dir!r}: {named} has no folders. Leave overrides.working_dir out."
        )
    listed = unknown_name("working directory", working_dir, folders - {"."}, where=f" in {named}")
    raise SpecError(f"{listed} Name a folder of the code by its path there.")


# --- build context and Dockerfile ---


def check_build_files(
    paths: Collection[str],
    *,
    build_context: str | None,
    dockerfile: str | None,
    where: str,
    hint: str = "",
    unlisted: Collection[str] = (),
) -> None:
    """Refuse a build context or a Dockerfile that is not in the code.

    Args:
        paths: what the code has, as relative POSIX paths.
        build_context: the folder that the job runs in, or that its image is built in.
        dockerfile: the Dockerfile's path, relative to it.
        where: where the code is, for the message.
        hint: what else may be wrong, for the message.
        unlisted: folders of the code whose files are not in `paths`: submodules.

    Raises:
        SourceError: naming it, and the nearest existing one.
    """
    folder = posixpath.normpath(build_context or ".")
    if not is_in(folder, unlisted) and folder not in _folders((*paths, *(f"{each}/file" for each in unlisted))):
        raise unknown_build_context(build_context or ".", paths, where=where, hint=hint)
    path = posixpath.normpath(posixpath.join(folder, dockerfile or ""))
    if dockerfile is not None and path not in paths and not is_in(path, unlisted):
        inside = [path for path in paths if folder in (".", *_parents(path))]
        there = [posixpath.relpath(path, folder) for path in inside if "dockerfile" in posixpath.basename(path).lower()]
        listed = unknown_name("Dockerfile", dockerfile, there, where=f" in the build context {folder!r} of {where}")
        raise SourceError(f"{listed} Name an existing one, or none to have one generated.{hint}")


def unknown_build_context(build_context: str, paths: Iterable[str], *, where: str, hint: str = "") -> SourceError:
    """Make the error for a build context that is no folder of the code."""
    folders = _folders(paths) - {"."}
    if not folders:
        return SourceError(
            f"Unknown build context {build_context!r} in {where}. It must be a folder of the job's code, by its path"
            f" there, and that code has no folders: leave it out.{hint}"
        )
    listed = unknown_name("build context", build_context, folders, where=f" in {where}")
    return SourceError(f"{listed} It must be a folder of the job's code, by its path there: name one that is.{hint}")


def is_in(path: str, folders: Collection[str]) -> bool:
    """Whether a path is one of some folders, or in one of them."""
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


def _folders(paths: Iterable[str]) -> set[str]:
    return {"."}.union(*(_parents(path) for path in paths))


def _parents(path: str) -> set[str]:
    found = set()
    while path := posixpath.dirname(path):
        found.add(path)
    return found
