"""The door to the cards: what GPUs this machine has, and which of them a process holds now.

`NvmlReader` asks NVIDIA's driver through nvidia-ml-py (the extra `prefect-launch[gpu]`), which is imported when it is
first needed. A machine without the library or the driver has no cards, and that is no error. The twin in
`prefect_launch.testing` is `InMemoryCards`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.agent.devices.book import Card

#: Where the driver cannot list processes (some virtual machines), a card with more memory in use than a driver takes by
#: itself is taken for held.
_IN_USE_BYTES: Final = 1024**3
_NO_LIBRARY: Final = "nvidia-ml-py is not installed: pip install 'prefect-launch[gpu]'"
_NO_DRIVER: Final = "this machine's NVIDIA driver does not answer"


class Cards(BaseModel):
    """What one look at the cards showed.

    Attributes:
        cards: all that the machine has.
        users: the ids of the processes that compute on a card, by its index; (0,) where only its memory tells of one.
        note: why there is none, in words.
    """

    model_config = ConfigDict(frozen=True)

    cards: tuple[Card, ...] = ()
    users: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    note: str = ""


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
            return Cards(note=f"{_NO_DRIVER}: {error}")

    def _close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _all_cards(nvml: Any) -> Cards:
    cards, users = [], {}
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        card = Card(
            index=str(index), uuid=_text(nvml.nvmlDeviceGetUUID(handle)), name=_text(nvml.nvmlDeviceGetName(handle))
        )
        cards.append(card)
        users[card.index] = _users(nvml, handle)
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
