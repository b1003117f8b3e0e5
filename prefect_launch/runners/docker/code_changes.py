"""Changes in a container's code folder: files that a job has written there go to its outputs, or are told of.

The engine lists what differs from the image. Code that was copied into the container differs too, and has the size and
the time that it has on the agent's machine. What begins with a dot is not told of: the folder is also the job's home.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from prefect_launch.core.code_changes import CodeChanges
from prefect_launch.core.file_patterns import FilePatterns
from prefect_launch.core.output_limits import Selection
from prefect_launch.errors import LaunchError
from prefect_launch.jobs.archive import LAUNCH_IGNORE, NEVER_TAKEN, taken_in
from prefect_launch.runners.base import CODE_FOLDER, ExitStatus, RunPlan
from prefect_launch.runners.code_changes import CACHES, NOT_COPIED, NOT_KEPT, OWN_OUTPUT
from prefect_launch.runners.docker.engine import Container, Engine, PathStat
from prefect_launch.runners.docker.files import CODE_DIR, OUTPUT_DIR, collect_file

#: Of so many files the engine is asked whether they have changed; of the others, those that are new count.
_LOOKED_AT: Final = 1_000


class _CodeFolder(NamedTuple):
    """The code folder of a container.

    Attributes:
        local: the top of the code on the agent's machine.
        context: the folder of the code that the container has; empty: all of it.
        inside: where the container has it.
    """

    local: Path
    context: str
    inside: str

    def name_of(self, path: str) -> str | None:
        """Return the name of a path of the container in the code; None for one that is elsewhere."""
        top = f"{self.inside}/"
        return posixpath.join(self.context, path[len(top) :]) if path.startswith(top) else None

    def path_of(self, name: str) -> str:
        """Return where the container has what is in the code under a name."""
        return posixpath.join(self.inside, posixpath.relpath(name, self.context or "."))


async def with_container_changes(end: ExitStatus, engine: Engine, container: Container, plan: RunPlan) -> ExitStatus:
    """Return the end of a run with what is changed in its code folder; what is to be kept is among its outputs then.

    Doing it again changes nothing.
    """
    selection = Selection(plan.output_limits)
    try:
        folder = await _folder(engine, container, plan)
        if folder is None or not await anyio.Path(folder.local).is_dir():
            return end
        changes = await _collect(engine, container, plan, folder, selection)
    except (OSError, LaunchError) as error:
        return end.model_copy(update={"warnings": (*end.warnings, f"{NOT_KEPT}: {error}")})
    return end.model_copy(update={"left_out": end.left_out + selection.left_out, "code_changes": changes})


async def _folder(engine: Engine, container: Container, plan: RunPlan) -> _CodeFolder | None:
    if plan.code_dir is not None:
        return _CodeFolder(plan.code_dir, "", CODE_DIR)
    if plan.built_code_dir is None:
        return None
    image = await engine.image(container.image_id)
    inside = image.working_dir.rstrip("/") if image is not None else ""
    local = plan.run_dir / CODE_FOLDER
    context = plan.built_code_dir.relative_to(local).as_posix()
    # An image that names no folder has its code anywhere.
    return _CodeFolder(local, "" if context == "." else context, inside) if inside else None


async def _collect(
    engine: Engine, container: Container, plan: RunPlan, folder: _CodeFolder, selection: Selection
) -> CodeChanges:
    listed = await engine.changes(container.id)
    wanted, others = await anyio.to_thread.run_sync(_sorted, listed, plan, folder)
    for name in wanted:
        seen = await _changed(engine, container, name, folder)
        if seen is not None:
            await _keep(engine, container, plan, folder, name, seen, selection)
    told = [name for name in others[:_LOOKED_AT] if await _changed(engine, container, name, folder)]
    told += await anyio.to_thread.run_sync(_new, others[_LOOKED_AT:], folder)
    return CodeChanges.of(told)


def _sorted(listed: Iterable[str], plan: RunPlan, folder: _CodeFolder) -> tuple[list[str], list[str]]:
    """Return the files of the code folder that are to be kept, and the others that are no caches."""
    names = sorted(filter(None, map(folder.name_of, listed)))
    home = posixpath.join(folder.context or plan.build_context or "", plan.working_dir or "")
    # A folder is listed with what is in it; config files were changed before the start.
    left_out = {posixpath.dirname(name) for name in names}
    left_out |= {posixpath.normpath(posixpath.join(home, path)) for path in plan.file_overrides}
    files = [name for name in names if name not in left_out and not NEVER_TAKEN.intersection(name.split("/"))]
    wanted = FilePatterns(plan.keep, "keep").select(files) if plan.keep else []
    is_taken = taken_in(folder.local, ignore_files=(LAUNCH_IGNORE,), never=CACHES)
    others = set(files).difference(wanted)
    hidden = posixpath.join(folder.context, ".")
    return wanted, sorted(name for name in others if not name.startswith(hidden) and is_taken(name))


async def _changed(engine: Engine, container: Container, name: str, folder: _CodeFolder) -> PathStat | None:
    """Return what the engine says of a file, unless it is as on the agent's machine, or no regular file."""
    seen = await engine.stat(container.id, folder.path_of(name))
    if seen is None or not seen.is_file:
        return None
    try:
        before = await anyio.Path(folder.local / name).lstat()
    except OSError:
        return seen
    is_same = (before.st_size, int(before.st_mtime)) == (seen.size, int(seen.changed_at.timestamp()))
    return None if is_same else seen


async def _keep(
    engine: Engine,
    container: Container,
    plan: RunPlan,
    folder: _CodeFolder,
    name: str,
    seen: PathStat,
    selection: Selection,
) -> None:
    output = await engine.stat(container.id, f"{OUTPUT_DIR}/{name}")
    started_at = container.started_at
    if output is not None and (started_at is None or output.changed_at >= started_at):  # Else of the last attempt.
        selection.leave_out(name, OWN_OUTPUT)
    elif selection.takes(name, seen.size):
        try:
            await collect_file(engine, container.id, folder.path_of(name), seen.size, plan.output_dir / name)
        except OSError as error:
            selection.leave_out(name, f"{NOT_COPIED}: {error.strerror}")


def _new(names: Iterable[str], folder: _CodeFolder) -> list[str]:
    return [name for name in names if not os.path.lexists(folder.local / name)]
