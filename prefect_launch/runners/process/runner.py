"""Runner of the resource `local-process`: a job is a process group on the agent's machine, in its own folder and venv.

Each run has a supervisor process (`supervisor.py`) that outlives the agent, so an agent that starts again finds the run
by its labels and reads how it ended. A run's handle is its folder. Nothing is polled: the kernel signals the
end of a supervisor. There is no sandbox: a job can do what the agent's user can do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import anyio

from prefect_launch.core.filesystem import FREE_DISK_ADVICE, has_room
from prefect_launch.core.states import ItemState
from prefect_launch.core.units import parse_size
from prefect_launch.environments.venv import Environments, Venv, uv_program
from prefect_launch.errors import InfrastructureError, LaunchError, SpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners import option_values as values
from prefect_launch.runners.base import (
    INPUT_DIR,
    NEVER_STARTED,
    TAKEOVER_SECONDS,
    ExecPlan,
    ExitStatus,
    Finding,
    Found,
    Labels,
    Runner,
    RunPlan,
    RunState,
    nothing,
    with_default_variables,
)
from prefect_launch.runners.code_changes import note_code, with_code_changes
from prefect_launch.runners.code_job import (
    check_command,
    given_variables,
    job_variables,
    note_warnings,
    working_dir,
    write_config_files,
)
from prefect_launch.runners.option_values import PROCESS_QUANTITIES, Quantity, read_gpus
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder
from prefect_launch.runners.process.forkserver import ForkServer
from prefect_launch.runners.process.process_index import ProcessIndex, machine
from prefect_launch.runners.process.usage import usage_below
from prefect_launch.runners.usage import Usage

#: `env`: variables for the job, a mapping or a list of "NAME=value". `nice`: 0 (default) to 19. `gpus`: "all", a count,
#: or ids; the agent gives the job GPUs of its own. `cpus`, `memory`: what the job will take, by which the agent decides
#: whether it fits; nothing enforces them. What the agent sets (the job's config, run id, …) wins over `env`.
OPTIONS = frozenset({"cpus", "e", "env", "gpus", "m", "memory", "nice"})

#: Readers of the values, but of `env`, which `normalise_options` reads.
_READERS: dict[str, Callable[[object], Any]] = {
    "cpus": values.nano_cpus,
    "gpus": read_gpus,
    "memory": parse_size,
    "nice": values.between(0, 19),
}

#: A supervisor that still has not gone this long after everything was killed hangs in the kernel (a dead network disk).
_STOP_MARGIN_SECONDS = 15.0
#: One block, reserved for the exit file: it must fit on a disk that the job itself has filled.
_RESERVE_BYTES = 4096
#: What the terminal can do, which a job without one does not know.
_OF_TERMINAL = ("TERM", "COLORTERM")
#: In the file that the supervisor runs a job by: whether its start brings the agent's environment.
_AGENT_PROGRAM = "agent_program"


class LocalProcessRunner(Runner):
    """Runs jobs as processes of the agent's user."""

    name: ClassVar[str] = "local-process"
    removed_message: ClassVar[str] = "process group gone"
    sources: ClassVar[frozenset[SourceKind]] = frozenset({SourceKind.CODE, SourceKind.GIT})
    submitter_options: ClassVar[frozenset[str]] = OPTIONS
    options: ClassVar[frozenset[str]] = OPTIONS
    quantities: ClassVar[Mapping[str, Quantity]] = PROCESS_QUANTITIES
    uses_this_machine: ClassVar[bool] = True
    keeps_code_changes: ClassVar[bool] = True
    tells_usage: ClassVar[bool] = True

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._index = ProcessIndex(home)
        self._environments = Environments(home / "environments")
        self._forkserver = ForkServer()
        self._starting = threading.Lock()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        for name in _READERS.keys() & checked.keys():
            try:
                _READERS[name](checked[name])
            except ValueError as error:
                raise SpecError(
                    f"Invalid resource_args.local-process option {name!r}: {checked[name]!r}: {error}."
                ) from None
        return checked

    def check(self, plan: RunPlan) -> None:
        if plan.image is not None:
            raise SpecError(
                f"Cannot specify docker image with local-process resource runner (got {plan.image!r})."
                " Use a queue of the resource local-container."
            )
        check_command(plan.command, "local-process")
        working_dir(plan)
        self.check_options(plan.options)

    @classmethod
    def input_dir(cls, run_dir: Path) -> str | None:
        return str(run_dir.absolute() / INPUT_DIR)

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        check_command(plan.command, "local-process")
        cwd = (plan.project_dir or plan.run_dir) / (plan.working_dir or "")
        env = with_default_variables({**plan.options.get("env", {}), **plan.env}, str(plan.output_dir))
        fixed = dict.fromkeys((OUTPUT_DIR_VARIABLE, "PATH", "VIRTUAL_ENV"), "")
        return {**_process(plan, cwd), "python": plan.python_version, "env": {**env, **fixed}}

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        try:
            found = Finding(name="uv", is_ok=True, detail=await anyio.to_thread.run_sync(uv_program))
        except LaunchError as error:
            found = Finding(name="uv", is_ok=False, detail=str(error))
        return [found]

    async def missing(self, plan: RunPlan) -> ItemState | None:
        if plan.is_agent_program:
            return None
        ready = await self._environments.is_ready(plan.project_dir, plan.python_version, given_variables(plan))
        return None if ready else ItemState.BUILDING

    async def prepare(self, plan: RunPlan) -> None:
        self.check(plan)
        if not plan.is_agent_program:
            await self._venv(plan)

    async def create(self, plan: RunPlan) -> str:
        self.check(plan)
        venv = None if plan.is_agent_program else await self._venv(plan)
        for other in await anyio.to_thread.run_sync(self._index.others, plan):
            await self.stop(str(other), TAKEOVER_SECONDS)
            await self.remove(str(other))
        await anyio.to_thread.run_sync(self._create, plan, venv)
        return str(plan.run_dir)

    async def start(self, handle: str) -> None:
        await anyio.to_thread.run_sync(self._start, handle)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        folder = RunFolder(Path(handle))
        await self._gone(folder)
        end = await anyio.to_thread.run_sync(folder.exit)
        if end is not None:
            ended()
        else:
            end = await anyio.to_thread.run_sync(_end_unseen, folder)
        return await with_code_changes(end, plan)

    async def stop(self, handle: str, grace_seconds: float) -> None:
        folder = RunFolder(Path(handle))
        pid = await anyio.to_thread.run_sync(_ask_to_stop, folder, grace_seconds)
        if pid is None:
            return
        try:
            with anyio.fail_after(grace_seconds + _STOP_MARGIN_SECONDS):
                await self._gone(folder)
        except TimeoutError:
            raise InfrastructureError(
                f"The processes of {handle!r} do not end, {grace_seconds + _STOP_MARGIN_SECONDS:g} s after they were"
                f" told to (supervisor: process {pid}). They hang in the kernel;"
                " look at this machine's disks and devices."
            ) from None

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        return await anyio.to_thread.run_sync(self._index.find, dict(labels))

    async def find_beside(self, item_id: str) -> list[Found]:
        return await anyio.to_thread.run_sync(self._index.find_beside, item_id)

    async def display_name(self, handle: str) -> str:
        started = await anyio.to_thread.run_sync(RunFolder(Path(handle)).read, supervisor.STARTED)
        return f"pid {started['pid']}" if started else handle

    async def exec_plan(self, handle: str, command: Sequence[str], *, has_terminal: bool) -> ExecPlan:
        return await anyio.to_thread.run_sync(_exec_plan, RunFolder(Path(handle)), command)

    async def usage(self, handle: str) -> Usage | None:
        return await anyio.to_thread.run_sync(_usage, RunFolder(Path(handle)))

    async def remove(self, handle: str) -> None:
        await anyio.to_thread.run_sync(self._remove, RunFolder(Path(handle)))

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._forkserver.close)

    async def _venv(self, plan: RunPlan) -> Venv:
        return await self._environments.ensure(plan.project_dir, plan.python_version, given_variables(plan))

    def _create(self, plan: RunPlan, venv: Venv | None) -> None:
        folder = RunFolder(plan.run_dir)
        if folder.read(supervisor.PROCESS) is None:
            note_warnings(plan, venv)
            plan.output_dir.mkdir(exist_ok=True)
            cwd = working_dir(plan)
            write_config_files(plan, cwd)
            note_code(plan)
            (plan.run_dir / f"{supervisor.EXIT}.reserve").write_bytes(b" " * _RESERVE_BYTES)
            folder.write(supervisor.ENVIRONMENT, _job_variables(plan, venv))
            # The last of the files: what is created is whole.
            in_which = {"venv": str(venv.path)} if venv else {_AGENT_PROGRAM: True}
            folder.write(supervisor.PROCESS, {**_process(plan, cwd), "machine": machine(), **in_which})
        self._index.add(plan)

    def _start(self, handle: str) -> None:
        ready, signals_ready = os.pipe()
        try:
            with self._starting, self._agent_variables(handle) as variables:
                self._forkserver.fork(handle, signals_ready, *variables)
        except OSError as error:
            os.close(ready)
            raise InfrastructureError(
                f"The process of {handle!r} cannot be started: {error}. Look at this machine."
            ) from error
        finally:
            os.close(signals_ready)
        # Ends when the job's program runs, or the supervisor found that there is nothing to start.
        os.read(ready, 1)
        os.close(ready)

    @contextmanager
    def _agent_variables(self, handle: str) -> Iterator[tuple[int, ...]]:
        """Open a file in memory with the agent's environment, when the run is a program of the agent's own."""
        process = RunFolder(Path(handle)).read(supervisor.PROCESS) or {}
        if self.agent_environment is None or not process.get(_AGENT_PROGRAM):
            yield ()
            return
        with os.fdopen(os.memfd_create(_AGENT_PROGRAM), "w+", encoding="utf-8") as file:
            json.dump(dict(self.agent_environment()), file)
            file.flush()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            yield (file.fileno(),)

    async def _gone(self, folder: RunFolder) -> None:
        """Wait until the run's supervisor has ended, by a process descriptor."""
        pid = await anyio.to_thread.run_sync(folder.supervisor_pid)
        if pid is not None:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                descriptor = -1
            if descriptor >= 0:
                try:
                    if (
                        await anyio.to_thread.run_sync(folder.supervisor_pid) == pid
                    ):  # Else another process has got the id just now.
                        await _readable(descriptor)
                finally:
                    os.close(descriptor)

    def _remove(self, folder: RunFolder) -> None:
        if folder.state is RunState.RUNNING:
            raise InfrastructureError(f"The run in {folder.path} still runs, so it is not removed. Stop it first.")
        self._index.remove(folder)


