"""GPU option of `resource_args`: how many GPUs a job requests, or which.

Every resource reads it the same way: "all" (or -1), a count (2, "2"), or ids: a list (`["0", "2"]`), a text with commas
("0,2"), one UUID, or Docker's own form "device=0,2". A bare number is a count; one single id is `["3"]` or "device=3".
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ConfigDict

#: Environment variables by which a program, or the engine, is told which GPUs there are.
GPU_VARIABLES: Final = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_RULE: Final = 'it must be "all", a count, or ids (indexes or UUIDs): a list such as ["0", "2"], "0,2", or "device=0,2"'
#: No machine has a million GPUs.
_MAX_COUNT_DIGITS: Final = 6
_PREFIX: Final = "device="
_ID: Final = re.compile(r"\d+|[A-Za-z][\w.:-]*-[\w./:-]+")
_NONE: Final = ("", "0", "none")
_ALL: Final = ("all", "-1")


class GpuRequest(BaseModel):
    """Which GPUs a job asks for: a count, all, or ids."""

    model_config = ConfigDict(frozen=True)

    count: int = 0
    all: bool = False
    ids: tuple[str, ...] = ()

    @property
    def is_none(self) -> bool:
        """Whether it asks for none."""
        return not (self.count or self.all or self.ids)

    def __str__(self) -> str:
        if self.all:
            return "all GPUs"
        if self.ids:
            return f"the GPU{'s' if len(self.ids) > 1 else ''} {','.join(self.ids)}"
        return f"{self.count} GPU{'' if self.count == 1 else 's'}"


def read_gpus(value: object) -> GpuRequest:
    """Read the option as people write it.

    Raises:
        ValueError: with the rule in words.
    """
    if isinstance(value, (list, tuple)):
        return _of_ids([_id(one) for one in value])
    if value is None:
        return GpuRequest()
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(_RULE)
    text = str(value).strip().strip('"').strip()
    if text.lower() in _NONE:
        return GpuRequest()
    if text.lower() in _ALL:
        return GpuRequest(all=True)
    if text.isdecimal():
        if len(text) > _MAX_COUNT_DIGITS:
            raise ValueError(_RULE)
        return GpuRequest(count=int(text))
    return _of_ids([_id(one) for one in text.removeprefix(_PREFIX).split(",")])


def written_ids(ids: tuple[str, ...]) -> str:
    """Write ids as the option takes them, whatever their number."""
    return _PREFIX + ",".join(ids)


def visible_gpus(ids: tuple[str, ...]) -> dict[str, str]:
    """Return the environment variables by which a program sees these GPUs and no others."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # else CUDA counts the fastest card as 0
        "CUDA_VISIBLE_DEVICES": ",".join(ids),
        "NVIDIA_VISIBLE_DEVICES": ",".join(ids) or "void",
    }


def _of_ids(ids: list[str]) -> GpuRequest:
    if len(set(ids)) != len(ids):
        raise ValueError("it names a GPU twice")
    return GpuRequest(ids=tuple(ids))


def _id(value: object) -> str:
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not _ID.fullmatch(text):
        raise ValueError(_RULE)
    return text
