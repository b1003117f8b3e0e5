"""Which Dockerfile builds a job's code, and in which folder: the first match wins, in the reference's order.

A Dockerfile that is named (by the run, else by the job); `Dockerfile.wandb` beside the entry point, whose folder
becomes the context; none, and one is generated. Nothing outside of the code is ever looked at.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prefect_launch.errors import SourceError
from prefect_launch.jobs.build_files import unknown_build_context
from prefect_launch.jobs.entrypoint import entry_file
from prefect_launch.jobs.ignore import list_code
from prefect_launch.spec.image_request import ImageWish

OWN_DOCKERFILE: Final = "Dockerfile.wandb"


@dataclass(frozen=True)
class Layout:
    """Where an image is built.

    Attributes:
        context: the folder that goes into the build.
        dockerfile: the Dockerfile's path in it; None: one is generated.
        entry_point: the command, as it is called in an image of that folder.
    """

    context: Path
    dockerfile: str | None
    entry_point: tuple[str, ...]


def find_layout(code_dir: Path, wish: ImageWish) -> Layout:
    """Decide how code is built.

    Raises:
        SourceError: when a named Dockerfile or build context is not in the code.
    """
    root = code_dir.resolve()
    context = _inside(root, wish.build_context or ".", root, "build context")
    if not context.is_dir():
        raise unknown_build_context(wish.build_context or ".", list_code(root), where="the job's code")
    if wish.dockerfile:
        file = _inside(context, wish.dockerfile, root, "Dockerfile")
        if not file.is_file():
            raise SourceError(
                f"Dockerfile does not exist at {wish.dockerfile!r} in the build context"
                f" {wish.build_context or '.'!r} of the job's code. Name one that does, or none to have one generated."
            )
        return Layout(context, posixpath.normpath(wish.dockerfile), wish.entry_point)
    return _beside_entry_point(context, wish) or Layout(context, None, wish.entry_point)


def _beside_entry_point(context: Path, wish: ImageWish) -> Layout | None:
    script = entry_file(wish.entry_point)
    if script is None:
        return None
    folder = posixpath.dirname(script)
    place = (context / folder).resolve()
    inside = place == context or context in place.parents
    if not inside or not (place / OWN_DOCKERFILE).is_file():
        return None
    name = posixpath.basename(script)
    moved = tuple(name if posixpath.normpath(part) == script else part for part in wish.entry_point)
    return Layout(place, OWN_DOCKERFILE, moved if folder else wish.entry_point)


def _inside(folder: Path, path: str, root: Path, what: str) -> Path:
    real = (folder / path).resolve()
    limit = root if what == "build context" else folder
    if real != limit and limit not in real.parents:
        raise SourceError(
            f"The {what} {path!r} leaves the {'code' if limit is root else 'build context'} of the job. Put it inside."
        )
    return real
