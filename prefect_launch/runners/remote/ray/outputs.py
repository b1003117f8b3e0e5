"""Outputs of Ray jobs: from a folder that nodes and agent share, or `outputs.json` alone, from the end of the log.

A note in the agent's home holds facts about a job that Ray does not keep and the next agent needs: the folder of its
outputs, and the life of the head that it was submitted to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
from pydantic import BaseModel, ConfigDict

from prefect_launch.core.cancellation import finished
from prefect_launch.core.filesystem import remove_tree
from prefect_launch.core.output_limits import OUTPUTS_FILE, LeftOut, Selection
from prefect_launch.core.units import counted
from prefect_launch.jobs.outputs import copy_outputs
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.job_notes import JobNotes
from prefect_launch.runners.remote.marked_log import MAX_OUTPUTS_BYTES, MarkedLog


class RunNote(BaseModel):
    """What is noted of a job.

    Attributes:
        session: the head's session that it was submitted to; empty when it is not known.
        output_dir: the shared folder of its outputs, made for this run alone; None: there is none.
    """

    model_config = ConfigDict(frozen=True)

    session: str = ""
    output_dir: str | None = None


class RunNotes:
    """The notes of jobs.

    Args:
        folder: of all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._notes = JobNotes(folder, RunNote)

    async def write(self, name: str, note: RunNote) -> None:
        """Write the note of a job."""
        await anyio.to_thread.run_sync(self._notes.write, name, note)

    async def read(self, name: str) -> RunNote:
        """Return the note of a job; an empty one when there is none."""
        return await anyio.to_thread.run_sync(self._notes.read, name) or RunNote()

    async def remove(self, name: str) -> None:
        """Remove the note of a job, and the shared folder of its outputs."""
        await anyio.to_thread.run_sync(self._remove, name)

    def _remove(self, name: str) -> None:
        note = self._notes.read(name)
        if note is not None and note.output_dir is not None:
            remove_tree(Path(note.output_dir))
        self._notes.remove(name)


async def keep_outputs(end: MarkedLog, plan: RunPlan, note: RunNote) -> LeftOut:
    """Bring what an ended job has left into its run's folder, and return what is left out.

    Args:
        end: of the job's log.
        plan: of the run.
        note: of the job.
    """
    why = "the queue has set no output_dir"
    if note.output_dir is not None:
        with ExitStack() as held:
            folder = await finished(anyio.to_thread.run_sync(held.enter_context, _opened(note.output_dir)))
            if folder is not None:
                return (await copy_outputs(folder, plan.output_dir, plan.output_limits)).left_out
        why = "this agent does not see the queue's output_dir"
    selection = Selection(plan.output_limits)
    if note.output_dir is not None and await anyio.to_thread.run_sync(os.path.lexists, note.output_dir):
        selection.leave_out("its outputs folder", "in its place is a link or a file, which is not followed")
    if end.outputs is not None and selection.takes(OUTPUTS_FILE, len(end.outputs)):
        await anyio.Path(plan.output_dir / OUTPUTS_FILE).write_bytes(end.outputs)
    if end.outputs_bytes is not None:
        most = f"at most {MAX_OUTPUTS_BYTES:,} come back by the log"
        selection.leave_out(OUTPUTS_FILE, f"it has {end.outputs_bytes:,} bytes, and {most}")
    if end.other_files:
        what = f"{counted(end.other_files, 'file')} beside {OUTPUTS_FILE}"
        selection.leave_out(what, f"not brought from the node: {why}, a folder that nodes and agent share")
    return selection.left_out


@contextmanager
def _opened(path: str) -> Iterator[Path | None]:
    """Hold a run's folder open; None when it is not there, or is a link, which its job may have made.

    What is read below the path that is given is in that very folder, whatever takes its place meanwhile.
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield Path(f"/proc/self/fd/{folder}")
    finally:
        os.close(folder)
