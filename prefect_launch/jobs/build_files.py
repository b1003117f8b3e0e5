"""Whether what a job's image is to be built with is in its code: asked when the job is made, not when it first runs."""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from prefect_launch.errors import SourceError, unknown_name


def check_build_files(
    paths: Collection[str], *, build_context: str | None, dockerfile: str | None, where: str, hint: str = ""
) -> None:
    """Refuse a build context or a Dockerfile that is not in the code.

    Args:
        paths: what the code has, as relative POSIX paths.
        build_context: the folder that the image is built in.
        dockerfile: the Dockerfile's path, relative to it.
        where: where the code is, for the message.
        hint: what else may be wrong, for the message.

    Raises:
        SourceError: naming it, and the nearest one that is there.
    """
    folder = posixpath.normpath(build_context or ".")
    folders = {"."}.union(*(_parents(path) for path in paths))
    if folder not in folders:
        listed = unknown_name("build context", build_context or ".", sorted(folders), where=f" in {where}")
        raise SourceError(f"{listed} Name a folder of the code.{hint}")
    if dockerfile is not None and posixpath.normpath(posixpath.join(folder, dockerfile)) not in paths:
        inside = [path for path in paths if folder in (".", *_parents(path))]
        there = [posixpath.relpath(path, folder) for path in inside if "dockerfile" in posixpath.basename(path).lower()]
        listed = unknown_name("Dockerfile", dockerfile, there, where=f" in the build context {folder!r} of {where}")
        raise SourceError(f"{listed} Name one that is there, or none to have one generated.{hint}")


def _parents(path: str) -> set[str]:
    found = set()
    while path := posixpath.dirname(path):
        found.add(path)
    return found
