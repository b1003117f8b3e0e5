"""Check of a job's build context and Dockerfile: whether they are in its code, asked when the job is made, not when it
first runs."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable

from prefect_launch.errors import SourceError, unknown_name


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
        SourceError: naming it, and the nearest one that is there.
    """
    folder = posixpath.normpath(build_context or ".")
    if not is_in(folder, unlisted) and folder not in _folders((*paths, *(f"{each}/file" for each in unlisted))):
        raise unknown_build_context(build_context or ".", paths, where=where, hint=hint)
    path = posixpath.normpath(posixpath.join(folder, dockerfile or ""))
    if dockerfile is not None and path not in paths and not is_in(path, unlisted):
        inside = [path for path in paths if folder in (".", *_parents(path))]
        there = [posixpath.relpath(path, folder) for path in inside if "dockerfile" in posixpath.basename(path).lower()]
        listed = unknown_name("Dockerfile", dockerfile, there, where=f" in the build context {folder!r} of {where}")
        raise SourceError(f"{listed} Name one that is there, or none to have one generated.{hint}")


def unknown_build_context(build_context: str, paths: Iterable[str], *, where: str, hint: str = "") -> SourceError:
    """Make the error for a build context that is no folder of the code.

    Args:
        build_context: as it was given.
        paths: what the code has, as relative POSIX paths.
        where: where the code is.
        hint: what else may be wrong.
    """
    listed = unknown_name("build context", build_context, _folders(paths), where=f" in {where}")
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
