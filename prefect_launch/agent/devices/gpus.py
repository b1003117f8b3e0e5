"""GPU probe and capacity: which GPUs the machine has, which a process holds, and what the agent may give out of them.

`NvmlProbe` reads the NVIDIA driver through nvidia-ml-py (the extra `prefect-launch[gpu]`), which is imported on first
use. A machine without the library or the driver has no GPU, and that is no error. `read_capacity` combines what was
seen with the agent's settings. `InMemoryGpus` in `prefect_launch.testing` is the in-memory fake."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.agent.devices.allocations import Capacity, Gpu
from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.agent_config import AUTO, NONE

#: Where the driver cannot list processes (some virtual machines), a GPU with more memory in use than a driver takes by
#: itself is taken for held.
_IN_USE_BYTES: Final = 1024**3
#: How long a read may take; the first one opens the connection, which takes a second on a GPU that nothing uses.
READ_SECONDS: Final = 10.0
_LOADS_SECONDS: Final = 2.0
T = TypeVar("T")
_NO_LIBRARY: Final = "nvidia-ml-py is not installed: pip install 'prefect-launch[gpu]'"
_NO_DRIVER: Final = "this machine has no NVIDIA driver"
_SILENT_DRIVER: Final = "this machine's NVIDIA driver does not answer"


class GpuInfo(BaseModel):
    """What one probe showed.

    Attributes:
        gpus: all that the machine has.
        users: the ids of the processes that compute on a GPU, by its index; (0,) where only its memory shows one.
        note: why there is no GPU, in words.
        is_away: the driver does not answer now: what the machine has is not known.
    """

    model_config = ConfigDict(frozen=True)

    gpus: tuple[Gpu, ...] = ()
    users: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    note: str = ""
    is_away: bool = False


class GpuLoad(NamedTuple):
    """How busy a GPU is.

    Attributes:
        percent: of the time, lately.
        memory_bytes: that are in use.
    """

    percent: float
    memory_bytes: int


class GpuProbe(Protocol):
    """Reads this machine's GPUs."""

    def read(self) -> GpuInfo:
        """Read them now. It may take some milliseconds. A machine without GPUs raises nothing."""
        ...

    def read_loads(self, indexes: Collection[str]) -> Mapping[str, GpuLoad]:
        """Read how busy some of them are, those that tell it."""
        ...


class NvmlProbe:
    """Asks NVIDIA's driver; the connection stays open, since to open it takes a second on a GPU that nothing uses."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def read(self) -> GpuInfo:
        """Read the GPUs now."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return GpuInfo(note=_NO_LIBRARY)
        try:
            if self._nvml is None:
                nvml.nvmlInit()
                self._nvml = nvml
            return _all_gpus(nvml)
        except nvml.NVMLError as error:
            self._close()  # a driver that is loaded again wants a new connection
            if _is_not_installed(nvml, error):
                return GpuInfo(note=_NO_DRIVER)
            return GpuInfo(note=f"{_SILENT_DRIVER}: {error}", is_away=True)

    def read_loads(self, indexes: Collection[str]) -> Mapping[str, GpuLoad]:
        """Read how busy some of the GPUs are that `read` has shown."""
        nvml, found = self._nvml, {}
        for index in indexes if nvml is not None else ():
            with suppress(nvml.NVMLError):  # it is lost, or a part of a GPU, which does not tell it
                handle = nvml.nvmlDeviceGetHandleByIndex(int(index))
                percent = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
                found[index] = GpuLoad(percent, int(nvml.nvmlDeviceGetMemoryInfo(handle).used))
        return found

    def _close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


class GpuWatch:
    """Calls a `GpuProbe` in a thread of its own, with a time limit.

    Args:
        probe: reads the GPUs.
        most_seconds: how long a read may take: a driver that hangs is away.
    """

    def __init__(self, probe: GpuProbe, most_seconds: float = READ_SECONDS) -> None:
        self._probe = probe
        self._most_seconds = most_seconds
        self._reading: asyncio.Future[GpuInfo] | None = None
        self._hangs: asyncio.Future[Mapping[str, GpuLoad]] | None = None

    async def read(self) -> GpuInfo:
        """Read the GPUs; a read that has not returned is waited for again, and no second one starts meanwhile."""
        if self._reading is None:
            self._reading = _on_daemon_thread(self._probe.read)
        reading = self._reading
        done, _ = await asyncio.wait({reading}, timeout=self._most_seconds)
        if not done:
            return GpuInfo(note=f"{_SILENT_DRIVER} within {self._most_seconds:g} s", is_away=True)
        if self._reading is reading:
            self._reading = None
        return reading.result()

    async def read_loads(self, indexes: Collection[str]) -> Mapping[str, GpuLoad]:
        """Read how busy some GPUs are; nothing while the driver hangs."""
        if self._hangs is not None and not self._hangs.done():
            return {}
        self._hangs = None
        loads = _on_daemon_thread(lambda: self._probe.read_loads(indexes))
        done, _ = await asyncio.wait({loads}, timeout=min(_LOADS_SECONDS, self._most_seconds))
        if not done:
            self._hangs = loads
        return loads.result() if done else {}