def _usage(folder: RunFolder) -> Usage | None:
    pid = folder.supervisor_pid()
    return None if pid is None else usage_below(pid)


def _job_variables(plan: RunPlan, venv: Venv | None) -> dict[str, str]:
    if venv is None:  # A program of the agent's own, whose other variables come at its start.
        return {"PYTHONUNBUFFERED": "1", **plan.env, OUTPUT_DIR_VARIABLE: str(plan.output_dir.absolute())}
    return job_variables(plan, venv)


def _process(plan: RunPlan, cwd: Path) -> dict[str, Any]:
    """Return the content of the file that the supervisor runs a job by."""
    return {
        "name": plan.name,
        "claim": plan.labels.get(Labels.CLAIM),
        "command": [*plan.command, *plan.args],
        "cwd": str(cwd),
        "nice": values.integer(plan.options.get("nice", 0)),
        "labels": plan.labels,
    }


def _exec_plan(folder: RunFolder, command: Sequence[str]) -> ExecPlan:
    if not os.access(folder.path / supervisor.PROCESS, os.R_OK):
        raise InfrastructureError(
            f"The run's folder {str(folder.path)!r} is not on this machine, or not this user's to read. Try it on the"
            " agent's machine, as the user of the agent."
        )
    with suppress(OSError):  # The disk may be full, and the command is to look why.
        folder.write(supervisor.JOINED, {"mark": folder.mark})  # Before the look at its state: so it ends with the run.
    process, environment = folder.read(supervisor.PROCESS), folder.environment()
    if folder.state is not RunState.RUNNING or process is None or environment is None:
        raise InfrastructureError(f"No process of the run in {str(folder.path)!r} is there to be joined: it has ended.")
    terminal = {name: os.environ[name] for name in _OF_TERMINAL if name in os.environ}
    return ExecPlan(argv=tuple(command), env={**terminal, **environment}, cwd=Path(process["cwd"]))


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(descriptor, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _ask_to_stop(folder: RunFolder, grace_seconds: float) -> int | None:
    """Ask the supervisor for the job's end, and return its process id; without one, kill what is left of the job."""
    if folder.has(supervisor.EXIT):
        return None
    if not folder.path.exists():
        folder.kill_marked()  # Somebody has removed it under its job.
        return None
    folder.write(supervisor.STOP, {"grace_seconds": max(0.0, grace_seconds)})
    pid = folder.supervisor_pid()
    try:
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            return pid
    except ProcessLookupError:
        pass
    folder.kill_job()
    return None


def _end_unseen(folder: RunFolder) -> ExitStatus:
    """Return the end of a run that has no supervisor and no note of its end; what is left of its job is killed."""
    if folder.has(supervisor.STOP) and not folder.has(supervisor.STARTED):
        return ExitStatus(exit_code=None, stopped=True, error=NEVER_STARTED)
    folder.kill_job()
    return ExitStatus(exit_code=None, error=_lost(folder), stopped=folder.has(supervisor.STOP))


def _lost(folder: RunFolder) -> str:
    if not folder.has(supervisor.STARTED):
        return "it was never started" + (
            "" if has_room(folder.path) else f": no space left on device. {FREE_DISK_ADVICE}"
        )
    return (
        "the supervisor of the process was lost (killed, or the machine restarted), and its exit code with it;"
        " what was left of the job has been killed"
    )
