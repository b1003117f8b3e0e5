"""What a run left, with its secrets masked before it is kept and shown: its whole log and its `outputs.json`.

Other files that it left are its own, and are kept as they are. The log in the run's folder on the agent's machine stays
as the job has written it: that folder is the agent's user's alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.filesystem import data_bytes
from prefect_launch.core.masking import Mask
from prefect_launch.core.output_limits import OUTPUTS_FILE
from prefect_launch.runners.base import RunPlan

_COPY: Final = "job.log.masked"
#: A larger `outputs.json` is masked piece by piece, and not as JSON.
READ_BYTES: Final = 4 * 1024**2


@asynccontextmanager
async def kept_log(plan: RunPlan) -> AsyncIterator[Path | None]:
    """Give a run's whole log as it may be kept; `None` when there is no log.

    It is a copy where the run was given secrets, which is there until the block is left.
    """
    if not await anyio.Path(plan.log_path).exists():
        yield None
    elif not plan.mask:
        yield plan.log_path
    else:
        copy = plan.run_dir / _COPY
        try:
            await anyio.to_thread.run_sync(plan.mask.copy, plan.log_path, copy)
            yield copy
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.Path(copy).unlink(missing_ok=True)


async def hide_in_outputs(plan: RunPlan) -> None:
    """Mask the secrets in the `outputs.json` that a run left, which is shown, kept and read from there."""
    if plan.mask:
        await anyio.to_thread.run_sync(hide_in_file, plan.output_dir / OUTPUTS_FILE, plan.mask)


def hide_in_file(path: Path, mask: Mask) -> None:
    """Mask the secrets in a file of results. One with holes is none: it holds NUL, which no JSON does."""
    if not path.is_file() or path.is_symlink() or _has_holes(path):
        return
    part = path.with_name(f".{path.name}.part")
    if path.stat().st_size > READ_BYTES:
        mask.copy(path, part)  # in pieces: somebody else's file may be of any size
        part.replace(path)
        return
    data = path.read_bytes()
    masked = mask.data(data)
    try:
        outputs = json.loads(data)
        # Not the bytes: a number that is a secret would leave no JSON.
        hidden = json.dumps(mask.json(outputs), ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        hidden = masked
    if masked != data:
        part.write_bytes(hidden)
        part.replace(path)


def _has_holes(path: Path) -> bool:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return data_bytes(file.fileno(), 0, size) < size
