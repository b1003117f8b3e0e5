"""What a run left, with its secrets masked before it is kept and shown: its whole log and its `outputs.json`.

Other files that it left are its own, and are kept as they are. The log in the run's folder on the agent's machine stays
as the job has written it: that folder is the agent's user's alone.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.masking import Mask
from prefect_launch.output_limits import OUTPUTS_FILE
from prefect_launch.runners.base import RunPlan

_COPY: Final = "job.log.masked"


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
        await anyio.to_thread.run_sync(_hide, plan.output_dir / OUTPUTS_FILE, plan.mask)


def _hide(path: Path, mask: Mask) -> None:
    if not path.is_file() or path.is_symlink():
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
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(hidden)
        part.replace(path)
