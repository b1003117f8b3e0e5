"""Ray cluster as the runner needs it: its jobs, nodes and logs, and the end of a job that waits.

A log is read as bytes by the State API, from its beginning each time, since Ray reads no file from a position on; the
Jobs API's own logs fail at the first byte that is no text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import uuid4

from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.core.units import counted
from prefect_launch.errors import InfrastructureError, LaunchError
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RunHandle
from prefect_launch.runners.remote.marked_log import MarkedLog
from prefect_launch.runners.remote.ray.client import RayAnswer, RayClient, job_path, no_dashboard
from prefect_launch.runners.remote.ray.options import ENDS_LABEL
from prefect_launch.runners.remote.ray.status import Nodes, asked_of, read_job, read_nodes

log = logging.getLogger(__name__)

_JOBS: Final = "/api/jobs/"
_LOG_FILE: Final = "job-driver-{}.log"
#: So many jobs are asked for one by one, and so many at a time.
_FEW: Final = 4
#: What the last list took counts less with each round without one, so that a list is tried again.
_LIST_DECAY: Final = 0.99
#: How long what is known of the nodes counts.
_NODES_SECONDS: Final = 5.0
_MOST_NODES: Final = 10_000
#: How long an ended job is kept at least: Ray goes on to look after it for a second or two, and would write the end of
#: the old job into a new one of the same id, or make up a record for one that is not there.
_SETTLE_SECONDS: Final = 5.0
#: What such a record has as its command.
_NO_COMMAND: Final = "Entrypoint not found."
#: How long a job that was asked to stop may go on to start before its supervisor is killed: it stops once it has begun.
_START_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.5
#: Lines at the end of a log that are looked through for marks: a process that outlives its job may write after them.
_MARKED_LINES: Final = 100
#: The pause after the read of a log, in times of what it took: a long log is read less often while its job runs.
_LOG_PAUSES: Final = 10.0
#: Ends a job that waits, which no call of the API does: its supervisor is an actor that has not been started.
_KILL_PROGRAM: Final = """import sys, ray
ray.init(address="auto", namespace="SUPERVISOR_ACTOR_RAY_NAMESPACE", log_to_driver=False)
try:
    ray.kill(ray.get_actor("_ray_internal_job_actor_" + sys.argv[1]), no_restart=True)
except ValueError:
    pass
