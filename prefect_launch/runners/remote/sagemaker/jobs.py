"""Training jobs as the runner needs them: made once by name, listed by what has changed, described when they change.

A training job's name is the run's. SageMaker gives a name once: where an ended job of an older claim has it, the next
one is that name with `-2`, `-3`, …, so a claim that comes late always meets the job of the newer one. One list call
shows what has changed since the last; a job is described when it has changed, and now and then in case the list has
missed it. Its labels are its tags; those of this home's own jobs are noted here, too.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import anyio
from pydantic import BaseModel, ConfigDict

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.clouds.aws import aws_errors
from prefect_launch.errors import (
    AgentConfigError,
    InfrastructureError,
    LaunchError,
    NoRoomError,
    SpecError,
    UnreachableError,
    clause,
)
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.job_notes import JobNotes
from prefect_launch.runners.remote.jobs import RemoteJob
from prefect_launch.runners.remote.sagemaker.request import label_value
from prefect_launch.runners.remote.sagemaker.status import has_ended, status_of

#: A job lives at most so long, all told (SageMaker's own limit).
_LONGEST_LIFE: Final = timedelta(days=31)
#: So much of the last list is asked for again: a list may lag.
_OVERLAP: Final = timedelta(minutes=2)
#: A job that no list has shown as changed is described again after so long.
_STALE_SECONDS: Final = 600.0
_PAGE: Final = 100
#: A request that was not answered has no effect any more after so long.
_LATE_SECONDS: Final = 3600.0
#: So many jobs are described, or their tags read, at a time.
_AT_ONCE: Final = 8
#: So many older claims of one attempt may have left a job.
_MOST_NAMES: Final = 50
_NAME: Final = re.compile(r"(?P<run>launch-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}-\d+)(?:-(?P<number>\d+))?")
_OWN_PREFIX: Final = "prefect-launch."
_NOT_THERE: Final = ("ResourceNotFound", "not found", "Could not find")


class JobNote(BaseModel):
    """What this home notes of a training job, under its name, until the job's log and outputs are kept.

    Attributes:
        labels: of the run that it is; None until SageMaker has answered whose it is.
    """

    model_config = ConfigDict(frozen=True)

    labels: dict[str, str] | None = None


@dataclass
class _Seen:
    """A job as a list, or its description, has shown it last."""

    job: Mapping[str, Any]
    is_described: bool = False
    at: float = field(default_factory=time.monotonic)

    @property
    def is_doubted(self) -> bool:
        """Whether more is to be known of it, or it is time to look whether a list has missed a change."""
        return not self.is_described or (not has_ended(self.job) and time.monotonic() - self.at > _STALE_SECONDS)


def name_of(run: str, number: int) -> str:
    """Return the name of the first, second, … training job of a run's name."""
    return run if number == 1 else f"{run}-{number}"


def _parsed(name: str) -> tuple[str, int] | None:
    match = _NAME.fullmatch(name)
    return (match["run"], int(match["number"] or 1)) if match else None


def error_code(error: Exception) -> str:
    """Return the code of an error of AWS; empty for any other."""
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


