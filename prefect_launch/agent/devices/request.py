"""What an item asks of the machine: GPUs, CPUs and memory, read from the options of its resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core import sizes
from prefect_launch.errors import SpecError
from prefect_launch.runners import option_values as values
from prefect_launch.runners.gpu_option import GpuAsk, read_gpus
from prefect_launch.spec.option_names import normalise_options

_NANO: Final = 1_000_000_000
_GIB: Final = 1024**3


class Ask(BaseModel):
    """What one item asks for; by default nothing."""

    model_config = ConfigDict(frozen=True)

    gpus: GpuAsk = GpuAsk()
    cpus: float = Field(default=0, ge=0)
    memory: int = Field(default=0, ge=0, description="Bytes.")

    @property
    def is_nothing(self) -> bool:
        """Whether it fits everywhere."""
        return self == Ask()

    def __str__(self) -> str:
        parts = [] if self.gpus.is_none else [str(self.gpus)]
        parts += [f"{self.cpus:g} CPUs"] if self.cpus else []
        parts += [in_gib(self.memory)] if self.memory else []
        return ", ".join(parts) or "nothing"


def read_ask(options: Mapping[str, Any]) -> Ask:
    """Read what an item asks for from the options of its resource, merged.

    `memory` that is a limit of a container is taken for what it needs: less may be free, never more be promised.

    Raises:
        SpecError: for a value that cannot be read.
    """
    normal = normalise_options(options)
    try:
        return Ask(
            gpus=read_gpus(normal.get("gpus")),
            cpus=_cpus(normal.get("cpus", normal.get("cpu"))),
            memory=0 if normal.get("memory") is None else sizes.size(normal["memory"]),
        )
    except ValueError as error:
        raise SpecError(f"What the item asks of the machine cannot be read: {error}.") from None


def in_gib(size: int) -> str:
    """Say a size for people, in GiB."""
    return f"{size / _GIB:.3g} GiB of memory"


def _cpus(value: object) -> float:
    return 0.0 if value is None else values.nano_cpus(value) / _NANO
