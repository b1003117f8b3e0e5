"""Outputs of an attempt: kept in the job store, masked, shown on the item's page, and given to the next attempt.

The whole log is kept with the outputs. Secrets are masked in it and in `outputs.json` before both are kept; other
files are kept as they are. The log in the run's folder stays as the job has written it: only the agent's user
can read that folder. A new attempt gets the outputs of the last one, within the same limits: from its folder when it
ran on this machine (a lost agent has stored nothing), else from the job store. A note in the item's log names what is
left out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio

from prefect_launch.agent.log_notes import note_for_people
from prefect_launch.core.filesystem import data_bytes, temporary_folder_async
from prefect_launch.core.masking import Mask
from prefect_launch.core.output_limits import OUTPUTS_FILE, LeftOut
from prefect_launch.core.validation import clean_json, clean_text
from prefect_launch.errors import (
    InfrastructureError,
    NotFoundError,
    clause,
)
from prefect_launch.jobs.outputs import copy_outputs
from prefect_launch.runners.base import LOG_FILE, ExitStatus, RunPlan
from prefect_launch.server.protocol import Server
from prefect_launch.settings.agent_config import MachineSettings

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.queues.session import Session
    from prefect_launch.runners.base import ExitStatus, RunPlan
    from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)


#: The agent's own files, stored with the outputs.
WHOLE_LOG: Final = LOG_FILE


async def keep_outputs(session: Session, flow_run_id: UUID, plan: RunPlan, end: ExitStatus) -> list[str]:
    """Keep an attempt's outputs, within its limits, and its log; note in the log what is left out.

    Doing it again, after an agent that died in the middle of it, changes nothing.

    Args:
        session: an open connection.
        flow_run_id: of the item.
        plan: of the attempt.
        end: how it ended.

    Returns:
        Notes for the message of the run's end.

    Raises:
        InfrastructureError: when the job store fails.
    """
    put = session.jobs.put_outputs
    await mask_outputs(plan)
    async with masked_log(plan) as path:
        extra = {} if path is None else {WHOLE_LOG: path}
        kept = await put(plan.item_id, plan.attempt, plan.output_dir, extra=extra, limits=plan.output_limits)
    left_out, changes = end.left_out + kept.left_out, end.code_changes
    told = [left_out.describe(plan.output_limits)] if left_out else []
    told += [changes.describe()] if changes else []
    if told:  # In one line of its log, behind the job's own: an agent after this one finds it by its text.
        await note_for_people(session.server, flow_run_id, plan.mask.text("\n".join(told)), since=end.ended_at)
    return [
        f"{each.summary()}; its log names {'it' if each.count == 1 else 'them'}."
        for each in (left_out, changes)
        if each
    ]


_COPY: Final = "job.log.masked"
#: A larger `outputs.json` is masked piece by piece, and not as JSON.
READ_BYTES: Final = 4 * 1024**2


@asynccontextmanager
async def masked_log(plan: RunPlan) -> AsyncIterator[Path | None]:
    """Give a run's whole log as it may be kept; `None` when there is no log.

    If the run has secrets, it is a copy that exists until the block is left.
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


async def mask_outputs(plan: RunPlan) -> None:
    """Mask the secrets in the `outputs.json` that a run left, which is shown, kept and read from there."""
    if plan.mask:
        await anyio.to_thread.run_sync(mask_file, plan.output_dir / OUTPUTS_FILE, plan.mask)


def mask_file(path: Path, mask: Mask) -> None:
    """Mask the secrets in a file of results. A sparse file is skipped: it holds NUL, which no JSON does."""
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


async def copy_previous_outputs(session: Session, plan: RunPlan, machine: MachineSettings) -> int | None:
    """Fill a new attempt's output folder with what the last attempt that left something has left.

    Doing it again changes nothing. A first attempt gets nothing. A caller that is cancelled ends it.

    Args:
        session: an open connection.
        plan: the new attempt.
        machine: the machine.

    Returns:
        The attempt that they are of; `None` when none has left any.

    Raises:
        InfrastructureError: when the storage or this machine's disk fails. To start anew without a word would throw
            work away.
    """
    if plan.attempt < 2 or await anyio.Path(plan.output_dir).exists():
        return None
    # In a folder of its own until it is whole: an agent may die in the middle of it.
    async with temporary_folder_async(".last-outputs-", plan.run_dir) as made:
        part = made / plan.output_dir.name
        for attempt in range(plan.attempt - 1, 0, -1):
            folders = await anyio.to_thread.run_sync(machine.run_dirs, plan.item_id, attempt)
            local = [folder / plan.output_dir.name for folder in folders]
            left_out = await _copy_first(local, part, plan)
            if left_out is None and not await _fetch(session.jobs, plan.item_id, attempt, part):
                continue
            await anyio.to_thread.run_sync(part.rename, plan.output_dir)
            if left_out:
                whose = f"the outputs of attempt {attempt}"
                message = left_out.describe(plan.output_limits, what=whose, done="handed on to the next")
                await note_for_people(session.server, UUID(plan.item_id), plan.mask.text(message))
            return attempt
    return None


