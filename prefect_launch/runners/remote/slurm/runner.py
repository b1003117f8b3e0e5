"""Runner of the resource `slurm`: a job is a batch job of a Slurm cluster, in the agent's own folders.

The agent runs on a login node, or another machine that has Slurm's commands, with its home on a file system that the
nodes share. So code runs in the same environments as local processes, and the log, the outputs and the end of a job are
in the folder of its run. A job's handle is its number. It is submitted held, looked up by its name, recorded, and
released; `squeue` is asked once for all jobs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio

from prefect_launch.core.states import ItemState
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.environments.venv import Environments, Venv
from prefect_launch.errors import InfrastructureError, LaunchError, SpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import INPUT_DIR, ExecPlan, ExitStatus, Finding, Labels, RunPlan, nothing
from prefect_launch.runners.code_changes import note_code, with_code_changes
from prefect_launch.runners.code_job import (
    check_command,
    given_variables,
    inherited_variables,
    job_variables,
    note_warnings,
    working_dir,
    write_config_files,
)
from prefect_launch.runners.option_values import Quantity
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.jobs import LogPart, RemoteJob, RemoteStatus, RunHandle
from prefect_launch.runners.remote.slurm import diagnosis, folder, jobs, script
from prefect_launch.runners.remote.slurm import options as slurm_options
from prefect_launch.runners.remote.slurm.commands import CommandFailedError, environment_of, run_slurm
from prefect_launch.runners.remote.slurm.containers import (
    check_has_program,
    check_image,
    command_of,
    variables_of_image,
)
from prefect_launch.runners.remote.slurm.ends import status_of
from prefect_launch.runners.remote.slurm.jobs import SlurmJob
from prefect_launch.runners.remote.slurm.logs import read_streams
from prefect_launch.runners.remote.slurm.nodes import shortage
from prefect_launch.runners.remote.slurm.records import JobRecord, JobRecords
from prefect_launch.runners.remote.slurm.statuses import FORGOTTEN, JobStatuses, remote_job
from prefect_launch.runners.remote.slurm.variables import check_submitted

log = logging.getLogger(__name__)

#: After the grace of a stop the job's script has this long to write down its end, before Slurm kills all of it.
_SCRIPT_SECONDS: Final = 10.0
#: How long Slurm may take to end a job that is deleted.
_DELETE_SECONDS: Final = 20.0
#: What Slurm says of a job that has ended, or that it does not know.
_HAS_ENDED: Final = re.compile(r"already (finished|completing)|invalid job id", re.IGNORECASE)
#: The pause before Slurm is asked again to end a job, where it did not take the request.
_KILL_AGAIN_SECONDS: Final = 5.0


class SlurmRunner(RemoteRunner):
    """Runs jobs on the Slurm cluster that the agent's machine belongs to."""

    name: ClassVar[str] = "slurm"
    removed_message: ClassVar[str] = "job gone from the cluster"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    submitter_options: ClassVar[frozenset[str]] = slurm_options.SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = slurm_options.OPTIONS
    quantities: ClassVar[Mapping[str, Quantity]] = slurm_options.QUANTITIES
    can_hold: ClassVar[bool] = True
    max_submitted: ClassVar[int] = 500
    keeps_code_changes: ClassVar[bool] = True
    lag_seconds: ClassVar[float] = 2.0

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._environments = Environments(home / "environments")
        self._records = JobRecords(home.absolute() / "slurm" / "jobs")
        self._statuses = JobStatuses(self._records)
        self._kills = OwnedTasks()

    # --- checks ---

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        slurm_options.check_values(checked)
        return checked

    @classmethod
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        check_submitted(options.get("env") or {})

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        slurm_options.check_together(options)

    @classmethod
    def check_image(cls, image: str, options: Mapping[str, Any]) -> None:
        check_has_program(image, options)

    def check(self, plan: RunPlan) -> None:
        if plan.is_agent_program:
            raise SpecError(
                "A program of prefect-launch's own, such as a sweep's scheduler, does not run on slurm: it needs the"
                " agent's environment. Give the sweep a queue of the resource local-process."
            )
        check_image(plan)
        if plan.image is None:
            check_command(plan.command, self.name)
        working_dir(_in_code(plan))
        self.check_options(plan.options)
        self.check_together(plan.options)

    @classmethod
    def input_dir(cls, run_dir: Path) -> str | None:
        return str(run_dir.absolute() / INPUT_DIR)

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        return {
            "command": command_of(plan),
            "srun": slurm_options.srun_arguments(plan.options),
            "sbatch": slurm_options.sbatch_arguments(plan.options),
            "env": given_variables(plan),
            "labels": plan.labels,
        }

    async def ping(self) -> None:
        await run_slurm("scontrol", "ping")

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        return await diagnosis.diagnose(self.home, options)

    # --- the environment of a code job ---

    async def missing(self, plan: RunPlan) -> ItemState | None:
        if plan.image is not None:
            return None
        ready = await self._environments.is_ready(plan.project_dir, plan.python_version, given_variables(plan))
        return None if ready else ItemState.BUILDING

    async def prepare(self, plan: RunPlan) -> None:
        self.check(plan)
        await self._venv(plan)

    async def _venv(self, plan: RunPlan) -> Venv | None:
        if plan.image is not None:
            return None
        return await self._environments.ensure(plan.project_dir, plan.python_version, given_variables(plan))

    # --- the system ---

    async def submit(self, plan: RunPlan) -> RemoteJob:
        asked = slurm_options.sbatch_arguments(plan.options)
        known, refused = await asyncio.gather(self._existing(plan.name), self._refusal(plan, asked))
        if known is not None:
            return known
        if refused is not None:
            raise refused
        venv = await self._venv(plan)
        await anyio.to_thread.run_sync(self._write, plan, venv)
        number = await self._sbatch(plan, asked)
        own = JobRecord(id=number, name=plan.name, labels=plan.labels, run_dir=plan.run_dir.absolute())
        # Slurm takes any number of jobs of one name: another agent, or an answer that was lost, may have made one.
        try:
            found = await self._existing(plan.name, own)
            if found is None or found.handle != number:  # Another agent of this home has recorded its own meanwhile.
                await _scancel(own)
        except LaunchError:
            await anyio.to_thread.run_sync(self._records.add, own)  # The next submission of it finds it, and ends it.
            raise
        if found is None:
            raise InfrastructureError(
                f"Slurm accepted the job {plan.name!r} as {number}, and does not show it, so it was cancelled. Look for"
                " it there (squeue), and try again."
            )
        return found

    async def _existing(self, name: str, own: JobRecord | None = None) -> RemoteJob | None:
        """Return the job of a name, recorded: the oldest, after any other has been cancelled.

        Args:
            name: of the job.
            own: what is known of the one just submitted: a site may write something else into its comment.
        """
        known = await anyio.to_thread.run_sync(self._records.named, name)
        if known is not None:
            return await self._recorded(known)
        alive = [job for job in await jobs.jobs_by_name(name) if not job.has_ended]
        found = [own if own is not None and job.id == own.id else _record_of(job) for job in alive]
        mine = [record for record in found if record is not None]
        if not mine:
            return None
        first, *others = mine
        for other in others:
            await _scancel(other)
        await anyio.to_thread.run_sync(self._records.add, first)
        return await self._recorded(first)

    async def _sbatch(self, plan: RunPlan, asked: list[str]) -> str:
        """Submit a job, held; return its number."""
        try:
            printed = await run_slurm(
                "sbatch",
                "--parsable",
                "--hold",
                "--no-requeue",
                f"--job-name={plan.name}",
                f"--comment={jobs.comment(plan.labels, plan.run_dir.absolute())}",
                "--chdir=/",
                "--output=/dev/null",
                "--error=/dev/null",
                *asked,
                str(plan.run_dir.absolute() / script.FOLDER / script.SCRIPT),
                env=inherited_variables(),
            )
        except CommandFailedError as error:
            await anyio.to_thread.run_sync(folder.drop_copied, plan.run_dir)
            raise _refused(error, asked) from None
        return printed.strip().partition(";")[0]

    async def _refusal(self, plan: RunPlan, asked: list[str]) -> SpecError | None:
        """Return why no node could ever run a job: Slurm accepts any that is submitted held."""
        try:
            await run_slurm("sbatch", "--test-only", *asked, "--wrap=true", env=inherited_variables())
        except CommandFailedError as error:
            if "node configuration is not available" not in str(error):
                return _refused(error, asked)
            if lacking := await shortage(plan.options):
                return _refused(CommandFailedError(f"{error}: {lacking}"), asked)
        return None

    def _write(self, plan: RunPlan, venv: Venv | None) -> None:
        plan.output_dir.mkdir(exist_ok=True)
        note_warnings(plan, venv)
        cwd = working_dir(_in_code(plan))
        if plan.code_dir is not None:
            write_config_files(plan, cwd)
            note_code(plan)
        variables = job_variables(plan, venv)
        if plan.image is not None:
            variables = variables_of_image(plan, variables)
        mounts = plan.options.get("mount") or ()
        command = command_of(plan, [mounts] if isinstance(mounts, str) else mounts)
        srun = slurm_options.srun_arguments(plan.options)
        place = plan.run_dir.absolute() / script.FOLDER
        files = {
            script.ENVIRONMENT: script.environment_file(variables),
            script.SCRIPT: script.job_script(place, cwd, command, srun=srun),
        }
        if srun:
            files[script.TASK] = script.task_script(place, command)
        folder.write(plan.run_dir, files)

    async def release(self, handle: str) -> None:
        if await anyio.to_thread.run_sync(self._records.get, handle) is None:
            # The agent that submitted it died before it came to record it; without a record its end would be unseen.
            job = (await jobs.jobs_by_id([handle])).get(handle)
            record = _record_of(job)
            if job is not None and record is not None and not job.has_ended:
                await anyio.to_thread.run_sync(self._records.add, record)
        try:
            await run_slurm("scontrol", "release", handle)
        except CommandFailedError as error:
            if not _HAS_ENDED.search(str(error)):
                raise

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        return await self._statuses.of(handles, await jobs.jobs_by_id(handles))

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        listed = await jobs.all_jobs()
        records = await anyio.to_thread.run_sync(self._records.all)
        recorded = {record.id for record in records}
        shown = {job.id: job for job in listed if job.run_dir is not None or job.id in recorded}
        found = await self._statuses.of({*shown, *recorded}, shown)
        unseen = [record for record in records if not _is_of(record, found.get(record.id))]
        all_jobs = [*found.values(), *await anyio.to_thread.run_sync(lambda: [_by_its_files(one) for one in unseen])]
        return [job for job in all_jobs if labels.items() <= job.labels.items()]

    async def _recorded(self, record: JobRecord) -> RemoteJob:
        found = (await self._statuses.of([record.id], await jobs.jobs_by_id([record.id]))).get(record.id)
        if found is not None and _is_of(record, found):
            return found
        return await anyio.to_thread.run_sync(_by_its_files, record)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        return await with_code_changes(await super().watch(handle, plan, ended=ended), plan)

    async def exec_plan(self, handle: str, command: Sequence[str], *, has_terminal: bool) -> ExecPlan:
        number, claim = RunHandle.parse(handle)
        job = (await jobs.jobs_by_id([number])).get(number)
        run = _record_of(job) or await anyio.to_thread.run_sync(self._records.get, number)
        if job is None or run is None or not job.is_running or run.labels.get(Labels.CLAIM, "") != claim:
            seen = "it has ended, or another job has its number" if job is None or not job.is_waiting else job.state
            raise InfrastructureError(f"The job {number} of Slurm does not run: {seen}. Look for it there (squeue).")
        step = ["srun", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", "--export=PATH,TERM"]
        inside = script.inside_script(f"{OUTPUT_DIR_VARIABLE}={run.run_dir / 'outputs'}", command)
        return ExecPlan(argv=(*step, *(["--pty"] if has_terminal else []), *inside), env=environment_of(os.environ))

    async def left_end(self, plan: RunPlan) -> RemoteStatus | None:
        return status_of(None, await anyio.to_thread.run_sync(folder.look, plan.run_dir))

    async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        record = await anyio.to_thread.run_sync(self._records.get, handle)
        if record is not None:
            async for part in read_streams(record.run_dir / script.FOLDER, after):
                yield part

    def read_run_log(self, handle: str, plan: RunPlan, after: str | None) -> AsyncIterator[LogPart]:
        return read_streams(plan.run_dir / script.FOLDER, after)  # Its number may be another job's by now.

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        found = await self._identity(handle)
        if found is None:
            return
        await anyio.to_thread.run_sync(folder.ask_to_stop, found.run_dir, grace_seconds)
        self._statuses.forget(handle)
        await _scancel(found, "--state=PENDING")
        await _scancel(found, "--batch", "--signal=TERM")
        seconds = grace_seconds + _SCRIPT_SECONDS
        self._kills.start(f"kill of job {found.id} of slurm after {seconds:g} s", partial(self._kill, found, seconds))

    async def _kill(self, job: JobRecord, seconds: float) -> None:
        """Let Slurm end all of a job that has not ended within a time: its node or its script may be stuck."""
        await asyncio.sleep(seconds)
        while True:
            try:
                return await _scancel(job)
            except CommandFailedError as error:
                log.error("job %s of slurm, told to end, may still run: Slurm refuses to end it: %s", job.id, error)
                return None
            except LaunchError as error:
                log.warning("job %s of slurm, told to end, could not be cancelled yet: %s", job.id, error)
            await asyncio.sleep(_KILL_AGAIN_SECONDS)

    async def delete(self, handle: str) -> None:
        found = await self._identity(handle)
        if found is None:
            return
        job, deadline = await _shown(found), asyncio.get_running_loop().time() + _DELETE_SECONDS
        if job is not None and (job.is_waiting or job.failed_to_launch):
            await _scancel(found)
        while job is not None and (not job.has_ended or job.failed_to_launch):
            if asyncio.get_running_loop().time() > deadline:
                raise InfrastructureError(
                    f"The job {handle} of slurm is still {job.state}, so it is not removed. Look at it there."
                )
            await asyncio.sleep(0.2)
            job = await _shown(found)
        await anyio.to_thread.run_sync(folder.drop_copied, found.run_dir)
        await anyio.to_thread.run_sync(self._records.remove, found)
        self._statuses.forget(handle)

    async def _identity(self, handle: str) -> JobRecord | None:
        """Return whose job a number is: as recorded, or as Slurm shows it; None when it is not prefect-launch's."""
        record = await anyio.to_thread.run_sync(self._records.get, handle)
        return record or _record_of((await jobs.jobs_by_id([handle])).get(handle))

    async def aclose(self) -> None:
        await super().aclose()
        await self._kills.end()

    async def why_gone(self, handle: str) -> str:
        return FORGOTTEN


def _record_of(job: SlurmJob | None) -> JobRecord | None:
    if job is None or job.run_dir is None:
        return None
    return JobRecord(id=job.id, name=job.name, labels=job.labels, run_dir=job.run_dir)


def _is_of(record: JobRecord, job: RemoteJob | None) -> bool:
    return job is not None and (job.name, job.labels) == (record.name, record.labels)


def _by_its_files(record: JobRecord) -> RemoteJob:
    """Return a job that Slurm does not show, or that a newer one of its number hides, as its files tell of it."""
    return remote_job(record, status_of(None, folder.look(record.run_dir)))


async def _shown(record: JobRecord) -> SlurmJob | None:
    """Return a job as Slurm shows it; None when its number is another job's by now."""
    job = (await jobs.jobs_by_id([record.id])).get(record.id)
    return job if job is not None and record.is_of(job) else None


async def _scancel(record: JobRecord, *options: str) -> None:
    """Let Slurm end or signal a job; nothing for one that has ended, or whose number is another job's by now.

    Raises:
        UnreachableError: when Slurm did not take the request.
        CommandFailedError: when it refuses.
    """
    try:
        await run_slurm("scancel", f"--name={record.name}", *options, record.id)
    except CommandFailedError as error:
        if not _HAS_ENDED.search(str(error)):
            raise


def _refused(error: CommandFailedError, asked: list[str]) -> SpecError:
    return SpecError(
        f"Slurm refuses the job: {error}. It was asked for {' '.join(asked)}."
        " Correct the options (resource_args.slurm) of the item or of its queue; sinfo shows what there is."
    )


def _in_code(plan: RunPlan) -> RunPlan:
    """Return the plan whose working directory is on the node: that of an image is inside it."""
    return plan if plan.image is None or plan.code_dir is not None else plan.model_copy(update={"working_dir": None})
