"""Changes in a run's code folder: files that a job has written there go to its outputs, or are told of.

What is in the folder is noted before the job starts: names, sizes and times. Caches, a repository and what
`.launchignore` names are told of nowhere.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.code_changes import CodeChanges
from prefect_launch.core.file_patterns import FilePatterns
from prefect_launch.core.filesystem import copy_file, make_folders, walk
from prefect_launch.core.output_limits import LeftOut, Selection
from prefect_launch.errors import LaunchError
from prefect_launch.jobs.archive import LAUNCH_IGNORE, NEVER_TAKEN, taken
from prefect_launch.runners.base import ExitStatus, RunPlan

#: In a run's folder: the files of its code and of its outputs as the job found them, each with its size and its time.
_NOTE: Final = "code-files.json"
#: Names that are told of nowhere.
CACHES: Final = NEVER_TAKEN | {".ipynb_checkpoints"}

NOT_KEPT: Final = "what has changed in the code folder is not kept"
NOT_COPIED: Final = "it cannot be copied from the code folder"
OWN_OUTPUT: Final = "it is in the code folder, and the job has written an output of that name"

_Seen = Mapping[str, Sequence[int]]


def note_code(plan: RunPlan) -> None:
    """Note what is in the code folder of a run, and among its outputs, before its job runs."""
    if plan.code_dir is None:
        return
    folders = {"code": plan.code_dir, "outputs": plan.output_dir}
    noted = {what: {name: _look(folder / name) for name in _files(folder)} for what, folder in folders.items()}
    (plan.run_dir / _NOTE).write_text(json.dumps(noted))


async def with_code_changes(end: ExitStatus, plan: RunPlan) -> ExitStatus:
    """Return the end of a run with what is changed in its code folder; what is to be kept is among its outputs then.

    Doing it again changes nothing.
    """
    if plan.code_dir is None:
        return end
    try:
        left_out, changes = await anyio.to_thread.run_sync(_collect, plan)
    except (OSError, ValueError, LaunchError) as error:
        return end.model_copy(update={"warnings": (*end.warnings, f"{NOT_KEPT}: {error}")})
    return end.model_copy(update={"left_out": end.left_out + left_out, "code_changes": changes})


def _collect(plan: RunPlan) -> tuple[LeftOut, CodeChanges]:
    folder, note = plan.code_dir, plan.run_dir / _NOTE
    if folder is None or folder.is_symlink() or not note.exists():
        return LeftOut(), CodeChanges()
    noted: dict[str, _Seen] = json.loads(note.read_text())
    kept: set[str] = set()
    selection = Selection(plan.output_limits)
    for name in FilePatterns(plan.keep, "keep").select(_files(folder)) if plan.keep else ():
        if _is_changed(folder, name, noted["code"]):
            kept.add(name)
            _keep(folder / name, name, plan.output_dir, noted["outputs"], selection)
    code = taken(folder, ignore_files=(LAUNCH_IGNORE,), never=CACHES, onerror=None)
    changed = (name for name in code if name not in kept and _is_changed(folder, name, noted["code"]))
    return selection.left_out, CodeChanges.of(changed)


def _keep(source: Path, name: str, outputs: Path, noted: _Seen, selection: Selection) -> None:
    """Put a file among the outputs; what the job has written there itself stays."""
    target = outputs / name
    try:
        if not f"{os.path.realpath(target.parent)}/".startswith(f"{os.path.realpath(outputs)}/"):
            selection.leave_out(name, "its folder among the outputs is a link that leads out of them")
        elif not os.path.lexists(target):
            _link(source, target)
        elif noted.get(name) is not None and noted.get(name) == _look(target):  # of the last attempt
            target.unlink()
            _link(source, target)
        elif target.is_symlink() or not target.samefile(source):  # else it was put there before
            selection.leave_out(name, OWN_OUTPUT)
    except OSError as error:
        selection.leave_out(name, f"{NOT_COPIED}: {error.strerror}")


def _link(source: Path, target: Path) -> None:
    make_folders(target.parent)
    try:
        os.link(source, target, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        copy_file(source, target)


def _is_changed(folder: Path, name: str, noted: _Seen) -> bool:
    seen = _look(folder / name)
    return seen is not None and noted.get(name) != seen


def _look(path: Path) -> list[int] | None:
    """Return what tells a changed file from the same one; None for what is no regular file."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    return [about.st_size, about.st_mtime_ns] if stat.S_ISREG(about.st_mode) else None


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, names in walk(folder):
        folders[:] = [name for name in folders if name not in NEVER_TAKEN]
        inside = Path(parent).relative_to(folder)
        yield from ((inside / name).as_posix() for name in names)