async def _fetch(jobs: JobRegistry, item_id: str, attempt: int, target: Path) -> bool:
    try:
        found = await jobs.get_outputs(item_id, attempt, target)
    except NotFoundError:
        return False
    if WHOLE_LOG in found:
        await anyio.Path(target / WHOLE_LOG).unlink()
    return bool(set(found) - {WHOLE_LOG})


async def _copy_first(sources: list[Path], target: Path, plan: RunPlan) -> LeftOut | None:
    """Copy the first folder that has anything to keep; return what of it was left out, None when there is no such."""
    for source in sources:
        try:
            copied = await copy_outputs(source, target, plan.output_limits)
        except OSError as error:
            raise InfrastructureError(
                f"The outputs of the last attempt in {source} cannot be copied to {target}: {clause(error)}. Look at"
                " the free space of that disk, and at who may read the folder."
            ) from error
        if copied.paths:
            return copied.left_out
    return None


#: A dict of outputs larger than this is no table for people to read.
_OUTPUTS_BYTES: Final = 1_000_000


async def publish_outputs(server: Server, item_id: UUID, run_id: str, output_dir: Path) -> str | None:
    """Show a run's `outputs.json` as an artifact of its item.

    Returns:
        What is wrong with the file, in words; `None` when it was shown or there is none.
    """
    outputs, fault = await anyio.to_thread.run_sync(read_outputs, output_dir)
    if outputs:
        rows = [{"output": key, "value": value} for key, value in outputs.items()]
        key = re.sub(r"[^a-z0-9]+", "-", f"outputs-{run_id}".lower()).strip("-")
        await server.create_artifact(
            item_id, key=key, kind="table", data=json.dumps(rows), description=f"Outputs of run `{run_id}`."
        )
    return fault


def read_outputs(output_dir: Path) -> tuple[dict[str, Any], str | None]:
    """Read a run's `outputs.json`: a flat dict.

    Returns:
        The outputs, those that the server cannot keep as text, and what is wrong with the file, if anything.
    """
    path = output_dir / OUTPUTS_FILE
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            kind = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(about.st_mode), "special file")
            return {}, f"{OUTPUTS_FILE} is a {kind}, and is not shown. Write it as a file."
        if about.st_size > _OUTPUTS_BYTES:
            return {}, f"{OUTPUTS_FILE} has {about.st_size:,} bytes; at most {_OUTPUTS_BYTES:,} are shown."
        # A diverged training writes NaN, which is no JSON: it is shown as text. From bytes, json finds the encoding.
        found = json.loads(path.read_bytes(), parse_constant=str)
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{OUTPUTS_FILE} cannot be read: {error.strerror}."
    except (ValueError, RecursionError) as error:
        return {}, f"{OUTPUTS_FILE} is no JSON: {error}."
    if not isinstance(found, dict):
        return {}, f"{OUTPUTS_FILE} holds {_KINDS[type(found)]}, and {_FLAT}"
    nested = [f"{name!r} is {_KINDS[type(value)]}" for name, value in found.items() if isinstance(value, (dict, list))]
    if nested:
        more = f" and {len(nested) - _NAMED} more" if len(nested) > _NAMED else ""
        return {}, clean_text(f"{OUTPUTS_FILE} is not shown: {', '.join(nested[:_NAMED])}{more}. It {_FLAT}")
    return clean_json(found), None


_FLAT: Final = "must hold one flat dict of names to texts, numbers, booleans or null."
#: What JSON's values are called.
_KINDS: Final[dict[type, str]] = {
    dict: "a dict",
    list: "a list",
    str: "a text",
    bool: "a boolean",
    type(None): "null",
    int: "a number",
    float: "a number",
}
#: How many nested outputs are named.
_NAMED: Final = 10
