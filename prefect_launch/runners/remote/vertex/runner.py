"""Runner of the resource `vertex`: a run is a custom job of Vertex AI, whose display name is the run's.

Vertex AI cannot hold a job, and a name is no key there: `prefect_launch.runners.remote.vertex.jobs` sees that each
claim has one job. A note in the agent's home says that a job was asked for, so that one whose answer was lost is looked
for, also by the next agent. Who the agent is at Google Cloud, and where its jobs run, `clouds.gcp` in its config
says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
from pydantic import BaseModel

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.errors import LaunchError, NoRoomError, UnreachableError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import Finding, RunPlan
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Amount, Quantity
from prefect_launch.runners.remote.base import RemoteRunner, finding_of
from prefect_launch.runners.remote.image_plan import refuse_base_image
from prefect_launch.runners.remote.job_notes import JobNotes
from prefect_launch.runners.remote.jobs import LogPart, RemoteJob, RemoteState
from prefect_launch.runners.remote.vertex import options as vertex_options
from prefect_launch.runners.remote.vertex.client import GoogleClient
from prefect_launch.runners.remote.vertex.fields import snake_case
from prefect_launch.runners.remote.vertex.jobs import VertexJobs
from prefect_launch.runners.remote.vertex.logs import VertexLogs
from prefect_launch.runners.remote.vertex.outputs import check_bucket, keep_outputs, make_folder, remove_folder
from prefect_launch.runners.remote.vertex.status import parse_time, read_job, state_of

#: How long after a job's end its last log entries may come.
_LOG_SETTLE_SECONDS: Final = 15.0


class _Asked(BaseModel):
    """The note of a job that was asked for. It has no time: Google may make the job long after it was asked."""


class VertexRunner(RemoteRunner):
    """Runs jobs on Vertex AI.

    Args:
        home: the agent's folder.
        transport: of the requests; None: the network.
    """

    name: ClassVar[str] = "vertex"
    removed_message: ClassVar[str] = "job deleted in Vertex AI"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    needs_image: ClassVar[bool] = True
    submitter_options: ClassVar[frozenset[str]] = vertex_options.SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = vertex_options.OPTIONS
    unread_options: ClassVar[Mapping[str, str]] = vertex_options.UNREAD_OPTIONS
    needs_queue: ClassVar[bool] = True
    quantities: ClassVar[Mapping[str, Quantity]] = vertex_options.QUANTITIES
    no_exec: ClassVar[str] = (
        "Vertex AI's API starts nothing in a job. Set run.enable_web_access in the queue's config, and open the shell"
        " that Google's console shows for the job."
    )
    separates_streams: ClassVar[bool] = False
    keeps_log_bytes: ClassVar[bool] = False
    #: A list may leave out a new job for seconds.
    lag_seconds: ClassVar[float] = 10.0
    least_poll_seconds: ClassVar[float] = 2.0
    poll_seconds: ClassVar[float] = 10.0
    log_seconds: ClassVar[float] = 2.0
    #: Vertex AI says of no time in which it ends a job that is cancelled: it takes minutes while machines start.
    stop_margin_seconds: ClassVar[float] = 600.0

    def __init__(self, home: Path, transport: Any = None) -> None:
        super().__init__(home)
        self._transport = transport
        self._notes = JobNotes(home / "remote" / self.name, _Asked)
        self._log_due: dict[str, float] = {}

    # --- options ---

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        vertex_options.check_values(checked)
        return checked

    @classmethod
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        vertex_options.check_submitter_values(options)

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        vertex_options.check_together(options)

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        return vertex_options.fill_rule(option, keys)

    @classmethod
    def amounts(cls, options: Mapping[str, Any]) -> dict[str, Amount]:
        return vertex_options.amounts(options)

    @classmethod
    def check_base_image(cls, image: str, options: Mapping[str, Any]) -> None:
        refuse_base_image(image, "Vertex AI")

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        return vertex_options.preview(plan)

    def check(self, plan: RunPlan) -> None:
        vertex_options.check_plan(plan)

    def give_gpus(self, plan: RunPlan, ids: tuple[str, ...]) -> RunPlan:
        return plan  # Vertex AI itself gives a job its accelerators.

    # --- the runner ---

    async def ping(self) -> None:
        await self._jobs.ping()

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        found = await super().diagnose(options)
        if not all(one.is_ok for one in found):
            return found
        account = self._client.account
        where = f"project {await account.project()}, region {account.region}, as {await account.identity()}"
        spec = {snake_case(name): value for name, value in (options.get("spec") or {}).items()}
        bucket = spec.get("staging_bucket")
        checks: dict[str, Callable[[], Awaitable[None]]] = {"right to read logs": self._logs.ping}
        if isinstance(bucket, str) and bucket.startswith("gs://") and "{" not in bucket:
            checks["staging bucket"] = lambda: check_bucket(self._client, bucket)
        return [
            *found,
            Finding(name="Vertex AI", is_ok=True, detail=where),
            *[await finding_of(name, check) for name, check in checks.items()],
        ]

    async def remove(self, handle: str) -> None:
        await super().remove(handle)
        job = await self.display_name(handle)
        self._jobs.forget(job)
        self._log_due.pop(job, None)
        await anyio.to_thread.run_sync(self._notes.remove, job)

    async def aclose(self) -> None:
        await super().aclose()
        await self._jobs.aclose()
        await self._logs.aclose()
        await self._client.aclose()

    # --- what Vertex AI offers ---

    async def submit(self, plan: RunPlan) -> RemoteJob:
        was_asked = await anyio.to_thread.run_sync(self._notes.read, plan.name) is not None
        job = await self._jobs.named(plan.name, seconds=self.lag_seconds if was_asked else 0.0)
        if job is not None:
            return read_job(job)
        body = vertex_options.custom_job(plan)
        folder = body["jobSpec"]["baseOutputDirectory"]["outputUriPrefix"]
        await make_folder(self._client, folder)
        await anyio.to_thread.run_sync(self._notes.write, plan.name, _Asked())
        try:
            return read_job(await self._jobs.create(body))
        except LaunchError as error:
            # It may have been made where Google was not reached.
            if isinstance(error, NoRoomError) or not isinstance(error, UnreachableError):
                await anyio.to_thread.run_sync(self._notes.remove, plan.name)
                await remove_folder(self._client, folder)
            raise

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob | LaunchError]:
        found = await self._jobs.some(handles)
        return {name: job if isinstance(job, LaunchError) else read_job(job) for name, job in found.items()}

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        return [read_job(job) for job in await self._jobs.labelled(labels)]

    async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        job = self._jobs.known(handle) or await self._jobs.named(handle)
        while job is not None:
            is_ended = state_of(job) is RemoteState.ENDED
            is_last = is_ended and time.monotonic() >= self._log_end(handle, job)
            part = await self._logs.read(job, after)
            if part is not None:
                after = part.position
                yield part
            if is_last or not is_ended:
                return
            await asyncio.sleep(self.log_seconds)

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        await self._jobs.cancel(handle)

    async def delete(self, handle: str) -> None:
        await self._jobs.delete(handle)

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        job = self._jobs.known(handle) or await self._jobs.named(handle)
        return LeftOut() if job is None else await keep_outputs(self._client, job, plan)

    # --- inside ---

    @cached_property
    def _client(self) -> GoogleClient:
        return GoogleClient(self.clouds.gcp, self._transport)

    @cached_property
    def _jobs(self) -> VertexJobs:
        return VertexJobs(self._client, self.lag_seconds)

    @cached_property
    def _logs(self) -> VertexLogs:
        return VertexLogs(self._client)

    def _log_end(self, name: str, job: Mapping[str, Any]) -> float:
        """Return when the log of an ended job is whole, on the monotonic clock."""
        if name not in self._log_due:
            ended = parse_time(job.get("endTime"))
            since = 0.0 if ended is None else time.time() - ended.timestamp()
            self._log_due[name] = time.monotonic() + min(_LOG_SETTLE_SECONDS, max(0.0, _LOG_SETTLE_SECONDS - since))
        return self._log_due[name]
