"""Changes in a container's code folder: files that a job has written there go to its outputs, or are told of.

The engine lists what differs from the image. Code that was copied into the container differs too, and has the size and
the time that it has on the agent's machine. What begins with a dot is not told of: the folder is also the job's home.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.code_changes import CodeChanges
from prefect_launch.core.file_patterns import FilePatterns
from prefect_launch.core.output_limits import Selection
from prefect_launch.errors import LaunchError
from prefect_launch.jobs.archive import LAUNCH_IGNORE, NEVER_TAKEN, taken_in
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.runners.code_changes import CACHES, NOT_COPIED, NOT_KEPT, OWN_OUTPUT
from prefect_launch.runners.docker.engine import Container, Engine, PathStat
from prefect_launch.runners.docker.files import CODE_DIR, OUTPUT_DIR, collect_file

#: Of so many files the engine is asked whether they have changed; of the others, those that are new count.
_LOOKED_AT: Final = 1_000


async def with_container_changes(end: ExitStatus, engine: Engine, container: Container, plan: RunPlan) -> ExitStatus:
    """Return the end of a run with what is changed in its code folder; what is to be kept is among its outputs then.

    Doing it again changes nothing.
    """
    code = plan.code_dir
    if code is None or not await anyio.Path(code).is_dir():
        return end
    selection = Selection(plan.output_limits)
    try:
        changes = await _collect(engine, container, plan, code, selection)
    except (OSError, LaunchError) as error:
        return end.model_copy(update={"warnings": (*end.warnings, f"{NOT_KEPT}: {error}")})
    return end.model_copy(update={"left_out": end.left_out + selection.left_out, "code_changes": changes})


async def _collect(
    engine: Engine, container: Container, plan: RunPlan, code: Path, selection: Selection
) -> CodeChanges:
    listed = await engine.changes(container.id)
    wanted, others = await anyio.to_thread.run_sync(_sorted, listed, plan, code)
    for name in wanted:
        seen = await _changed(engine, container, name, code)
        if seen is not None:
            await _keep(engine, container, plan, name, seen, selection)
    told = [name for name in others[:_LOOKED_AT] if await _changed(engine, container, name, code)]
    told += await anyio.to_thread.run_sync(_new, others[_LOOKED_AT:], code)
    return CodeChanges.of(told)


def _sorted(listed: Iterable[str], plan: RunPlan, code: Path) -> tuple[list[str], list[str]]:
    """Return the files of the code folder that are to be kept, and the others that are no caches."""
    top = f"{CODE_DIR}/"
    names = sorted(path.removeprefix(top) for path in listed if path.startswith(top))
    home = posixpath.join(plan.build_context or "", plan.working_dir or "")
    # A folder is listed with what is in it; config files were changed before the start.
    left_out = {posixpath.dirname(name) for name in names}
    left_out |= {posixpath.normpath(posixpath.join(home, path)) for path in plan.file_overrides}
    files = [name for name in names if name not in left_out and not NEVER_TAKEN.intersection(name.split("/"))]
    wanted = FilePatterns(plan.keep, "keep").select(files) if plan.keep else []
    is_taken = taken_in(code, ignore_files=(LAUNCH_IGNORE,), never=CACHES)
    kept = set(wanted)
    return wanted, [name for name in files if name not in kept and not name.startswith(".") and is_taken(name)]


async def _changed(engine: Engine, container: Container, name: str, code: Path) -> PathStat | None:
    """Return what the engine says of a file, unless it is as on the agent's machine, or no regular file."""
    seen = await engine.stat(container.id, f"{CODE_DIR}/{name}")
    if seen is None or not seen.is_file:
        return None
    try:
        before = await anyio.Path(code / name).lstat()
    except OSError:
        return seen
    is_same = (before.st_size, int(before.st_mtime)) == (seen.size, int(seen.changed_at.timestamp()))
    return None if is_same else seen


async def _keep(
    engine: Engine, container: Container, plan: RunPlan, name: str, seen: PathStat, selection: Selection
) -> None:
    output = await engine.stat(container.id, f"{OUTPUT_DIR}/{name}")
    started_at = container.started_at
    if output is not None and (started_at is None or output.changed_at >= started_at):  # Else of the last attempt.
        selection.leave_out(name, OWN_OUTPUT)
    elif selection.takes(name, seen.size):
        try:
            await collect_file(engine, container.id, f"{CODE_DIR}/{name}", seen.size, plan.output_dir / name)
        except OSError as error:
            selection.leave_out(name, f"{NOT_COPIED}: {error.strerror}")


def _new(names: Iterable[str], code: Path) -> list[str]:
    return [name for name in names if not os.path.lexists(code / name)]
