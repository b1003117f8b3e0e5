"""Log of a Slurm job: the two files that its streams are written to, read on from a position in each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.runners.remote.jobs import LogPart
from prefect_launch.runners.remote.slurm import script

_PIECE_BYTES: Final = 256 * 1024


async def read_streams(folder: Path, after: str | None) -> AsyncIterator[LogPart]:
    """Read what the streams of a job hold by now.

    Args:
        folder: of the job's files.
        after: the position of the last part that was kept; None for the beginning.

    Yields:
        Parts of one stream each, no more than was there at the first look at it.
    """
    offsets = [int(number) for number in (after or "0,0").split(",")]
    for index, name in enumerate((script.STDOUT, script.STDERR)):
        while piece := await anyio.to_thread.run_sync(_read, folder / name, offsets[index]):
            offsets[index] += len(piece)
            yield LogPart(piece, f"{offsets[0]},{offsets[1]}", is_error=index == 1)
            if len(piece) < _PIECE_BYTES:
                break


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_PIECE_BYTES)
    except FileNotFoundError:
        return b""
