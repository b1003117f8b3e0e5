"""Custom jobs as the runner needs them: found by their names, listed in few calls, made once.

The API chooses a job's id, so a job's name is no key: a second request makes a second job. A name is looked up before
a job is made, and for as long as lists may lag where a request to make one may have taken effect. Of two jobs of one
claim the older one is the run; the younger one is cancelled and deleted wherever it is seen. A list may be late; a job
that is asked for by its id is as it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.errors import InfrastructureError, LaunchError, NoRoomError, SpecError, UnreachableError
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.jobs import RemoteState
from prefect_launch.runners.remote.vertex.client import Answer, GoogleClient, Service
from prefect_launch.runners.remote.vertex.labels import as_google, from_google
from prefect_launch.runners.remote.vertex.status import ENDED_STATES, id_of, state_of

log = logging.getLogger(__name__)

Job = Mapping[str, Any]

_PAGE: Final = 100
_LOOK_SECONDS: Final = 1.0
#: How long a job that was deleted may be in lists.
_DELETED_SECONDS: Final = 600.0
#: How long a second job may take to end before it is left to itself.
_TWIN_SECONDS: Final = 900.0
#: What is kept of a job; its variables may be long.
_FIELDS: Final = ("name", "displayName", "labels", "state", "createTime", "startTime", "endTime", "error")
_SPEC_FIELDS: Final = ("baseOutputDirectory", "scheduling")
_ACTIVE: Final = " AND ".join(f'state!="{name}"' for name in ENDED_STATES)


@dataclass(frozen=True)
class _Seen:
    """A job that was seen.

    Attributes:
        job: as it was seen last.
        at: when, on the monotonic clock, it was made by this runner; 0: it was not.
    """

    job: Job
    at: float = 0.0

    @property
    def order(self) -> tuple[str, str]:
        """Which of two jobs is the older one."""
        return str(self.job.get("createTime", "")), id_of(self.job)

    @property
    def claim(self) -> str:
        """The claim that it was made under."""
        return from_google(self.job.get("labels") or {}).get(Labels.CLAIM, "")

    @property
    def agent(self) -> str:
        """The name of the agent that made it."""
        return from_google(self.job.get("labels") or {}).get(Labels.AGENT, "")


class VertexJobs:
    """The jobs of one project and region.

    Args:
        client: of the API.
        lag_seconds: how long lists may leave out a job.
    """

    def __init__(self, client: GoogleClient, lag_seconds: float) -> None:
        self._client = client
        self._lag_seconds = lag_seconds
        self._seen: dict[str, _Seen] = {}
        self._deleted: dict[str, float] = {}
        self._twins = OwnedTasks()

    async def aclose(self) -> None:
        """End the background work."""
        await self._twins.end()

    def known(self, name: str) -> Job | None:
        """Return a job as it was seen last; None for one that was not."""
        seen = self._seen.get(name)
        return None if seen is None else seen.job

    def forget(self, name: str) -> None:
        """Keep nothing more of a job."""
        self._seen.pop(name, None)

    async def named(self, name: str, *, seconds: float = 0.0) -> Job | None:
        """Return the job of a name; None when no list has shown it for so long.

        Args:
            name: of its run.
            seconds: how long it is looked for.

        Raises:
            LaunchError: when Google does not tell.
        """
        due = time.monotonic() + seconds
        while True:
            found = self._settled(await self._list(f'display_name="{name}"')).get(name)
            if found is not None or time.monotonic() >= due:
                return found
            await asyncio.sleep(min(_LOOK_SECONDS, max(0.05, due - time.monotonic())))

    async def labelled(self, labels: Mapping[str, str]) -> list[Job]:
        """Return the jobs with these labels, also those that this runner has just made.

        Raises:
            LaunchError: when Google does not tell.
        """
        wanted = as_google(labels)
        asked = " AND ".join(f'labels.{key}="{value}"' for key, value in wanted.items())
        found = self._settled(await self._list(asked))
        late = time.monotonic() - 2 * self._lag_seconds
        for name, seen in list(self._seen.items()):
            if name not in found and seen.at > late and wanted.items() <= (seen.job.get("labels") or {}).items():
                found |= await self._asked_for(name)
        return list(found.values())

    async def some(self, names: Collection[str]) -> dict[str, Job | LaunchError]:
        """Return those of some jobs that there are: one list of all that have not ended, and each other one by its id.

        Raises:
            LaunchError: when Google does not answer.
        """
        found: dict[str, Job | LaunchError] = {}
        agents = {self._seen[name].agent for name in names if name in self._seen}
        for agent in sorted(agents - {""}):  # What a direct `launch` made is of no agent.
            of_agent = (f'labels.{key}="{text}"' for key, text in as_google({Labels.AGENT: agent}).items())
            found |= self._settled(await self._list(" AND ".join([*of_agent, _ACTIVE])))
        for name in names:
            if name not in found:
                found |= await self._asked_for(name)
        return {name: job for name, job in found.items() if name in names}

    async def _asked_for(self, name: str) -> dict[str, Job]:
        seen = self._seen.get(name)
        if seen is None:
            job = await self.named(name)
        else:
            job = await self._get(seen.job["name"])
            if job is None:
                self.forget(name)
            else:
                self._seen[name] = _Seen(job, seen.at)
        return {} if job is None else {name: job}

    async def create(self, body: Mapping[str, Any]) -> Job:
        """Make a job.

        Raises:
            SpecError: when Google refuses what it asks for.
            NoRoomError: when the project's quota does not have it now.
            UnreachableError: when it may have been made, or Google does not answer.
        """
        path = await self._client.jobs_path()
        sent = {"once": True, "may_be_forbidden": True}
        answer = await self._client.call(Service.VERTEX, "POST", path, **sent, json=dict(body))
        if not answer.is_good:
            raise _refusal(answer)
        job = _trimmed(answer.body)
        self._seen[job["displayName"]] = _Seen(job, time.monotonic())
        return job

    async def cancel(self, name: str) -> None:
        """Ask for a job's end; nothing for one that is gone.

        Raises:
            LaunchError: when it was not asked.
        """
        job = self.known(name) or await self.named(name)
        if job is not None:
            await self._cancel(job)

    async def _cancel(self, job: Job) -> None:
        answer = await self._client.call(Service.VERTEX, "POST", f"/v1/{job['name']}:cancel", json={})
        # A job that has ended meanwhile is no failure: whoever stops it sees that it has.
        if not answer.is_missing and answer.code != 400:
            self._client.good(answer, f"the end of the job {job['displayName']!r}")

    async def delete(self, name: str) -> None:
        """Remove a job that has ended; nothing for one that is gone.

        Raises:
            LaunchError: when it is not removed.
        """
        job = self.known(name) or await self.named(name)
        if job is not None:
            await self._delete(job)
        self.forget(name)

    async def _delete(self, job: Job) -> None:
        answer = await self._client.call(Service.VERTEX, "DELETE", f"/v1/{job['name']}")
        if not answer.is_missing:
            self._client.good(answer, f"to delete the job {job['displayName']!r}")
        now = time.monotonic()
        self._deleted = {key: at for key, at in self._deleted.items() if at > now - _DELETED_SECONDS}
        self._deleted[job["name"]] = now

    async def ping(self) -> None:
        """Check that jobs can be listed.

        Raises:
            LaunchError: when they cannot.
        """
        path = await self._client.jobs_path()
        answer = await self._client.call(Service.VERTEX, "GET", path, params={"pageSize": 1})
        self._client.good(answer, "its custom jobs")

    async def _get(self, resource: str) -> Job | None:
        if resource in self._deleted:
            return None
        answer = await self._client.call(Service.VERTEX, "GET", f"/v1/{resource}")
        return None if answer.is_missing else _trimmed(self._client.good(answer, f"the job {resource!r}").body)

    async def _list(self, wanted: str) -> list[Job]:
        path, params = await self._client.jobs_path(), {"filter": wanted, "pageSize": _PAGE}
        found = await self._client.pages(Service.VERTEX, path, "customJobs", params)
        return [_trimmed(job) for job in found if job["name"] not in self._deleted]

    # --- two jobs of one name ---

    def _settled(self, jobs: Iterable[Job]) -> dict[str, Job]:
        """Return the runs' jobs by their names: of each name the newest claim's, of a claim's the oldest."""
        names = []
        for found in sorted((_Seen(job) for job in jobs), key=lambda seen: seen.order):
            if Labels.ITEM not in from_google(found.job.get("labels") or {}):
                continue  # Somebody else's, of the same name.
            name = str(found.job["displayName"])
            names.append(name)
            known = self._seen.get(name)
            if known is None or known.job["name"] == found.job["name"]:
                self._seen[name] = _Seen(found.job, known.at if known is not None else 0.0)
            elif known.claim == found.claim:
                older, younger = sorted((known, found), key=lambda seen: seen.order)
                self._seen[name] = older
                self._end_twin(younger.job, older.job)
            elif known.order < found.order:
                self._seen[name] = found
        return {name: self._seen[name].job for name in names}

    def _end_twin(self, younger: Job, older: Job) -> None:
        log.warning(
            "%s is a second job of %s (%s): it is cancelled", younger["name"], older["displayName"], older["name"]
        )
        self._twins.start(f"end of the second job {younger['name']}", partial(self._cancel_twin, younger))

    async def _cancel_twin(self, job: Job) -> None:
        due = time.monotonic() + _TWIN_SECONDS
        while (now := await self._get(job["name"])) is not None:
            if state_of(now) is RemoteState.ENDED:
                await self._delete(now)
            elif time.monotonic() >= due:
                log.warning("the second job %s has been cancelled, and still runs", job["name"])
                return
            else:
                await self._cancel(now)
                await asyncio.sleep(_LOOK_SECONDS)


def _trimmed(job: Job) -> Job:
    spec = job.get("jobSpec") or {}
    kept = {name: job[name] for name in _FIELDS if name in job}
    return {**kept, "jobSpec": {name: spec[name] for name in _SPEC_FIELDS if name in spec}}


def _refusal(answer: Answer) -> LaunchError:
    if answer.code == 429:
        return NoRoomError(f"Google Cloud has no quota for the job now: {answer.reason}.")
    if answer.code in (400, 404, 412):
        return SpecError(
            f"Vertex AI refuses the job (HTTP {answer.code}): {answer.reason}. Correct its spec, in the queue's config."
        )
    if answer.code == 403:
        return InfrastructureError(
            f"Google does not let this agent make the job (HTTP 403): {answer.reason}. Give its account the role"
            " Vertex AI User, and Service Account User on the account that run.service_account names."
        )
    if answer.code == 408:
        return UnreachableError(f"Vertex AI did not answer in time: {answer.reason}.")
    return InfrastructureError(f"Vertex AI has failed to make the job (HTTP {answer.code}): {answer.reason}.")
