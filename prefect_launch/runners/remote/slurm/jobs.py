"""Jobs as Slurm's queue shows them: one `squeue` call for many, and the reasons why a job waits.

The format is that of `squeue --Format`, which all versions in use have; the JSON of squeue differs from version to
version. The comment of a job is JSON: its labels, and the folder of its run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.runners.remote.slurm.commands import CommandFailedError, run_slurm

#: The comment is last: it may hold the separator.
_FIELDS: Final = ("JobID", "State", "Reason", "exit_code", "NodeList", "Name", "Comment")
_FORMAT: Final = ",".join(f"{field}:|" for field in _FIELDS)

#: States of a job that its machines ended, in words.
MACHINE_FAULTS: Final = {
    "BOOT_FAIL": "its node did not boot",
    "LAUNCH_FAILED": "Slurm could not launch it on its node: look at slurmd's log there",
    "NODE_FAIL": "its node failed",
    "RECONFIG_FAIL": "its node failed",
    "REVOKED": "a sibling cluster runs it",
}
_ENDED: Final = frozenset(
    {*MACHINE_FAULTS, "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
_WAITING: Final = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
#: How Slurm holds a job that it could not launch; a job that may run once only is not launched again.
_LAUNCH_FAILED: Final = "launch_failed_requeued_held"
_HELD: Final = frozenset({"JobHeldUser", "JobHeldAdmin"})
#: Reasons that time alone does not end.
_NEVER: Final = {
    "AccountNotAllowed": "its account may not use the partition",
    "AssocMaxCpuPerJobLimit": "it asks for more CPUs than its account allows one job",
    "AssocMaxMemPerJob": "it asks for more memory than its account allows one job",
    "AssocMaxNodePerJobLimit": "it asks for more nodes than its account allows one job",
    "AssocMaxWallDurationPerJobLimit": "its time is longer than its account allows",
    "BadConstraints": "no node of the cluster has what it asks for",
    "DependencyNeverSatisfied": "a job that it depends on can never end as it must",
    "InvalidAccount": "its account does not exist",
    "InvalidQOS": "its QOS does not exist, or its account may not use it",
    "PartitionTimeLimit": "its time is longer than the partition allows",
    "QOSMaxCpuPerJobLimit": "it asks for more CPUs than its QOS allows one job",
    "QOSMaxGRESPerJob": "it asks for more GPUs than its QOS allows one job",
    "QOSMaxMemoryPerJob": "it asks for more memory than its QOS allows one job",
    "QOSMaxNodePerJobLimit": "it asks for more nodes than its QOS allows one job",
    "QOSMaxWallDurationPerJobLimit": "its time is longer than its QOS allows",
    "QOSNotAllowed": "the partition does not allow its QOS",
    "ReservationDeleted": "its reservation is gone",
}


class SlurmJob(BaseModel):
    """A job in Slurm's queue, or one that ended less than `MinJobAge` ago.

    Attributes:
        id: its number.
        state: in Slurm's words, such as "PENDING".
        reason: why it is in that state.
        raw_exit: the wait status of its script.
        nodes: those that it has or had, as Slurm writes lists.
        name: that it was submitted under.
        labels: that it was submitted with.
        run_dir: the folder of its run; None for a job that is not of prefect-launch, and for one that accounting
            alone has still.
        cancelled_by: the user who cancelled it, where accounting tells; else empty.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    state: str
    reason: str = ""
    raw_exit: int = 0
    nodes: str = ""
    name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    run_dir: Path | None = None
    cancelled_by: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it will run any more."""
        return self.state in _ENDED or self.failed_to_launch

    @property
    def failed_to_launch(self) -> bool:
        """Whether Slurm could not launch it, and holds it."""
        return self.state == "PENDING" and self.reason.replace(" ", "_") == _LAUNCH_FAILED

    @property
    def is_waiting(self) -> bool:
        """Whether it has not started."""
        return self.state in _WAITING and not self.failed_to_launch

    @property
    def is_running(self) -> bool:
        """Whether it runs, and nothing of it has ended yet."""
        return not (self.has_ended or self.is_waiting) and self.state != "COMPLETING"

    @property
    def is_held(self) -> bool:
        """Whether it waits for its release."""
        return self.state == "PENDING" and self.reason in _HELD

    @property
    def never_starts(self) -> bool:
        """Whether it waits for what time alone does not bring."""
        return self.is_waiting and self.reason in _NEVER

    @property
    def wait_reason(self) -> str:
        """Why it waits, in Slurm's words; a reason that can never be met is said as such."""
        if not self.is_waiting:
            return ""
        if self.never_starts:
            return f"{self.reason}: {_NEVER[self.reason]}, so it will never start as it is. Correct resource_args.slurm"
        if self.is_held:
            return f"{self.reason}: 'scontrol release {self.id}' releases it"
        return self.reason if self.reason not in ("", "None") else ("" if self.state == "PENDING" else self.state)


def comment(labels: dict[str, str], run_dir: Path) -> str:
    """Return what is kept as the comment of a job, for `SlurmJob` to read again."""
    return json.dumps({"labels": labels, "run_dir": str(run_dir)}, ensure_ascii=False, separators=(",", ":"))


async def jobs_by_id(ids: Collection[str]) -> dict[str, SlurmJob]:
    """Return the jobs with these numbers that Slurm knows, in one call."""
    if not ids:
        return {}
    try:
        return {job.id: job for job in await _squeue(f"--jobs={','.join(ids)}")}
    except CommandFailedError as error:
        if "invalid job id" in str(error).lower():  # So it says when it knows none of them.
            return {}
        raise


async def jobs_by_name(name: str) -> list[SlurmJob]:
    """Return this user's jobs of a name, the oldest first."""
    return await _squeue(f"--user={os.geteuid()}", f"--name={name}")


async def all_jobs() -> list[SlurmJob]:
    """Return all jobs of this user, prefect-launch's or not, the oldest first."""
    return await _squeue(f"--user={os.geteuid()}")


async def _squeue(*arguments: str) -> list[SlurmJob]:
    printed = await run_slurm("squeue", "--noheader", "--states=all", f"--Format={_FORMAT}", *arguments)
    jobs = [parse_job(line) for line in printed.splitlines() if line.strip()]
    return sorted((job for job in jobs if job is not None), key=lambda job: int(job.id))


def parse_job(line: str) -> SlurmJob | None:
    """Read a line of squeue; None for a job that is not prefect-launch's, such as one whose name has a separator."""
    values = line.split("|", len(_FIELDS) - 1)
    if len(values) < len(_FIELDS) or not values[0].isdecimal():
        return None
    number, state, reason, raw_exit, nodes, name, rest = values
    try:
        about = json.loads(rest.rstrip().removesuffix("|"))
        found = {"labels": about["labels"], "run_dir": about["run_dir"]}
    except (ValueError, TypeError, KeyError):
        found = {}
    try:
        return SlurmJob(
            id=number, state=state, reason=reason, raw_exit=int(raw_exit or 0), nodes=nodes, name=name, **found
        )
    except (ValidationError, ValueError):
        return None
