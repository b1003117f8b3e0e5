"""Copy of a remote job's log into its run's folder, without gap or repeat, while the job runs and once it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.errors import LaunchError
from prefect_launch.runners.log_streams import CopiedLog
from prefect_launch.runners.remote.jobs import LogPart

#: In a run's folder: how far its log was read.
_POSITION_FILE: Final = "remote-log.json"
#: How many logs are read a second, at most: with more jobs, each log is read less often.
_READS_A_SECOND: Final = 50.0


class LogPace:
    """The pause between two reads of one log, from how many logs are followed.

    Args:
        seconds: the shortest pause.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._followed = 0

    def __enter__(self) -> LogPace:
        self._followed += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._followed -= 1

    @property
    def seconds(self) -> float:
        """The pause now, in seconds."""
        return max(self._seconds, self._followed / _READS_A_SECOND)


class LogCopy:
    """Copies the log of one job.

    Args:
        path: where to; the position up to which the log was read is kept beside it.
        read: reads the job's log from a position on.
        pace: says how often.

    Attributes:
        ended: set it when the job has ended: one more whole pass is made then.
        problems: what failed in the last pass; empty for a log that is whole so far.
    """

    def __init__(self, path: Path, read: Callable[[str | None], AsyncIterator[LogPart]], pace: LogPace) -> None:
        self._path = path
        self._read = read
        self._pace = pace
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
                    await asyncio.sleep(self._pace.seconds)
                else:
                    with anyio.move_on_after(self._pace.seconds):
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
        writing = asyncio.ensure_future(anyio.to_thread.run_sync(_append, self._path, part))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            raise


def _append(path: Path, part: LogPart | None) -> str | None:
    """Append a part to a log; return the position to read on from."""
    with closing(CopiedLog(str(path), str(path.with_name(_POSITION_FILE)))) as copied:
        if part is not None:
            copied.append(part.content, part.is_error)
            copied.save(part.position)
        position: str | None = copied.position
        return position