"""


@dataclass
class _Known:
    """What is known of a job that is followed.

    Attributes:
        mark: in the marked lines of its log.
        place: the node that its log is on; None before it has a process.
        ended_at: when it was first seen to have ended.
        log_due: when its log is to be read again.
    """

    mark: str
    place: str | None = None
    ended_at: float | None = None
    log_due: float = 0.0


class RayCluster:
    """One cluster.

    Args:
        client: of its API.
    """

    def __init__(self, client: RayClient) -> None:
        self._client = client
        self._known: dict[str, _Known] = {}
        self._nodes: tuple[float, Nodes | None] | None = None
        self._removing = OwnedTasks()
        self._session = ""
        #: What the last list of all jobs took, and the last read of one, in seconds.
        self._list_seconds, self._one_seconds = 0.0, 0.0

    async def session(self) -> str:
        """Return the name of the head's life: another one after each start of it.

        Raises:
            UnreachableError: when it does not answer.
        """
        version = _object(await self._client.get("/api/version"), "ray_version")
        self._session = str(version.get("session_name", ""))
        return self._session

    async def last_session(self) -> str:
        """Return the name of the head's life as it was last seen; an agent looks every few seconds."""
        return self._session or await self.session()

    async def describe(self) -> str:
        """Say which Ray it is, and what it has."""
        version = _object(await self._client.get("/api/version"), "ray_version")
        nodes = await self.nodes()
        count = "its nodes are not known" if nodes is None else counted(len(nodes.total), "node")
        return f"Ray {version['ray_version']} at {self._client.address}, {count}"

    async def aclose(self) -> None:
        """End the background work."""
        await self._removing.end()

    # --- jobs ---

    async def jobs(self, is_wanted: Callable[[Mapping[str, Any]], bool]) -> list[RemoteJob]:
        """Return those of the jobs that were submitted to it which are wanted, in one call.

        Args:
            is_wanted: whether a job is, from what the API says of it. It is called in another thread.
        """
        return [await self._job_of(one) for one in await self._list(is_wanted)]

    async def _list(self, is_wanted: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
        began = time.monotonic()
        answer = self._client.checked(await self._client.call("GET", _JOBS))
        found = await asyncio.to_thread(lambda: [one for one in _listed(answer) if is_wanted(one)])
        self._list_seconds = time.monotonic() - began
        return found

    async def some_jobs(self, handles: Collection[str]) -> list[RemoteJob]:
        """Return those of some jobs that there are.

        Ray lists whatever it has ever had: where that takes longer, they are asked for one by one.
        """
        if len(handles) > _FEW and len(handles) * self._one_seconds >= self._list_seconds:
            return [await self._read(one) for one in await self._list(lambda one: one["submission_id"] in handles)]
        began, turns = time.monotonic(), asyncio.Semaphore(_FEW)

        async def find(handle: str) -> RemoteJob | None:
            async with turns:
                return await self.find(handle)

        found = await asyncio.gather(*map(find, handles))
        if handles:
            self._one_seconds = (time.monotonic() - began) / len(handles)
            self._list_seconds *= _LIST_DECAY
        return [job for job in found if job is not None]

    async def find(self, handle: str) -> RemoteJob | None:
        """Return a job by its submission id; None when there is none."""
        details = await self._details(handle)
        if details is not None and details.get("entrypoint") == _NO_COMMAND:
            await self._client.call("DELETE", job_path(handle))
            return None
        return None if details is None else await self._read(details)

    async def _details(self, handle: str) -> Mapping[str, Any] | None:
        details = await self._client.get(job_path(handle))
        return None if details is None else _object(details, "submission_id", "status")

    async def _job_of(self, details: Mapping[str, Any]) -> RemoteJob:
        asked = asked_of(details) if details.get("status") == "PENDING" else {}
        nodes = await self.nodes() if asked else None
        return read_job(details, nodes.reason(asked) if nodes is not None else "")

    async def _read(self, details: Mapping[str, Any]) -> RemoteJob:
        """Return a job that is followed, and keep what is to be known of it."""
        job = await self._job_of(details)
        known = self._known.setdefault(job.handle, _Known(""))
        known.mark = str(RunHandle.of(job))
        known.place = str(details.get("driver_node_id") or "") or known.place
        if job.status.state is RemoteState.ENDED and known.ended_at is None:
            known.ended_at = time.monotonic()
        return job

    async def _known_of(self, handle: str) -> _Known | None:
        """Return what is known of a job that has had a process; None for any other."""
        known = self._known.get(handle)
        if known is None or known.place is None:
            await self.find(handle)
            known = self._known.get(handle)
        return known if known is not None and known.place is not None else None

    async def has_run(self, handle: str) -> bool:
        """Whether a job has had a process."""
        return await self._known_of(handle) is not None

    def forget(self, handle: str) -> None:
        """Keep nothing more of a job that is not followed any more."""
        self._known.pop(handle, None)

    async def submit(self, body: Mapping[str, Any]) -> RayAnswer:
        """Submit a job; its answer says nothing certain."""
        return await self._client.call("POST", _JOBS, json=dict(body))

    async def delete(self, handle: str) -> None:
        """Remove a job that has ended.

        Raises:
            InfrastructureError: when Ray does not.
        """
        known = self._known.get(handle) if await self.find(handle) is not None else None
        if known is not None:
            if known.ended_at is not None:
                await asyncio.sleep(known.ended_at + _SETTLE_SECONDS - time.monotonic())
            answer = await self._client.call("DELETE", job_path(handle))
            if answer.status != 200 and not answer.is_missing:
                raise InfrastructureError(f"Ray does not remove the job {handle!r}: {answer.reason}. Stop it first.")
        self.forget(handle)

    async def stop(self, handle: str) -> None:
        """Ask for a job's end: its grace was set when it was submitted. One that waits for resources is killed.

        Raises:
            UnreachableError: when it was not asked.
        """
        answer = await self._client.call("POST", job_path(handle, "/stop"))
        if not answer.is_missing:
            self._client.checked(answer)
        due = time.monotonic() + _START_SECONDS
        while (details := await self._details(handle)) is not None and details["status"] == "PENDING":
            nodes = await self.nodes()
            if time.monotonic() >= due or (nodes is not None and nodes.reason(asked_of(details))):
                await self._kill_waiting(handle)
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _kill_waiting(self, handle: str) -> None:
        """Kill the supervisor of a job that waits, by a job of its own on the head; it needs no resources."""
        killer = f"{handle}-stop-{uuid4().hex[:8]}"
        command = (
            f"exec $(command -v python || command -v python3) -c {shlex.quote(_KILL_PROGRAM)} {shlex.quote(handle)}"
        )
        await self.submit({"submission_id": killer, "entrypoint": command, "metadata": {ENDS_LABEL: handle}})
        job = await self.find(killer)
        while job is not None and job.status.state is not RemoteState.ENDED:
            await asyncio.sleep(_LOOK_SECONDS)
            job = await self.find(killer)
        if job is not None and job.status.exit is not None and not job.status.exit.succeeded:
            log.warning("the waiting job %s could not be killed: %s", handle, job.status.exit.describe())
        self.remove_killer(killer)

    def remove_killer(self, handle: str) -> None:
        """Remove, in the background, an ended job that has killed another one."""
        self._removing.start(f"removal of job {handle} of Ray", partial(self._remove_killer, handle))

    async def _remove_killer(self, handle: str) -> None:
        try:
            await self.delete(handle)
        except LaunchError as error:
            log.warning("the job %s is left in Ray: %s", handle, error)

    # --- nodes ---

    async def nodes(self) -> Nodes | None:
        """Return the nodes as they were seconds ago; None when the cluster does not tell."""
        if self._nodes is not None and time.monotonic() < self._nodes[0]:
            return self._nodes[1]
        try:
            self._nodes = (time.monotonic() + _NODES_SECONDS, self._nodes[1] if self._nodes is not None else None)
            nodes = await self._client.get("/api/v0/nodes", detail="true", limit=_MOST_NODES)
            rows = nodes["data"]["result"]["result"]
            found = read_nodes(rows, await self._cluster_status())
        except (LaunchError, LookupError, TypeError, ValueError, AttributeError) as error:
            log.debug("nothing is known of Ray's nodes: %s", error)
            return None
        self._nodes = (time.monotonic() + _NODES_SECONDS, found)
        return found

    async def _cluster_status(self) -> Mapping[str, Any] | None:
        """Return what is used of the nodes; not every cluster tells."""
        answer = await self._client.call("GET", "/api/cluster_status")
        found = answer.json() if answer.status == 200 else {}
        return (found.get("data") or {}).get("clusterStatus")

    # --- logs ---

    async def log_from(self, handle: str, position: int) -> AsyncIterator[tuple[bytes, int]]:
        """Yield what a job has written from a position on, in pieces, each with the position behind it.

        While the job runs, a log that takes long to read is not read at each call.
        """
        known = await self._known_of(handle)
        if known is None or (known.ended_at is None and time.monotonic() < known.log_due):
            return
        began, marked, before = time.monotonic(), MarkedLog(known.mark, position), position
        async for piece in self._log(handle, known, -1):
            new, before = piece[before:], max(0, before - len(piece))
            for content in marked.feed(new):
                yield content, marked.position
        now = time.monotonic()
        known.log_due = now + _LOG_PAUSES * (now - began)

    async def end_of_log(self, handle: str) -> MarkedLog:
        """Return the marks at the end of a job's log."""
        known = await self._known_of(handle)
        marked = MarkedLog(handle if known is None else known.mark)
        if known is not None:
            async for piece in self._log(handle, known, _MARKED_LINES):
                for _ in marked.feed(piece):
                    pass
        return marked

    async def _log(self, handle: str, known: _Known, lines: int) -> AsyncIterator[bytes]:
        name = _LOG_FILE.format(handle)
        async for piece in self._client.stream("/api/v0/logs/file", node_id=known.place, filename=name, lines=lines):
            yield piece


def _listed(answer: RayAnswer) -> Iterator[Mapping[str, Any]]:
    """Yield the submitted jobs of a list; another thread gets its turn after each, as it does not within a long list.

    Raises:
        InfrastructureError: when it is no list of jobs.
    """
    decoder, text = json.JSONDecoder(), answer.text.strip()
    if not text.startswith("["):
        raise no_dashboard(text)
    place = _next(text, 1)
    while text[place : place + 1] not in ("]", ""):
        try:
            found, place = decoder.raw_decode(text, place)
        except ValueError:
            raise no_dashboard(text) from None
        if _object(found).get("submission_id"):
            yield found
        place = _next(text, place)


def _next(text: str, place: int) -> int:
    """Return where the next job of a list begins, or the list's end is."""
    while text[place : place + 1] in (" ", "\n", ","):
        place += 1
    return place


def _object(found: Any, *keys: str) -> Mapping[str, Any]:
    if not (isinstance(found, dict) and all(key in found for key in keys)):
        raise no_dashboard(json.dumps(found))
    return found