class AwsClients:
    """The clients of AWS's services that a runner keeps open, one of each for an event loop.

    Args:
        clouds: who the runner is at AWS.
    """

    def __init__(self, clouds: Clouds) -> None:
        self._clouds = clouds
        self._stack = AsyncExitStack()
        self._open: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()

    async def get(self, service: str) -> Any:
        """Return the client of a service.

        Raises:
            LaunchError: as `AwsAccount.client` does.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._stack, self._open, self._turn = loop, AsyncExitStack(), {}, asyncio.Lock()
        async with self._turn:
            if service not in self._open:
                self._open[service] = await self._stack.enter_async_context(self._clouds.aws.client(service))
        return self._open[service]

    async def aclose(self) -> None:
        """Close them."""
        stack, self._stack, self._open = self._stack, AsyncExitStack(), {}
        if self._loop is asyncio.get_running_loop():
            await stack.aclose()


class TrainingJobs:
    """The training jobs of runs in one account and region.

    Args:
        clients: of AWS.
        notes: the folder of this home's notes.
    """

    def __init__(self, clients: AwsClients, notes: Path) -> None:
        self._clients = clients
        self._notes = JobNotes(notes, JobNote)
        self._seen: dict[str, _Seen] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._since: datetime | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)

    # --- changes ---

    async def create(self, run: str, labels: Mapping[str, str], request: Mapping[str, Any]) -> RemoteJob:
        """Make the training job of a run, unless its claim has one; return it, or that of another claim which lives.

        Args:
            run: the run's name.
            labels: of the run.
            request: of CreateTrainingJob, without the job's name.

        Raises:
            SpecError: when SageMaker refuses the request.
            NoRoomError: when the account has no room for it now.
        """
        for number in range(1, _MOST_NAMES):
            name = name_of(run, number)
            # Before the job: an agent that dies now looks whether there is one.
            await anyio.to_thread.run_sync(self._notes.write, name, JobNote())
            try:
                is_made = await self._create({**request, "TrainingJobName": name})
            except (AgentConfigError, NoRoomError, SpecError):
                if not await self._was_made(name):
                    raise
                is_made = False
            if is_made:
                starting = {"TrainingJobName": name, "TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting"}
                self._seen[name] = _Seen(starting)
                await self._keep(name, labels)
                return await self._remote(name)
            job, tags = await self._describe(name), await self._tags(name)
            if job is None:
                raise UnreachableError(f"SageMaker says that it has a job {name!r}, and does not show it. Try again.")
            if all(tags.get(key) == labels.get(key) for key in (Labels.ITEM, Labels.CLAIM)):
                await self._keep(name, labels)
                return await self._remote(name)
            await self._drop(name)
            if tags.get(Labels.ITEM) != labels.get(Labels.ITEM):
                raise InfrastructureError(
                    f"SageMaker has a job named {name!r} that is not of this item, and gives a name once. Add the item"
                    " anew."
                )
            if not has_ended(job):
                return await self._remote(name)
        raise InfrastructureError(f"SageMaker has {_MOST_NAMES} ended jobs of {run!r}. Add the item anew.")

    async def _was_made(self, name: str) -> bool:
        """Whether a job that SageMaker refuses is there: an earlier answer was lost, and it may use up the quota."""
        try:
            job = await self._describe(name)
        except UnreachableError:
            raise  # It is asked for again.
        except LaunchError:
            return False  # Its note stays.
        if job is None:
            await self._drop(name)
        return job is not None

    async def _keep(self, name: str, labels: Mapping[str, str]) -> None:
        self._labels[name] = dict(labels)
        await anyio.to_thread.run_sync(self._notes.write, name, JobNote(labels=dict(labels)))

    async def _create(self, request: Mapping[str, Any]) -> bool:
        """Ask for a job; whether there was none of its name."""
        client = await self._clients.get("sagemaker")
        with aws_errors("a training job (sagemaker:CreateTrainingJob, iam:PassRole)"):
            try:
                await client.create_training_job(**request)
            except Exception as error:
                code, said = error_code(error), clause(error)
                if code == "ResourceInUse":
                    return False
                if code in ("ValidationException", "ResourceNotFound"):
                    raise SpecError(
                        f"SageMaker refuses the job: {said}. Correct resource_args.sagemaker of the item or its queue."
                    ) from error
                if code == "ResourceLimitExceeded" and re.search(r"\bis 0 Instances\b", said):
                    raise SpecError(
                        f"The AWS account has no quota for the job: {said}. Ask for another instance type, or AWS for a"
                        " quota."
                    ) from error
                if code == "ResourceLimitExceeded":
                    raise NoRoomError(f"The AWS account's quota is used up: {said}. Wait, or ask for more.") from error
                raise
        return True

    async def stop(self, run: str) -> None:
        """Ask for the end of a run's job; nothing for one that ends or has ended."""
        name = self.current(run)
        client = await self._clients.get("sagemaker")
        with aws_errors("a stop (sagemaker:StopTrainingJob)"):
            try:
                await client.stop_training_job(TrainingJobName=name)
            except Exception as error:
                # SageMaker refuses to stop what does not run.
                if error_code(error) not in ("ValidationException", "ResourceNotFound"):
                    raise
        await self._describe(name)

    async def forget(self, run: str) -> None:
        """Let this home know nothing more of a run's job, which has ended: SageMaker keeps its own record of it."""
        newest = self.current(run)
        parsed = _parsed(newest)
        for number in range(1, parsed[1] + 1 if parsed else 1):
            self._seen.pop(name_of(run, number), None)
        await self._drop(newest)

    async def _drop(self, name: str) -> None:
        await anyio.to_thread.run_sync(self._notes.remove, name)
        self._labels.pop(name, None)

    def _drop_old(self, name: str) -> None:
        """Remove the note of a job that never came to be; blocks."""
        if time.time() - self._notes.written_at(name) > _LATE_SECONDS:
            self._notes.remove(name)

    # --- looks ---

    async def refresh(self) -> None:
        """Ask once for all jobs that have changed since the last time."""
        if self._since is None:
            given = {"CreationTimeAfter": datetime.now(timezone.utc) - _LONGEST_LIFE}
        else:
            given = {"LastModifiedTimeAfter": self._since - _OVERLAP}
        found = [one async for one in self._list(NameContains="launch-", **given)]
        self._take(found)
        # By AWS's own clock.
        self._since = max([*map(_moment, found), *([self._since] if self._since else [])], default=None)

    def _take(self, listed: Iterable[Mapping[str, Any]]) -> None:
        for job in listed:
            name = str(job["TrainingJobName"])
            parsed, seen = _parsed(name), self._seen.get(name)
            if parsed is None or (seen is not None and _moment(seen.job) >= _moment(job)):
                continue
            if has_ended(job) and parsed[1] == 1:
                # Most are of items that are done with; the few others are described.
                self._seen.pop(name, None)
                self._labels.pop(name, None)
            else:
                self._seen[name] = _Seen(job)

    async def _list(self, **given: Any) -> AsyncIterator[Mapping[str, Any]]:
        client = await self._clients.get("sagemaker")
        token: dict[str, str] = {}
        while True:
            with aws_errors("its training jobs (sagemaker:ListTrainingJobs)"):
                page = await client.list_training_jobs(
                    SortBy="CreationTime", SortOrder="Descending", MaxResults=_PAGE, **given, **token
                )
            for job in page["TrainingJobSummaries"]:
                yield job
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    async def some(self, runs: Collection[str]) -> dict[str, RemoteJob]:
        """Return the jobs that runs of these names have now; those that there are not are left out."""
        await self.refresh()

        async def look(run: str) -> RemoteJob | None:
            name = self.current(run)
            seen = self._seen.get(name)
            if (seen is None or seen.is_doubted) and await self._describe(name) is None:
                return None
            return await self._remote(name)

        found = await asyncio.gather(*map(look, runs))
        return {run: job for run, job in zip(runs, found, strict=True) if job is not None}

    async def with_labels(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        """Return all jobs with these labels that live, or that this home has not done with."""
        await self.refresh()
        item = labels.get(Labels.ITEM)
        if item is not None and re.fullmatch(r"[\w-]+", item):
            self._take([one async for one in self._list(NameContains=f"launch-{item}"[:63])])
        noted = set(await anyio.to_thread.run_sync(self._notes.names))
        names = {
            self.current(parsed[0])
            for name in {*self._seen, *noted}
            if (parsed := _parsed(name)) is not None and (item is None or name.startswith(f"launch-{item}-"))
        }

        async def look(name: str) -> RemoteJob | None:
            if name not in self._seen and await self._describe(name) is None:
                await anyio.to_thread.run_sync(self._drop_old, name)
                return None
            if has_ended(self._seen[name].job) and name not in noted:
                return None
            job = await self._remote(name)
            return job if labels.items() <= job.labels.items() else None

        return [job for job in await asyncio.gather(*map(look, sorted(names))) if job is not None]

    async def described(self, run: str, claim: str | None = None) -> Mapping[str, Any] | None:
        """Return the description of a run's job; None when there is none.

        Args:
            run: the run's name.
            claim: that it was made under; None: the newest job.
        """
        newest = self.current(run)
        parsed = _parsed(newest)
        for number in range(parsed[1] if parsed else 1, 0, -1):
            name = name_of(run, number)
            seen = self._seen.get(name)
            job = seen.job if seen is not None and not seen.is_doubted else await self._describe(name)
            if job is not None and (claim is None or (await self._labels_of(name)).get(Labels.CLAIM, "") == claim):
                return job
        return None

    async def _describe(self, name: str) -> Mapping[str, Any] | None:
        client = await self._clients.get("sagemaker")
        async with self._turns:
            with aws_errors("a training job (sagemaker:DescribeTrainingJob)"):
                try:
                    job: Mapping[str, Any] = await client.describe_training_job(TrainingJobName=name)
                except Exception as error:
                    if error_code(error) == "ResourceNotFound" or _says_not_there(error):
                        self._seen.pop(name, None)
                        return None
                    raise
        self._seen[name] = _Seen(job, is_described=True)
        return job

    def current(self, run: str) -> str:
        """Return the name of the newest training job of a run's name, as far as it was seen."""
        number = 1
        while name_of(run, number + 1) in self._seen:
            number += 1
        return name_of(run, number)

    async def _remote(self, name: str) -> RemoteJob:
        parsed = _parsed(name)
        assert parsed is not None
        labels = await self._labels_of(name)
        return RemoteJob(handle=parsed[0], name=parsed[0], labels=labels, status=status_of(self._seen[name].job))

    async def _labels_of(self, name: str) -> dict[str, str]:
        if name not in self._labels:
            note = await anyio.to_thread.run_sync(self._notes.read, name)
            known = note.labels if note is not None else None
            self._labels[name] = known if known is not None else await self._tags(name)
        return self._labels[name]

    async def _tags(self, name: str) -> dict[str, str]:
        seen = self._seen.get(name)
        job = seen.job if seen is not None and "TrainingJobArn" in seen.job else await self._describe(name)
        if job is None:
            return {}
        client = await self._clients.get("sagemaker")
        async with self._turns:
            with aws_errors("the tags of a training job (sagemaker:ListTags)"):
                answer = await client.list_tags(ResourceArn=job["TrainingJobArn"], MaxResults=_PAGE)
        return {one["Key"]: label_value(one["Value"]) for one in answer["Tags"] if one["Key"].startswith(_OWN_PREFIX)}


def _moment(job: Mapping[str, Any]) -> datetime:
    found: datetime = job.get("LastModifiedTime") or datetime.min.replace(tzinfo=timezone.utc)
    return found


def _says_not_there(error: Exception) -> bool:
    return error_code(error) == "ValidationException" and any(sign in str(error) for sign in _NOT_THERE)
