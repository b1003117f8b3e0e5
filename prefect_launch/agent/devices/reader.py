"""The door to the cards: what GPUs this machine has, and which of them a process holds now.

`NvmlReader` asks NVIDIA's driver through nvidia-ml-py (the extra `prefect-launch[gpu]`), which is imported when it is
first needed. A machine without the library or the driver has no cards, and that is no error. The twin in
`prefect_launch.testing` is `InMemoryCards`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.agent.devices.book import Card

log = logging.getLogger("prefect_launch.agent")

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
    """Asks NVIDIA's driver."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def look(self) -> Cards:
        """Look at the cards now."""
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                return Cards(note=_NO_LIBRARY)
        nvml = self._nvml
        try:
            nvml.nvmlInit()  # For each look anew: a driver that was loaded again is no matter then.
        except nvml.NVMLError as error:
            return Cards(note=f"{_NO_DRIVER}: {error}")
        try:
            return _all_cards(nvml)
        except nvml.NVMLError as error:
            log.warning("cards not read: %s", error)
            return Cards(note=f"{_NO_DRIVER}: {error}")
        finally:
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