def _on_daemon_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Make a call that may never return on a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if found.cancelled():
            return
        if error is not None:
            found.set_exception(error)
        elif result is not None:
            found.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as caught:  # noqa: BLE001 - raised again where the result is read
            error = caught
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name="read-gpus", daemon=True).start()
    return found


def _is_not_installed(nvml: Any, error: Exception) -> bool:
    """Whether the driver's library is not there: this machine has no NVIDIA driver, as one without a GPU has none."""
    return getattr(error, "value", None) == getattr(nvml, "NVML_ERROR_LIBRARY_NOT_FOUND", object())


def _all_gpus(nvml: Any) -> GpuInfo:
    gpus, users, lost = [], {}, None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
            users[str(index)] = _users(nvml, handle)
        except nvml.NVMLError as error:  # One GPU that fell off the bus: the others are still there.
            lost = error
            continue
        gpus.append(Gpu(index=str(index), uuid=uuid, name=name))
    if lost is not None and not gpus:
        raise lost
    return GpuInfo(gpus=tuple(gpus), users={index: pids for index, pids in users.items() if pids})


def _users(nvml: Any, handle: Any) -> tuple[int, ...]:
    try:
        # Processes that only draw (a desktop) do not count: they hold no GPU of a machine that computes.
        return tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError:
        return (0,) if nvml.nvmlDeviceGetMemoryInfo(handle).used > _IN_USE_BYTES else ()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def names_of(users: Sequence[int]) -> str:
    """Say for people which processes hold a GPU."""
    known = [str(pid) for pid in users if pid]
    return f"process {', '.join(known)}" if known else "some process"


def read_capacity(gpus: str | Sequence[str], cpus: str | float, memory: str | float, seen: GpuInfo) -> Capacity:
    """Return what the agent has to give.

    Args:
        gpus, cpus, memory: its settings, as they were read.
        seen: the machine's GPUs. With `gpus: auto` they are the agent's, less those that its own
            `CUDA_VISIBLE_DEVICES` leaves out.

    Raises:
        AgentConfigError: when the settings name a GPU that the machine does not have. While the driver does not
            answer, that is not known: the agent has no GPU until it does.
    """
    chosen: tuple[Gpu, ...] = ()
    if gpus != NONE and not seen.is_away:
        chosen = _visible(seen.gpus) if gpus == AUTO else _named(gpus, seen)
    note = "its setting is gpus: none" if gpus == NONE else seen.note
    return Capacity(
        gpus=chosen,
        cpus=_amount(cpus, float(len(os.sched_getaffinity(0)))),
        memory=_whole(_amount(memory, float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))),
        note=note,
        is_known=gpus == NONE or not seen.is_away,
    )


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    wanted = [one.strip() for one in visible.split(",")]
    return tuple(gpu for gpu in gpus if any(gpu.matches(one) for one in wanted))


def _named(wanted: Sequence[str], seen: GpuInfo) -> tuple[Gpu, ...]:
    for one in wanted:
        if not any(gpu.matches(one) for gpu in seen.gpus):
            has = ", ".join(gpu.index for gpu in seen.gpus) or f"none ({seen.note})"
            raise AgentConfigError(
                f"The agent's 'gpus' names the GPU {one!r}, which this machine does not show; it shows: {has}."
                " Correct the setting, or set gpus: auto."
            )
    return tuple(gpu for gpu in seen.gpus if any(gpu.matches(one) for one in wanted))


def _amount(setting: str | float, of_machine: float) -> float | None:
    return of_machine if setting == AUTO else None if setting == NONE else float(setting)


def _whole(amount: float | None) -> int | None:
    return None if amount is None else int(amount)
