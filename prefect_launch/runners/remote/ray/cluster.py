"""Ray cluster as the runner needs it: its jobs, nodes and logs, and the end of a job that waits.

A log is read as bytes by the State API, from its beginning each time, since Ray reads no file from a position on; the
Jobs API's own logs fail at the first byte that is no text.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Final
from uuid import uuid4

from prefect_launch.errors import InfrastructureError, LaunchError
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RunHandle
from prefect_launch.runners.remote.marked_log import MarkedLog
from prefect_launch.runners.remote.ray.client import RayAnswer, RayClient, job_path
from prefect_launch.runners.remote.ray.status import Nodes, asked_of, read_job, read_nodes

log = logging.getLogger(__name__)

_JOBS: Final = "/api/jobs/"
_LOG_FILE: Final = "job-driver-{}.log"
#: So many jobs are asked for one by one.
_FEW: Final = 4
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


class RayCluster:
    """One cluster.

    Args:
        client: of its API.
    """

    def __init__(self, client: RayClient) -> None:
        self._client = client
        self._places: dict[str, str] = {}
        #: What is in the marks of their logs.
        self._marks: dict[str, str] = {}
        self._ended_at: dict[str, float] = {}
        self._log_due: dict[str, float] = {}
        self._nodes: tuple[float, Nodes | None] | None = None
        self._removing: set[asyncio.Task[None]] = set()
        self._session = ""

    async def session(self) -> str:
        """Return the name of the head's life: another one after each start of it.

        Raises:
            UnreachableError: when it does not answer.
        """
        version = await self._client.get("/api/version")
        self._session = str((version or {}).get("session_name", ""))
        return self._session

    async def last_session(self) -> str:
        """Return the name of the head's life as it was last seen; an agent looks every few seconds."""
        return self._session or await self.session()

    async def describe(self) -> str:
        """Say which Ray it is, and what it has."""
        version = await self._client.get("/api/version") or {}
        nodes = await self.nodes()
        count = "its nodes are not known" if nodes is None else f"{len(nodes.total)} nodes"
        return f"Ray {version.get('ray_version', '?')} at {self._client.address}, {count}"

    async def aclose(self) -> None:
        """End what is still done beside."""
        for task in (removing := list(self._removing)):
            task.cancel()
        if removing:
            await asyncio.wait(removing)

    # --- jobs ---

    async def jobs(self) -> list[RemoteJob]:
        """Return all jobs that were submitted to it, in one call."""
        found = [one for one in await self._client.get(_JOBS) or () if one.get("submission_id")]
        return [await self._seen(one) for one in found]

    async def some_jobs(self, handles: Collection[str]) -> list[RemoteJob]:
        """Return those of some jobs that there are: few one by one, since Ray lists whatever it has ever had."""
        if len(handles) > _FEW:
            return [job for job in await self.jobs() if job.handle in handles]
        return [job for job in await asyncio.gather(*map(self.find, handles)) if job is not None]

    async def find(self, handle: str) -> RemoteJob | None:
        """Return a job by its submission id; None when there is none."""
        details = await self._client.get(job_path(handle))
        if details is not None and details.get("entrypoint") == _NO_COMMAND:
            await self._client.call("DELETE", job_path(handle))
            return None
        return None if details is None else await self._seen(details)

    async def _seen(self, details: Mapping[str, Any]) -> RemoteJob:
        asked = asked_of(details) if details.get("status") == "PENDING" else {}
        nodes = await self.nodes() if asked else None
        job = read_job(details, nodes.reason(asked) if nodes is not None else "")
        self._marks[job.handle] = str(RunHandle.of(job))
        if place := details.get("driver_node_id"):
            self._places[job.handle] = str(place)
        if job.status.state is RemoteState.ENDED:
            self._ended_at.setdefault(job.handle, time.monotonic())
        return job

    async def has_run(self, handle: str) -> bool:
        """Whether a job has had a process."""
        return handle in self._places or (await self.find(handle) is not None and handle in self._places)

    async def submit(self, body: Mapping[str, Any]) -> RayAnswer:
        """Submit a job; its answer says nothing certain."""
        return await self._client.call("POST", _JOBS, json=dict(body))

    async def delete(self, handle: str) -> None:
        """Remove a job that has ended.

        Raises:
            InfrastructureError: when Ray does not.
        """
        if await self.find(handle) is None:
            return
        ended_at = self._ended_at.get(handle)
        if ended_at is not None:
            await asyncio.sleep(ended_at + _SETTLE_SECONDS - time.monotonic())
        answer = await self._client.call("DELETE", job_path(handle))
        if answer.status not in (200, 404):
            raise InfrastructureError(f"Ray does not remove the job {handle!r}: {answer.reason}. Stop it first.")
        self._places.pop(handle, None)
        self._marks.pop(handle, None)
        self._log_due.pop(handle, None)
        self._ended_at.pop(handle, None)

    async def stop(self, handle: str) -> None:
        """Ask for a job's end: its grace was set when it was submitted. One that waits for resources is killed."""
        await self._client.call("POST", job_path(handle, "/stop"))
        due = time.monotonic() + _START_SECONDS
        while (details := await self._client.get(job_path(handle))) is not None and details["status"] == "PENDING":
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
        await self.submit({"submission_id": killer, "entrypoint": command})
        job = await self.find(killer)
        while job is not None and job.status.state is not RemoteState.ENDED:
            await asyncio.sleep(_LOOK_SECONDS)
            job = await self.find(killer)
        if job is not None and job.status.exit is not None and not job.status.exit.succeeded:
            log.warning("the waiting job %s could not be killed: %s", handle, job.status.exit.describe())
        removing = asyncio.create_task(self._remove_killer(killer))
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)

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
            status = await self._client.get("/api/cluster_status")
            rows = nodes["data"]["result"]["result"]
            found = read_nodes(rows, ((status or {}).get("data") or {}).get("clusterStatus"))
        except (LaunchError, LookupError, TypeError, ValueError, AttributeError) as error:
            log.debug("nothing is known of Ray's nodes: %s", error)
            return None
        self._nodes = (time.monotonic() + _NODES_SECONDS, found)
        return found

    # --- logs ---

    async def log_from(self, handle: str, position: int) -> AsyncIterator[tuple[bytes, int]]:
        """Yield what a job has written from a position on, in pieces, each with the position behind it.

        While the job runs, a log that takes long to read is not read at each call.
        """
        if handle not in self._ended_at and time.monotonic() < self._log_due.get(handle, 0.0):
            return
        if not await self.has_run(handle):
            return
        began, marked, before = time.monotonic(), MarkedLog(self._marks[handle], position), position
        async for piece in self._log(handle, -1):
            new, before = piece[before:], max(0, before - len(piece))
            for content in marked.feed(new):
                yield content, marked.position
        now = time.monotonic()
        self._log_due[handle] = now + _LOG_PAUSES * (now - began)

    async def end_of_log(self, handle: str) -> MarkedLog:
        """Return the marks at the end of a job's log."""
        if not await self.has_run(handle):
            return MarkedLog(handle)
        marked = MarkedLog(self._marks[handle])
        async for piece in self._log(handle, _MARKED_LINES):
            for _ in marked.feed(piece):
                pass
        return marked

    async def _log(self, handle: str, lines: int) -> AsyncIterator[bytes]:
        place, name = self._places[handle], _LOG_FILE.format(handle)
        async for piece in self._client.stream("/api/v0/logs/file", node_id=place, filename=name, lines=lines):
            yield piece
