"""In-memory machine: its runner and its GPUs, without processes, for tests of what is built on runners.

An `InMemoryMachine` outlives agents; an `InMemoryRunner` is one agent's access to it, so a test that makes a second
runner has restarted the agent. The machine counts what was started, so "runs once" can be asserted. Logs and outputs
are real files.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from anyio import to_thread

from prefect_launch.agent.devices.allocations import Gpu
from prefect_launch.agent.devices.gpus import GpuInfo, GpuLoad
from prefect_launch.core.states import ItemState
from prefect_launch.errors import InfrastructureError, UnreachableError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import (
    INPUT_DIR,
    TAKEOVER_SECONDS,
    ExitStatus,
    Found,
    Labels,
    Runner,
    RunPlan,
    RunState,
    nothing,
)
from prefect_launch.runners.code_changes import note_code, with_code_changes
from prefect_launch.runners.log_streams import Marks
from prefect_launch.runners.usage import Usage
from prefect_launch.testing.script import Err, Script, ScriptedRun

_OPTIONS = frozenset({"e", "env", "nice", "secret-option"})


class _Run(ScriptedRun):
    @property
    def state(self) -> RunState:
        if self.process is None:
            return RunState.CREATED
        return RunState.RUNNING if self.is_running else RunState.EXITED


@dataclass
class InMemoryMachine:
    """The runs, shared by all runners.

    Args:
        script: says what the job of a plan does; by default every job ends with 0 at once.

    Attributes:
        reachable: set it to False, and every call of a runner fails as when an engine is down; the runs continue.
        runs: what exists, by handle.
        prepared, started, removed: the handles (names) of the runs that went through this, in order.
    """

    script: Callable[[RunPlan], Script] = lambda plan: Script()
    runs: dict[str, _Run] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reachable: bool = True

    @property
    def running(self) -> list[str]:
        """The handles of the runs that run now."""
        return [handle for handle, run in self.runs.items() if run.state is RunState.RUNNING]

    def finish(self) -> None:
        """Let all that runs come to its end now, as its scripts say, however long they were to take."""
        for run in self.runs.values():
            run.finish()

    def lose(self, handle: str) -> None:
        """Let a run vanish, as when somebody removes its container by force."""
        self.runs.pop(handle).kill(signal.SIGKILL)


class InMemoryRunner(Runner):
    """A runner on an in-memory machine; its class attributes are those of `local-process`, and may be set in a
    subclass.

    Args:
        home: as every runner's; nothing is written there.
        machine: what it runs on; a new one by default.
    """

    name: ClassVar[str] = "in-memory"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    submitter_options: ClassVar[frozenset[str]] = _OPTIONS - {"secret-option"}
    options: ClassVar[frozenset[str]] = _OPTIONS
    uses_this_machine: ClassVar[bool] = True
    keeps_code_changes: ClassVar[bool] = True
    tells_usage: ClassVar[bool] = True

    def __init__(self, home: Path, machine: InMemoryMachine | None = None) -> None:
        super().__init__(home)
        self._machine = machine or InMemoryMachine()

    @property
    def machine(self) -> InMemoryMachine:
        """The machine.

        Raises:
            UnreachableError: while it cannot be reached.
        """
        if not self._machine.reachable:
            raise UnreachableError("The machine does not answer. Start it.")
        return self._machine

    @classmethod
    def input_dir(cls, run_dir: Path) -> str | None:
        return str(run_dir.absolute() / INPUT_DIR)

    async def ping(self) -> None:
        _ = self.machine

    async def missing(self, plan: RunPlan) -> ItemState | None:
        script = self.machine.script(plan)
        return script.waits_for or (ItemState.PULLING if script.prepare_error else None)

    async def prepare(self, plan: RunPlan) -> None:
        self.check(plan)
        self.machine.prepared.append(plan.name)
        _raise(self.machine.script(plan).prepare_error)

    async def create(self, plan: RunPlan) -> str:
        script = self.machine.script(plan)
        _raise(script.create_error)
        there = self.machine.runs.get(plan.name)
        if there is not None and there.plan.labels.get(Labels.CLAIM) != plan.labels.get(Labels.CLAIM):
            await self.stop(plan.name, TAKEOVER_SECONDS)
            await self.remove(plan.name)
        if plan.name not in self.machine.runs:
            await to_thread.run_sync(note_code, plan)
            self.machine.runs[plan.name] = _Run(plan, script)
        return plan.name

    async def start(self, handle: str) -> None:
        run = self.machine.runs.get(handle)
        if run is None or run.process is not None or run.stopped:
            return
        _raise(run.script.start_error)
        self.machine.started.append(handle)
        run.plan.log_path.touch()
        run.start(lambda piece: _append(run.plan, piece), run.write_outputs)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        run = self.machine.runs.get(handle)
        if run is None:
            return ExitStatus(exit_code=None, error="the run was removed by somebody else")
        if run.process is not None:
            await run.process.wait()
            ended()
        if handle not in self._machine.runs:
            return ExitStatus(exit_code=None, error="the run was removed by somebody else while it ran")
        return await with_code_changes(run.exit_status(), plan)

    async def stop(self, handle: str, grace_seconds: float) -> None:
        run = self.machine.runs.get(handle)
        if run is None or run.state is RunState.EXITED:
            return
        run.stopped = True
        if run.process is None:
            return
        run.process.kill(signal.SIGTERM)
        if run.script.ignores_term:
            run.process.kill(signal.SIGKILL)
        await run.process.wait()

    async def usage(self, handle: str) -> Usage | None:
        run = self.machine.runs.get(handle)
        return run.process.usage if run is not None and run.process is not None else None

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        return [
            Found(handle=handle, state=run.state, labels=run.plan.labels, run_dir=run.plan.run_dir, name=handle)
            for handle, run in self.machine.runs.items()
            if labels.items() <= run.plan.labels.items()
        ]

    async def remove(self, handle: str) -> None:
        run = self.machine.runs.get(handle)
        if run is None:
            return
        if run.state is RunState.RUNNING:
            raise InfrastructureError(f"The run {handle!r} still runs, so it is not removed. Stop it first.")
        del self.machine.runs[handle]
        self.machine.removed.append(handle)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _append(plan: RunPlan, piece: bytes) -> None:
    with plan.log_path.open("ab") as file, closing(Marks(str(plan.log_path), file.tell())) as marks:
        marks.mark(file.tell(), isinstance(piece, Err))
        file.write(piece)


class InMemoryGpus:
    """A machine's GPUs, with the processes that hold them.

    Args:
        count: how many there are.

    Attributes:
        users: by a GPU's index, the ids of the processes that compute on it; set it as the test wants.
        loads: how busy each is, by its index; set it as the test wants.
        reads: how often they were read.
        away: why the driver does not answer; set it as the test wants, an empty text for a driver that does.
    """

    def __init__(self, count: int) -> None:
        self.gpus = tuple(Gpu(index=str(index), uuid=f"GPU-{index:08x}", name="Test GPU") for index in range(count))
        self.users: dict[str, tuple[int, ...]] = {}
        self.loads: dict[str, GpuLoad] = {}
        self.reads = 0
        self.away = ""

    def read(self) -> GpuInfo:
        """Look at the GPUs."""
        self.reads += 1
        if self.away:
            return GpuInfo(note=self.away, is_away=True)
        return GpuInfo(gpus=self.gpus, users=dict(self.users), note="" if self.gpus else "none in memory")

    def read_loads(self, indexes: Collection[str]) -> Mapping[str, GpuLoad]:
        """Look how busy some of them are."""
        return {index: self.loads[index] for index in indexes if index in self.loads}
