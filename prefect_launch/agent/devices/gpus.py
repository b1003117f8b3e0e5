"""The door to the cards: what GPUs this machine has, and which of them a process holds now.

`NvmlReader` asks NVIDIA's driver through nvidia-ml-py (the extra `prefect-launch[gpu]`), which is imported when it is
first needed. A machine without the library or the driver has no cards, and that is no error. The twin in
`prefect_launch.testing` is `InMemoryCards`.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.agent.devices.allocations import Card

#: Where the driver cannot list processes (some virtual machines), a card with more memory in use than a driver takes by
#: itself is taken for held.
_IN_USE_BYTES: Final = 1024**3
#: How long a look may take; the first one opens the connection, which takes a second on a card that nothing uses.
LOOK_SECONDS: Final = 10.0
_NO_LIBRARY: Final = "nvidia-ml-py is not installed: pip install 'prefect-launch[gpu]'"
_NO_DRIVER: Final = "this machine's NVIDIA driver does not answer"


class Cards(BaseModel):
    """What one look at the cards showed.

    Attributes:
        cards: all that the machine has.
        users: the ids of the processes that compute on a card, by its index; (0,) where only its memory tells of one.
        note: why there is none, in words.
        is_away: the driver does not answer now: what the machine has is not known.
    """

    model_config = ConfigDict(frozen=True)

    cards: tuple[Card, ...] = ()
    users: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    note: str = ""
    is_away: bool = False


class CardReader(Protocol):
    """Looks at this machine's cards."""

    def look(self) -> Cards:
        """Look at them now. It may take some milliseconds, and never raises because there is none."""
        ...


class NvmlReader:
    """Asks NVIDIA's driver; the connection stays open, since to open it takes a second on a card that nothing uses."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def look(self) -> Cards:
        """Look at the cards now."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Cards(note=_NO_LIBRARY)
        try:
            if self._nvml is None:
                nvml.nvmlInit()
                self._nvml = nvml
            return _all_cards(nvml)
        except nvml.NVMLError as error:
            self._close()  # a driver that is loaded again wants a new connection
            return Cards(note=f"{_NO_DRIVER}: {error}", is_away=not _is_not_installed(nvml, error))

    def _close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


class CardWatch:
    """Looks through a `CardReader` without ever blocking the event loop, or waiting for long.

    Args:
        reader: the door to the cards.
        most_seconds: how long a look may take: a driver that hangs is away.
    """

    def __init__(self, reader: CardReader, most_seconds: float = LOOK_SECONDS) -> None:
        self._reader = reader
        self._most_seconds = most_seconds
        self._looking: asyncio.Future[Cards] | None = None

    async def look(self) -> Cards:
        """Look now; a look that has not come back is waited for again, and no second one is begun beside it."""
        if self._looking is None:
            self._looking = _on_daemon_thread(self._reader.look)
        looking = self._looking
        done, _ = await asyncio.wait({looking}, timeout=self._most_seconds)
        if not done:
            return Cards(note=f"{_NO_DRIVER} within {self._most_seconds:g} s", is_away=True)
        if self._looking is looking:
            self._looking = None
        return looking.result()


def _on_daemon_thread(call: Callable[[], Cards]) -> asyncio.Future[Cards]:
    """Make a call that may never return on a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Cards] = loop.create_future()

    def tell(result: Cards | None, error: Exception | None) -> None:
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
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="look-at-gpus", daemon=True).start()
    return found


def _is_not_installed(nvml: Any, error: Exception) -> bool:
    """Whether this machine has no NVIDIA driver at all, as one without a GPU has none."""
    return getattr(error, "value", None) == getattr(nvml, "NVML_ERROR_LIBRARY_NOT_FOUND", object())


def _all_cards(nvml: Any) -> Cards:
    cards, users, lost = [], {}, None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
            users[str(index)] = _users(nvml, handle)
        except nvml.NVMLError as error:  # One card that fell off the bus: the others are still there.
            lost = error
            continue
        cards.append(Card(index=str(index), uuid=uuid, name=name))
    if lost is not None and not cards:
        raise lost
    return Cards(cards=tuple(cards), users={index: pids for index, pids in users.items() if pids})


def _users(nvml: Any, handle: Any) -> tuple[int, ...]:
    try:
        # Processes that only draw (a desktop) do not count: they hold no card of a machine that computes.
        return tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError:
        return (0,) if nvml.nvmlDeviceGetMemoryInfo(handle).used > _IN_USE_BYTES else ()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def names_of(users: Sequence[int]) -> str:
    """Say for people which processes hold a card."""
    known = [str(pid) for pid in users if pid]
    return f"process {', '.join(known)}" if known else "some process"
