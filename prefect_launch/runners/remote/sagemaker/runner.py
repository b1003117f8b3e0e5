"""Runner of the resource `sagemaker`: a job is a training job of Amazon SageMaker, its name the run's.

SageMaker cannot hold a job, and gives each name once; one list call tells what has changed of all jobs. A job's log is
read from CloudWatch, its outputs come back from S3. Who the agent is at AWS is its operator's choice alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio

from prefect_launch.clouds.aws import aws_errors
from prefect_launch.core.output_limits import LeftOut
from prefect_launch.errors import LaunchError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import Finding, RunPlan
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Amount, Quantity
from prefect_launch.runners.remote.base import RemoteRunner, finding_of
from prefect_launch.runners.remote.image_plan import refuse_base_image
from prefect_launch.runners.remote.jobs import LogPart, RemoteJob, RunHandle
from prefect_launch.runners.remote.sagemaker import options as sagemaker_options
from prefect_launch.runners.remote.sagemaker.jobs import AwsClients, TrainingJobs
from prefect_launch.runners.remote.sagemaker.logs import JobLog, check_logs
from prefect_launch.runners.remote.sagemaker.outputs import check_place, keep_outputs
from prefect_launch.runners.remote.sagemaker.request import (
    MAX_VARIABLE_CHARS,
    check_fields,
    check_plan,
    role_arn,
    training_job,
)
from prefect_launch.runners.remote.sagemaker.status import has_ended

#: The pause between two looks at the log of a job that has just ended.
_SETTLE_PAUSE_SECONDS: Final = 1.0


class SageMakerRunner(RemoteRunner):
    """Runs training jobs of SageMaker."""

    name: ClassVar[str] = "sagemaker"
    removed_message: ClassVar[str] = "training job stopped"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    needs_image: ClassVar[bool] = True
    submitter_options: ClassVar[frozenset[str]] = sagemaker_options.SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = sagemaker_options.OPTIONS
    unread_options: ClassVar[Mapping[str, str]] = sagemaker_options.UNREAD_OPTIONS
    needs_queue: ClassVar[bool] = True
    quantities: ClassVar[Mapping[str, Quantity]] = sagemaker_options.QUANTITIES
    variable_bytes: ClassVar[int | None] = MAX_VARIABLE_CHARS
    no_exec: ClassVar[str] = (
        "SageMaker's API starts nothing in a job. Set RemoteDebugConfig in the queue's config, and use AWS Systems"
        " Manager."
    )
    separates_streams: ClassVar[bool] = False
    keeps_log_bytes: ClassVar[bool] = False
    #: A job takes minutes to start, and AWS bounds how often an account may ask.
    poll_seconds: ClassVar[float] = 10.0
    least_poll_seconds: ClassVar[float] = 2.0
    log_seconds: ClassVar[float] = 3.0
    #: CloudWatch bears 25 reads a second in an account.
    log_reads_a_second: ClassVar[float] = 10.0
    #: SageMaker gives a job 120 s to end after TERM, whatever the agent's grace is, and then packs its outputs.
    stop_margin_seconds: ClassVar[float] = 300.0
    #: How long after a job's end its last lines may come to CloudWatch.
    settle_seconds: ClassVar[float] = 10.0

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._own_clients: AwsClients | None = None
        self._own_jobs: TrainingJobs | None = None
        self._ended_at: dict[str, float] = {}

    @property
    def _clients(self) -> AwsClients:
        if self._own_clients is None:  # Who it is, is set when it has been made.
            self._own_clients = AwsClients(self.clouds)
        return self._own_clients

    @property
    def _jobs(self) -> TrainingJobs:
        if self._own_jobs is None:
            self._own_jobs = TrainingJobs(self._clients, self.home / "remote" / self.name / "jobs")
        return self._own_jobs

    # --- options ---

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        sagemaker_options.check_values(checked)
        return checked

    @classmethod
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        sagemaker_options.check_submitter_options(options)

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        check_fields(options)

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        return sagemaker_options.fill_rule(option, keys, text)

    @classmethod
    def set_inside(cls, options: Mapping[str, Any]) -> dict[str, str]:
        return sagemaker_options.set_inside(options)

    @classmethod
    def amounts(cls, options: Mapping[str, Any]) -> dict[str, Amount]:
        return sagemaker_options.amounts(options)

    @classmethod
    def own_image(cls, options: Mapping[str, Any]) -> str | None:
        return sagemaker_options.own_image(options)

    @classmethod
    def check_base_image(cls, image: str, options: Mapping[str, Any]) -> None:
        refuse_base_image(image, "SageMaker")

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        check_plan(plan)
        made = training_job(plan, plan.name, role_arn(plan_role(plan)))
        env = made.pop("Environment")
        return {**made, "env": env}

    def give_gpus(self, plan: RunPlan, ids: tuple[str, ...]) -> RunPlan:
        return plan  # An instance's type says which it has.

    def check(self, plan: RunPlan) -> None:
        check_plan(plan)

    async def prepare(self, plan: RunPlan) -> None:
        # The first look at botocore's model reads a large file.
        await anyio.to_thread.run_sync(self.check, plan)

    # --- the agent's place ---

    async def ping(self) -> None:
        client = await self._clients.get("sagemaker")
        with aws_errors("its training jobs (sagemaker:ListTrainingJobs)"):
            await client.list_training_jobs(MaxResults=1)

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        found = []
        try:
            who, region = await self.clouds.aws.identity(), await self.clouds.aws.region()
            found.append(Finding(name="AWS", is_ok=True, detail=f"{who} in {region}"))
        except LaunchError as error:
            return [Finding(name="AWS", is_ok=False, detail=str(error))]
        found += await super().diagnose(options)
        if not all(one.is_ok for one in found):
            return found
        checks: dict[str, Callable[[], Awaitable[None]]] = {"right to read logs": partial(check_logs, self._clients)}
        place = (options.get("output-data-config") or {}).get("S3OutputPath")
        if isinstance(place, str) and "{" not in place:
            checks["outputs in S3"] = partial(check_place, self._clients, place)
        return [*found, *[await finding_of(name, check) for name, check in checks.items()]]

    # --- what SageMaker offers ---

    async def submit(self, plan: RunPlan) -> RemoteJob:
        request = training_job(plan, plan.name, await self._role(plan))
        return await self._jobs.create(plan.name, plan.labels, request)

    async def _role(self, plan: RunPlan) -> str:
        role = plan_role(plan)
        if role.startswith("arn:"):
            return role
        account = self.clouds.aws
        return role_arn(role, await account.account_id(), await account.partition())

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        return await self._jobs.some(handles)

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        return await self._jobs.with_labels(labels)

    def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        return self._read(handle, None, after)

    def read_run_log(self, handle: str, plan: RunPlan, after: str | None) -> AsyncIterator[LogPart]:
        run = RunHandle.parse(handle)
        return self._read(run.job, run.claim, after)  # Its name may be a newer claim's by now.

    async def _read(self, run: str, claim: str | None, after: str | None) -> AsyncIterator[LogPart]:
        job = await self._jobs.described(run, claim)
        if job is None:
            return
        name = job["TrainingJobName"]
        log = JobLog(self._clients, name, _hosts(job), after)
        settled_at = 0.0
        if has_ended(job):
            settled_at = self._ended_at.setdefault(name, time.monotonic()) + self.settle_seconds
        while True:
            is_last = time.monotonic() >= settled_at
            async for part in log.read():
                yield part
            if is_last:
                return
            await asyncio.sleep(min(_SETTLE_PAUSE_SECONDS, self.settle_seconds))

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        await self._jobs.stop(handle)

    async def delete(self, handle: str) -> None:
        self._ended_at.pop(self._jobs.current(handle), None)
        await self._jobs.forget(handle)

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        job = await self._jobs.described(handle)
        return LeftOut() if job is None else await keep_outputs(self._clients, job, plan)

    async def display_name(self, handle: str) -> str:
        return self._jobs.current(RunHandle.parse(handle).job)

    async def aclose(self) -> None:
        await super().aclose()
        if self._own_clients is not None:
            await self._own_clients.aclose()


def plan_role(plan: RunPlan) -> str:
    """Return the role that a plan's options name, as they name it."""
    return str(sagemaker_options.read_fields(plan.options)["RoleArn"])


def _hosts(job: Mapping[str, Any]) -> int:
    resources = job.get("ResourceConfig") or {}
    groups = resources.get("InstanceGroups") or ()
    return int(resources.get("InstanceCount") or 0) + sum(int(one.get("InstanceCount", 1)) for one in groups) or 1
