"""Logs of custom jobs from Cloud Logging: one read for all jobs, at a pace that its quota allows.

A project may read 60 times a minute, whoever reads. Entries come late, and not in the order of their times; so a log is
read on from when the last entry was *received*, a little before it, and what is known already is left out by its id.
Each line of another machine than the first begins with the name of its worker.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from prefect_launch.core.cancellation import ended
from prefect_launch.runners.remote.jobs import LogPart
from prefect_launch.runners.remote.vertex.client import GoogleClient, Service
from prefect_launch.runners.remote.vertex.status import id_of, parse_time

#: The pause between two reads: half of the quota, so that others can read, too.
_PACE_SECONDS: Final = 2.0
#: The pause before the next page of what one read has found.
_PAGE_SECONDS: Final = 1.1
#: How long an entry that was received may not be found yet.
_OVERLAP: Final = timedelta(seconds=20)
_PAGE: Final = 1_000
#: A filter has at most 20,000 characters.
_MOST_JOBS: Final = 100
_FIRST_WORKER: Final = "workerpool0-0"
#: Vertex AI's own lines, not the job's.
_SERVICE: Final = "service"
#: What Vertex AI puts around a line of a job.
_FRAME: Final = frozenset({"attrs", "levelname", "message"})

Entry = Mapping[str, Any]


class LogMark(NamedTuple):
    """How far a log is kept.

    Attributes:
        received: when the newest entry was received, as Google writes it; empty: nothing is kept.
        seen: marks of the entries that were received shortly before that, or later.
    """

    received: str = ""
    seen: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> LogMark:
        """Read a mark from a log's position."""
        return cls(*json.loads(text)) if text else cls()

    def __str__(self) -> str:
        return json.dumps([self.received, self.seen])

    def since(self, made: str) -> str:
        """Return from when on entries are read; `made` is when the job was."""
        received = parse_time(self.received)
        return made if received is None else _written(received - _OVERLAP)


def part_of(mark: LogMark, entries: Iterable[Entry]) -> LogPart | None:
    """Return what is new of a log; None for nothing.

    Args:
        mark: how far it is kept.
        entries: as they were found.
    """
    known, lines = set(mark.seen), list[str]()
    newest, kept = mark.received, dict[str, datetime | None]()
    for entry in entries:
        key, received = _key(entry), str(entry.get("receiveTimestamp") or "")
        kept[key] = parse_time(received)
        if key in known:
            continue
        known.add(key)
        if _is_after(received, newest):
            newest = received
        if (line := _line(entry)) is not None:
            lines.append(line)
    if newest == mark.received and not lines:
        return None
    edge = parse_time(newest)
    seen = tuple(key for key, at in kept.items() if edge is None or at is None or at >= edge - _OVERLAP)
    return LogPart("".join(lines).encode(), str(LogMark(newest, seen)))


def _is_after(one: str, other: str) -> bool:
    first, second = parse_time(one), parse_time(other)
    return first is not None and (second is None or first > second)


def _key(entry: Entry) -> str:
    what = f"{entry.get('logName')} {entry.get('timestamp')} {entry.get('insertId')}"
    return blake2b(what.encode(), digest_size=8).hexdigest()


def _line(entry: Entry) -> str | None:
    worker = str(((entry.get("resource") or {}).get("labels") or {}).get("task_name") or _FIRST_WORKER)
    if worker == _SERVICE:
        return None
    prefix = "" if worker == _FIRST_WORKER else f"[{worker}] "
    text = _text(entry).removesuffix("\n")
    return "".join(f"{prefix}{line}\n" for line in text.split("\n"))


def _text(entry: Entry) -> str:
    if "textPayload" in entry:
        return str(entry["textPayload"])
    payload = entry.get("jsonPayload") or {}
    message = payload.get("message")
    # A line that is JSON itself may arrive as its fields.
    return message if isinstance(message, str) and payload.keys() <= _FRAME else json.dumps(payload, ensure_ascii=False)


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class _Wanted(NamedTuple):
    """A log that is to be read: its job's id, when that was made, how far the log is kept, and who waits for it."""

    job: str
    made: str
    mark: LogMark
    future: asyncio.Future[list[Entry]]

    @property
    def clause(self) -> str:
        """What finds its entries, in Cloud Logging's language."""
        since = self.mark.since(self.made)
        return f'(resource.labels.job_id="{self.job}" AND receiveTimestamp>="{since}")'


class VertexLogs:
    """The logs of the jobs of one project.

    Args:
        client: of the API.
    """

    def __init__(self, client: GoogleClient) -> None:
        self._client = client
        self._waiting: list[_Wanted] = []
        self._task: asyncio.Task[None] | None = None
        self._due = 0.0

    async def read(self, job: Mapping[str, Any], after: str | None) -> LogPart | None:
        """Return what is new of a job's log, in one read with the others that wait for theirs.

        Args:
            job: of the REST API.
            after: the position up to which it is kept.

        Raises:
            LaunchError: when Google does not tell.
        """
        loop = asyncio.get_running_loop()
        wanted = _Wanted(id_of(job), str(job["createTime"]), LogMark.parse(after), loop.create_future())
        self._waiting.append(wanted)
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run())
        return part_of(wanted.mark, await wanted.future)

    async def aclose(self) -> None:
        """End what is being read."""
        if self._task is not None:
            await ended(self._task)

    async def ping(self) -> None:
        """Check that logs can be read.

        Raises:
            LaunchError: when they cannot.
        """
        await self._entries('resource.type="ml_job"', page=1, is_one=True)

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            batch, self._waiting = self._waiting[:_MOST_JOBS], self._waiting[_MOST_JOBS:]
            try:
                found = await self._read(batch)
            except Exception as error:  # noqa: BLE001 - each who asked gets it raised
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)
            else:
                for one in batch:
                    if not one.future.done():
                        one.future.set_result(found.get(one.job, []))
            finally:
                for one in batch:
                    one.future.cancel()

    async def _read(self, batch: Sequence[_Wanted]) -> dict[str, list[Entry]]:
        made = min(one.made for one in batch)  # Without a time, only the last day is looked through.
        anyone = " OR ".join(sorted({one.clause for one in batch}))
        found: dict[str, list[Entry]] = {}
        for entry in await self._entries(f'resource.type="ml_job" AND timestamp>="{made}" AND ({anyone})'):
            found.setdefault(str(entry["resource"]["labels"]["job_id"]), []).append(entry)
        return found

    async def _entries(self, wanted: str, *, page: int = _PAGE, is_one: bool = False) -> list[Entry]:
        body: dict[str, Any] = {
            "resourceNames": [f"projects/{await self._client.account.project()}"],
            "filter": wanted,
            "orderBy": "timestamp asc",
            "pageSize": page,
        }
        found: list[Entry] = []
        while True:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            self._due = time.monotonic() + _PACE_SECONDS
            answer = await self._client.call(Service.LOGGING, "POST", "/v2/entries:list", json=body)
            found += self._client.good(answer, "log entries").body.get("entries") or ()
            token = answer.body.get("nextPageToken")
            if not token or is_one:
                return found
            body["pageToken"] = token
            self._due = time.monotonic() + _PAGE_SECONDS
