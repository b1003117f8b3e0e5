"""An in-memory cluster and its runner: work that is accepted, waits, runs and is lost elsewhere, without a cluster.

An `InMemoryCluster` is what outlives agents; an `InMemoryRemoteRunner` is one agent's connection to it. The cluster
holds, queues, runs, preempts, loses answers and restarts, as a test asks. It counts the calls that it gets.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.errors import InfrastructureError, UnreachableError, UnsafeSpecError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.jobs import JobChange, LogPart, RemoteJob, RemoteState, RemoteStatus
from prefect_launch.testing.script import Err, Script, ScriptedRun

T = TypeVar("T")

_OPTIONS = frozenset({"e", "env", "node", "pod"})


@dataclass
class _Job(ScriptedRun):
    handle: str = ""
    is_held: bool = False
    log: list[bytes] = field(default_factory=list)
    submitted_at: float = field(default_factory=time.monotonic)
    preempted: bool = False

    @property
    def state(self) -> RemoteState:
        if self.process is not None:
            return RemoteState.RUNNING if self.is_running else RemoteState.ENDED
        if self.stopped:
            return RemoteState.ENDED
        return RemoteState.HELD if self.is_held else RemoteState.PENDING


@dataclass
class InMemoryCluster:
    """A cluster, shared by all runners.

    Args:
        script: says what the job of a plan does; by default every job ends with 0 at once.

    Attributes:
        nodes: how many jobs run at a time; set it with `resize`.
        reason: why jobs wait while no node is free.
        jobs: what it knows, by handle.
        started: the names of the jobs that were started, in order.
        calls: how often each call was made.
        part_reason: why a part of each running job waits; empty: none does.
        reachable: set it to False, and every call fails as when the cluster is away; the runs continue.
        lost_answers: so many of the next calls do their work, and their answers are lost.
        is_deaf: whether a request to cancel is accepted and not acted on.
        lag_seconds: how long polls leave out a job that was submitted.
        told: what each connection that follows changes is still to hear.
    """

    script: Callable[[RunPlan], Script] = lambda plan: Script()
    nodes: int = 1_000
    reason: str = "no node is free"
    part_reason: str = ""
    jobs: dict[str, _Job] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    reachable: bool = True
    lost_answers: int = 0
    is_deaf: bool = False
    lag_seconds: float = 0.0
    told: dict[int, asyncio.Queue[JobChange]] = field(default_factory=dict)

    def tell(self, change: JobChange) -> None:
        """Tell all that are connected of a change."""
        for queue in self.told.values():
            queue.put_nowait(change)

    def resize(self, nodes: int) -> None:
        """Change how many jobs run at a time."""
        self.nodes = nodes
        self.schedule()

    def schedule(self) -> None:
        """Start what waits, as long as nodes are free."""
        free = self.nodes - sum(job.is_running for job in self.jobs.values())
        for job in list(self.jobs.values()):
            if free > 0 and job.state is RemoteState.PENDING:
                free -= 1
                self.started.append(job.plan.name)
                job.start(job.log.append, partial(self._end, job))
                self.tell(JobChange(job.handle, _seen(self, job)))

    def _end(self, job: _Job) -> None:
        if job.handle in self.jobs:
            self.tell(JobChange(job.handle, _seen(self, job)))
        self.schedule()

    def preempt(self, name: str) -> None:
        """Take the node of a running job away."""
        job = next(job for job in self.jobs.values() if job.plan.name == name)
        job.preempted = True
        job.kill(signal.SIGKILL)

    def lose(self, name: str) -> None:
        """Forget a job, as when somebody deletes it by hand."""
        handle = next(handle for handle, job in self.jobs.items() if job.plan.name == name)
        self.jobs.pop(handle).kill(signal.SIGKILL)
        self.tell(JobChange(handle))


class InMemoryRemoteRunner(RemoteRunner):
    """A runner on an in-memory cluster that holds jobs; a subclass with `can_hold = False` is one that cannot.

    Args:
        home: as every runner's.
        cluster: what it runs on; a new one by default.
    """

    name: ClassVar[str] = "in-memory-cluster"
    removed_message: ClassVar[str] = "job gone from the cluster"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    submitter_options: ClassVar[frozenset[str]] = frozenset({"e", "env", "pod"})
    options: ClassVar[frozenset[str]] = _OPTIONS
    can_hold: ClassVar[bool] = True
    lag_seconds: ClassVar[float] = 0.1
    poll_seconds: ClassVar[float] = 0.05
    log_seconds: ClassVar[float] = 0.02

    def __init__(self, home: Path, cluster: InMemoryCluster | None = None) -> None:
        super().__init__(home)
        self._cluster = cluster or InMemoryCluster()

    @classmethod
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        if "privileged" in options.get("pod", {}):
            raise UnsafeSpecError(
                f"resource_args.{cls.name}.pod.privileged may be set by the queue's owner only. Leave it out."
            )

    async def ping(self) -> None:
        await self._call("ping")

    async def submit(self, plan: RunPlan) -> RemoteJob:
        cluster = await self._call("submit")
        job = next((job for job in cluster.jobs.values() if job.plan.name == plan.name), None)
        if job is None:
            number = cluster.calls["submit"] if self.has_unique_handles else len(cluster.jobs) + 1
            handle = f"job-{number}-{plan.name}" if self.can_hold else plan.name
            job = cluster.jobs[handle] = _Job(plan, cluster.script(plan), handle=handle, is_held=self.can_hold)
            cluster.schedule()
        return self._answer(_seen(cluster, job))

    async def release(self, handle: str) -> None:
        cluster = await self._call("release")
        job = cluster.jobs.get(handle)
        if job is not None:
            job.is_held = False
            cluster.schedule()
        self._answer(None)

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        cluster = await self._call("poll")
        since = time.monotonic() - cluster.lag_seconds
        jobs = [cluster.jobs[handle] for handle in handles if handle in cluster.jobs]
        return self._answer({job.handle: _seen(cluster, job) for job in jobs if job.submitted_at <= since})

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        cluster = await self._call("list")
        jobs = [job for job in cluster.jobs.values() if labels.items() <= job.plan.labels.items()]
        return self._answer([_seen(cluster, job) for job in jobs])

    async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        cluster = await self._call("logs")
        job = cluster.jobs.get(handle)
        done = int(after or 0)
        for index, piece in enumerate(job.log[done:] if job is not None else [], done + 1):
            yield LogPart(bytes(piece), str(index), is_error=isinstance(piece, Err))
        self._answer(None)

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        cluster = await self._call("cancel")
        job = cluster.jobs.get(handle)
        if job is not None and not cluster.is_deaf:
            job.stopped = True
            job.kill(signal.SIGTERM)
            if job.script.ignores_term:
                asyncio.get_running_loop().call_later(grace_seconds, job.kill, signal.SIGKILL)
        self._answer(None)

    async def delete(self, handle: str) -> None:
        cluster = await self._call("delete")
        job = cluster.jobs.get(handle)
        if job is not None and job.state is RemoteState.RUNNING:
            raise InfrastructureError(f"The job {handle!r} runs, so it is not deleted. Cancel it first.")
        cluster.jobs.pop(handle, None)
        self._answer(None)

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        cluster = await self._call("outputs")
        job = cluster.jobs.get(handle)
        if job is not None:
            job.write_outputs()
        return self._answer(LeftOut())

    async def _call(self, name: str) -> InMemoryCluster:
        self._cluster.calls[name] += 1
        await asyncio.sleep(0)
        if not self._cluster.reachable:
            raise UnreachableError("The in-memory cluster does not answer. Start it.")
        return self._cluster

    def _answer(self, value: T) -> T:
        """Return an answer, unless it is lost on its way."""
        if self._cluster.lost_answers > 0:
            self._cluster.lost_answers -= 1
            raise UnreachableError("The in-memory cluster's answer was lost. Ask again.")
        return value


class InMemoryTellingRunner(InMemoryRemoteRunner):
    """A runner on an in-memory cluster that tells of changes, and is hardly ever polled; its handles are unique."""

    tells_changes: ClassVar[bool] = True
    has_unique_handles: ClassVar[bool] = True
    poll_seconds: ClassVar[float] = 60.0

    async def changes(self, part: str = "") -> AsyncIterator[JobChange]:
        cluster = await self._call("changes")
        queue: asyncio.Queue[JobChange] = asyncio.Queue()
        cluster.told[id(queue)] = queue
        try:
            yield JobChange()
            while True:
                yield await queue.get()
        finally:
            del cluster.told[id(queue)]


class InMemoryUnholdingRunner(InMemoryRemoteRunner):
    """A runner on an in-memory cluster that cannot hold, and whose polls may lag: to submit a job is to start it."""

    can_hold: ClassVar[bool] = False
    lag_seconds: ClassVar[float] = 0.5


def _seen(cluster: InMemoryCluster, job: _Job) -> RemoteJob:
    reasons = {RemoteState.PENDING: cluster.reason, RemoteState.RUNNING: cluster.part_reason}
    reason = reasons.get(job.state, "")
    exit_status = _exit_of(job) if job.state is RemoteState.ENDED else None
    status = RemoteStatus(state=job.state, reason=reason, exit=exit_status)
    return RemoteJob(handle=job.handle, name=job.plan.name, labels=job.plan.labels, status=status)


def _exit_of(job: _Job) -> ExitStatus:
    # A cluster does not say who asked for the end of a job that ran.
    update = {"stopped": job.process is None, "preempted": job.preempted}
    return job.exit_status().model_copy(update=update)
