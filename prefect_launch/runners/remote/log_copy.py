"""Copy of a remote job's log into its run's folder, without gap or repeat, while the job runs and once it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.cancellation import finished
from prefect_launch.core.pace import Pace
from prefect_launch.errors import LaunchError
from prefect_launch.runners.log_streams import CopiedLog
from prefect_launch.runners.remote.jobs import LogPart

#: In a run's folder: how far its log was read.
_POSITION_FILE: Final = "remote-log.json"


class LogCopy:
    """Copies the log of one job.

    Args:
        path: where to; the position up to which the log was read is kept next to it.
        read: reads the job's log from a position on.
        pace: of all logs that are copied.
        seconds: the pause between two reads, while few are.

    Attributes:
        ended: set it when the job has ended: one more whole pass is made then.
        problems: what failed in the last pass; empty for a log that is whole so far.
    """

    def __init__(
        self, path: Path, read: Callable[[str | None], AsyncIterator[LogPart]], pace: Pace, seconds: float
    ) -> None:
        self._path = path
        self._read = read
        self._pace = pace
        self._seconds = seconds
        self._position: str | None = None
        self._is_known = False
        self.ended = asyncio.Event()
        self.problems: list[str] = []

    async def run(self) -> None:
        """Copy until a whole pass was made that began after the job's end."""
        with self._pace:
            while True:
                is_last = self.ended.is_set()
                try:
                    await self._copy_new()
                    self.problems.clear()
                    if is_last:
                        return
                except (LaunchError, OSError) as error:
                    self._is_known = False
                    self.problems[:] = [f"the log could not be copied: {error}"]
                if is_last:
                    await asyncio.sleep(self._pace.pause(self._seconds))
                else:
                    with anyio.move_on_after(self._pace.pause(self._seconds)):
                        await self.ended.wait()

    async def _copy_new(self) -> None:
        """Copy what is new; no file stays open: hundreds of jobs may be followed."""
        if not self._is_known:
            self._position = await self._in_thread(None)
            self._is_known = True
        async for part in self._read(self._position):
            self._position = await self._in_thread(part)

    async def _in_thread(self, part: LogPart | None) -> str | None:
        """Write a part as a whole, also when this is cancelled: whoever copies next goes on from the position."""
        return await finished(anyio.to_thread.run_sync(_append, self._path, part))


def _append(path: Path, part: LogPart | None) -> str | None:
    """Append a part to a log; return the position to read on from."""
    with closing(CopiedLog(str(path), str(path.with_name(_POSITION_FILE)))) as copied:
        if part is not None:
            copied.append(part.content, part.is_error)
            copied.save(part.position)
        position: str | None = copied.position
        return position
