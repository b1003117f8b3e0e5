"""Runner of the resource `ray`: a job is a job of Ray's Jobs REST API, its submission id the run's name.

Ray cannot hold a job, and a second submission of an id fails: then the job of that id is read. One request lists all
jobs. Ray does not report all that the runner needs of a job's end: so the job runs in a small shell program that prints
it into the log (`prefect_launch.runners.remote.marked_log`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.errors import InfrastructureError, LaunchError, SpecError, UnreachableError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import ExitStatus, Finding, Labels, RunPlan, nothing
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Quantity
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.jobs import LogPart, RemoteJob, RemoteState, RunHandle
from prefect_launch.runners.remote.ray import options as ray_options
from prefect_launch.runners.remote.ray.client import NotReachedError, RayAnswer, RayClient
from prefect_launch.runners.remote.ray.cluster import RayCluster
from prefect_launch.runners.remote.ray.outputs import RunNote, RunNotes, keep_outputs
from prefect_launch.runners.remote.ray.packages import pip_packages, upload_code
from prefect_launch.runners.remote.ray.status import (
    labels_of,
    read_job,
    stopped_exit,
)

log = logging.getLogger(__name__)

_HEAD_IS_NEW: Final = "the head of the Ray cluster was started anew meanwhile, and has lost the job and its exit code"
#: How long is asked for more of an end that has no exit code.
_TOLD_SECONDS: Final = 60.0
#: How Ray says that a submission was not valid; its head answers 500 then.
_INVALID: Final = "status code 400"
#: How Ray says that it may take the same submission a moment later; of an id that it had, its record is gone by then.
_NOT_READY: Final = ("No available agent", "TimeoutError", "Timed out", "already exists")


class RayRunner(RemoteRunner):
    """Runs jobs on a Ray cluster.

    Args:
        home: the agent's folder.
        client: of the cluster; by default the one that the agent's environment names.
    """

    name: ClassVar[str] = "ray"
    removed_message: ClassVar[str] = "job removed from the Ray cluster"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    submitter_options: ClassVar[frozenset[str]] = ray_options.SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = ray_options.OPTIONS
    quantities: ClassVar[Mapping[str, Quantity]] = ray_options.QUANTITIES
    no_exec: ClassVar[str] = (
        "Ray's Jobs API starts nothing in a job. Log in to the node that Ray's dashboard shows for the job."
    )
    separates_streams: ClassVar[bool] = False
    returns_files: ClassVar[bool] = False
    #: One call lists all jobs.
    poll_seconds: ClassVar[float] = 0.5
    #: To end a job that waits, another one must start: on a busy head that takes a minute.
    stop_margin_seconds: ClassVar[float] = 120.0

    def __init__(self, home: Path, client: RayClient | None = None) -> None:
        super().__init__(home)
        self._client = client or RayClient()
        self._cluster = RayCluster(self._client)
        self._notes = RunNotes(home / "remote" / self.name)
        #: The labels of runs whose submissions were not answered: they may take effect at any time.
        self._unanswered: dict[str, Mapping[str, str]] = {}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        ray_options.check_values(checked)
        return checked

    @classmethod
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        ray_options.check_submitter_values(options)

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        if option == "runtime-env" and keys and ray_options.is_owners_key(keys[0]):
            return FillRule.OWNER
        return super().fill_rule(option, keys, text)

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        ray_options.check_together(options)

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        made = ray_options.submission(plan, package="gcs://(the job's code)" if plan.code_dir else None)
        env = made["runtime_env"].pop("env_vars")
        return {**made, "entrypoint": [*plan.command, *plan.args], "env": {**env, **ray_options.literal_env(plan)}}

    def give_gpus(self, plan: RunPlan, ids: tuple[str, ...]) -> RunPlan:
        return plan  # Ray itself gives a job its GPUs.

    def check(self, plan: RunPlan) -> None:
        ray_options.check_plan(plan)

    async def ping(self) -> None:
        await self._cluster.session()

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        found = await super().diagnose(options)
        if not all(one.is_ok for one in found):
            return found
        return [*found, Finding(name="Ray", is_ok=True, detail=await self._cluster.describe())]

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        end = await super().watch(handle, plan, ended=ended)
        if end.exit_code is None:
            with anyio.move_on_after(_TOLD_SECONDS):
                while True:
                    try:
                        return await self._told(end, RunHandle.parse(handle).job)
                    except LaunchError as error:
                        log.debug("more is not known yet of the end of %s: %s", handle, error)
                        await asyncio.sleep(self.poll_seconds)
        return end

    async def _told(self, end: ExitStatus, job: str) -> ExitStatus:
        """Say more of an end without an exit code."""
        if end.stopped or end.ended_by_others:
            return stopped_exit(end, await self._cluster.end_of_log(job), has_run=await self._cluster.has_run(job))
        return end.model_copy(update={"error": _HEAD_IS_NEW}) if await self._is_head_new(job) else end

    async def why_gone(self, handle: str) -> str:
        with suppress(LaunchError):
            if await self._is_head_new(RunHandle.parse(handle).job):
                return _HEAD_IS_NEW
        return await super().why_gone(handle)

    async def stop(self, handle: str, grace_seconds: float) -> None:
        labels = self._unanswered.get(handle)
        if labels is not None:
            # By now its id is taken: by the job, or by what keeps a late submission from making one.
            await self._submit_body(ray_options.placeholder(RunHandle.parse(handle).job, labels))
        await super().stop(handle, grace_seconds)

    async def remove(self, handle: str) -> None:
        await super().remove(handle)
        self._unanswered.pop(handle, None)
        self._cluster.forget(RunHandle.parse(handle).job)
        await self._notes.remove(RunHandle.parse(handle).job)

    async def aclose(self) -> None:
        await super().aclose()
        await self._cluster.aclose()
        await self._client.aclose()

    async def create(self, plan: RunPlan) -> str:
        await self._check_resources(plan)
        return await super().create(plan)

    # --- what Ray offers ---

    async def submit(self, plan: RunPlan) -> RemoteJob:
        package, packages = None, tuple[str, ...]()
        if plan.code_dir is not None:
            packages = await anyio.to_thread.run_sync(pip_packages, plan)
            package = await upload_code(self._client, plan)
        note = RunNote(session=await self._cluster.last_session(), output_dir=ray_options.output_dir(plan))
        await self._notes.write(plan.name, note)
        stop_seconds = self.stop_seconds if plan.stop_seconds is None else plan.stop_seconds
        body = ray_options.submission(plan, package=package, packages=packages, stop_seconds=stop_seconds)
        return await self._submit_body(body)

    async def _submit_body(self, body: Mapping[str, Any]) -> RemoteJob:
        job = read_job({**body, "status": "PENDING"})
        handle = str(RunHandle.of(job))
        was_unanswered = handle in self._unanswered
        self._unanswered[handle] = job.labels
        try:
            answer = await self._cluster.submit(body)
        except NotReachedError:
            if not was_unanswered:
                del self._unanswered[handle]
            raise
        if answer.status != 200:
            # Ray's answer to an id that it has is 500, as to any failure of its own: only the job itself is sure.
            found = await self._cluster.find(job.handle)
            if found is None:
                error = _submit_error(answer)
                if not isinstance(error, UnreachableError):
                    del self._unanswered[handle]
                raise error
            job = found
        self._unanswered.pop(handle, None)
        return job

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        return {job.handle: job for job in await self._cluster.some_jobs(handles)}

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        def is_wanted(details: Mapping[str, Any]) -> bool:
            found = labels_of(details)
            return ray_options.ENDS_LABEL in found or (Labels.ITEM in found and labels.items() <= found.items())

        jobs = await self._cluster.jobs(is_wanted)
        for job in jobs:
            if ray_options.ENDS_LABEL in job.labels and job.status.state is RemoteState.ENDED:
                self._cluster.remove_killer(job.handle)  # Its agent may have died before it did.
        return [job for job in jobs if ray_options.ENDS_LABEL not in job.labels]

    async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        async for content, position in self._cluster.log_from(handle, int(after or 0)):
            yield LogPart(content, str(position))

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        await self._cluster.stop(handle)

    async def delete(self, handle: str) -> None:
        await self._cluster.delete(handle)

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        return await keep_outputs(await self._cluster.end_of_log(handle), plan, await self._notes.read(handle))

    # --- inside ---

    async def _check_resources(self, plan: RunPlan) -> None:
        """Refuse at once a job that would wait forever: Ray itself does not say that no node can run it."""
        asked = ray_options.asked(plan)
        nodes = await self._cluster.nodes() if asked else None
        if nodes is not None and not nodes.can_ever_give(asked):
            raise SpecError(nodes.refusal(asked))

    async def _is_head_new(self, job: str) -> bool:
        note = await self._notes.read(job)
        return bool(note.session) and note.session != await self._cluster.session()


def _submit_error(answer: RayAnswer) -> LaunchError:
    if answer.status == 400 or _INVALID in answer.text:
        return SpecError(f"Ray refuses the job: {answer.reason}. Correct its options.")
    if any(sign in answer.text for sign in _NOT_READY):
        return UnreachableError(f"The Ray cluster is not ready to take jobs: {answer.reason}. Look at its head.")
    return InfrastructureError(f"Ray has failed to take the job (HTTP {answer.status}): {answer.reason}.")
