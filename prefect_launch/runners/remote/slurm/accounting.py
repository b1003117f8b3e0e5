"""Slurm's accounting: the ends of jobs that the controller has forgotten, and who cancelled a job.

A site need not have one. It answers for many jobs in one call of `sacct`, a moment after the controller knows.
"""

from __future__ import annotations

import asyncio
import logging
import pwd
import re
import shutil
import time
from collections.abc import Collection
from typing import Final

from prefect_launch.errors import LaunchError
from prefect_launch.runners.remote.slurm.commands import run_slurm
from prefect_launch.runners.remote.slurm.jobs import SlurmJob

log = logging.getLogger(__name__)

#: How long accounting may take to record an end that the controller knows.
_LAG_SECONDS: Final = 15.0
#: The name is last: it may hold the separator.
_FIELDS: Final = ("JobIDRaw", "State", "ExitCode", "NodeList", "JobName")
_STATE: Final = re.compile(r"(?P<state>[A-Z_]+)(?: by (?P<uid>\d+))?\+?")
_DISABLED: Final = re.compile(r"accounting storage is disabled", re.IGNORECASE)


class Accounting:
    """The accounting of a cluster, if it has one; that is found out at the first call."""

    def __init__(self) -> None:
        self._is_missing = False
        self._is_silent = False
        self._asked_at: dict[str, float] = {}

    async def ended_jobs(self, ids: Collection[str]) -> dict[str, SlurmJob]:
        """Return those of these jobs that accounting knows to have ended, in one call; none where it does not answer.

        The jobs have no labels. A number may be that of another job by now: compare the name.
        """
        if not ids or self._is_missing:
            return {}
        now = time.monotonic()
        for number in ids:
            self._asked_at.setdefault(number, now)
        try:
            jobs = await self._sacct(ids)
        except LaunchError as error:
            self._is_missing = _DISABLED.search(str(error)) is not None
            if not (self._is_silent or self._is_missing):
                log.warning("the accounting of slurm does not answer: %s", error)
            self._is_silent = not self._is_missing
            return {}
        self._is_silent = False
        return {job.id: job for job in jobs if job.has_ended}

    @property
    def is_silent(self) -> bool:
        """Whether the cluster has accounting that did not answer the last call."""
        return self._is_silent

    def may_tell(self, number: str) -> bool:
        """Whether it is early to give up a job whose end `ended_jobs` was asked for, and did not have."""
        asked_at = self._asked_at.get(number)
        return asked_at is not None and not self._is_missing and time.monotonic() - asked_at < _LAG_SECONDS

    def forget(self, number: str) -> None:
        """Forget that a job was asked for."""
        self._asked_at.pop(number, None)

    async def _sacct(self, ids: Collection[str]) -> list[SlurmJob]:
        if shutil.which("sacct") is None:
            self._is_missing = True
            return []
        printed = await run_slurm(
            *("sacct", "--noheader", "--parsable2", "--allocations"),
            *(f"--format={','.join(_FIELDS)}", f"--jobs={','.join(sorted(ids))}"),
        )
        return await asyncio.to_thread(_parse, printed)


def _parse(printed: str) -> list[SlurmJob]:
    return [job for line in printed.splitlines() if (job := parse_line(line)) is not None]


def parse_line(line: str) -> SlurmJob | None:
    """Read a line of sacct; None for one that cannot be read. It may ask for the name of a user."""
    values = line.split("|", len(_FIELDS) - 1)
    if len(values) < len(_FIELDS) or not values[0].isdecimal():
        return None
    number, state, code, nodes, name = values
    match, (status, _, signal) = _STATE.fullmatch(state), code.partition(":")
    if match is None or not (status.isdecimal() and signal.isdecimal()):
        return None
    return SlurmJob(
        id=number,
        state=match["state"],
        raw_exit=int(status) << 8 | int(signal),
        nodes="" if nodes in ("None assigned", "(null)") else nodes,
        name=name,
        cancelled_by=_user(int(match["uid"])) if match["uid"] else "",
    )


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"
