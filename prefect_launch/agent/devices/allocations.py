"""Device allocations: what an item requests, what the agent has, and which item holds what.

`Allocations` is a frozen value: each change returns a new one. `allocate` answers a `DeviceRequest` with an
`Allocation`, or with a `Denied` that says whether the item can never fit here or does not fit now. It knows neither
time nor the server: the wait list orders who waits, and the caller says which GPUs foreign processes hold (`busy`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.units import counted, parse_size
from prefect_launch.errors import SpecError
from prefect_launch.runners import option_values as values
from prefect_launch.runners.option_values import GpuRequest, read_gpus
from prefect_launch.spec.option_names import normalise_options

_NANO: Final = 1_000_000_000
_GIB: Final = 1024**3


class DeviceRequest(BaseModel):
    """The GPUs, CPUs and memory that one item asks for; by default nothing."""

    model_config = ConfigDict(frozen=True)

    gpus: GpuRequest = GpuRequest()
    cpus: float = Field(default=0, ge=0)
    memory: int = Field(default=0, ge=0, description="Bytes.")

    @property
    def is_nothing(self) -> bool:
        """Whether it asks for nothing."""
        return self == DeviceRequest()

    def __str__(self) -> str:
        parts = [] if self.gpus.is_none else [str(self.gpus)]
        parts += [counted(self.cpus, "CPU")] if self.cpus else []
        parts += [in_gib(self.memory)] if self.memory else []
        return ", ".join(parts) or "nothing"


def read_device_request(options: Mapping[str, Any]) -> DeviceRequest:
    """Read what an item asks for from the options of its resource, merged.

    `memory` that is a limit of a container is taken for what it needs: less may be free, never more be promised.

    Raises:
        SpecError: for a value that cannot be read.
    """
    normal = normalise_options(options)
    try:
        return DeviceRequest(
            gpus=read_gpus(normal.get("gpus")),
            cpus=_cpus(normal.get("cpus", normal.get("cpu"))),
            memory=0 if normal.get("memory") is None else parse_size(normal["memory"]),
        )
    except ValueError as error:
        raise SpecError(f"What the item asks of the machine cannot be read: {error}.") from None


def in_gib(size: int) -> str:
    """Say a size for people, in GiB."""
    return f"{size / _GIB:.3g} GiB of memory"


def _cpus(value: object) -> float:
    return 0.0 if value is None else values.nano_cpus(value) / _NANO


_NO_GPUS: Final[Mapping[str, str]] = MappingProxyType({})
#: CPUs are added up as floats.
_EPSILON = 1e-9


class Gpu(BaseModel):
    """One GPU."""

    model_config = ConfigDict(frozen=True)

    index: str = Field(description="Its number in the order of the PCI bus, as `nvidia-smi` shows it.")
    uuid: str | None = None
    name: str = "GPU"

    def matches(self, wanted: str) -> bool:
        """Whether an id, an index or a UUID, names it."""
        return wanted == self.index or (self.uuid is not None and wanted.lower() == self.uuid.lower())


class Capacity(BaseModel):
    """What the agent can give out."""

    model_config = ConfigDict(frozen=True)

    gpus: tuple[Gpu, ...] = ()
    cpus: float | None = Field(default=None, description="None: not counted.")
    memory: int | None = Field(default=None, description="Bytes; None: not counted.")
    note: str = Field(default="", description="Why it has no GPU, in words.")
    is_known: bool = Field(
        default=True, description="Which GPUs it has is known; false: the driver did not answer yet."
    )

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON for the agent's status: enough to see whether a request can ever fit here."""
        return self.model_dump(mode="json", exclude={"note": True, "gpus": {"__all__": {"name"}}})

    @classmethod
    def from_data(cls, data: Mapping[str, Any] | None) -> Capacity | None:
        """Read the capacity of an agent's status; `None` when it has none, or no valid one."""
        try:
            return None if data is None else cls.model_validate(data)
        except ValidationError:
            return None

    def with_new(self, seen: Capacity) -> Capacity:
        """Return the capacity with those GPUs added that a later probe has shown."""
        known = {gpu.index for gpu in self.gpus} | {gpu.uuid for gpu in self.gpus if gpu.uuid}
        new = tuple(gpu for gpu in seen.gpus if not known & {gpu.index, gpu.uuid})
        return self.model_copy(update={"gpus": self.gpus + new, "note": "" if self.gpus or new else seen.note})


class Allocation(BaseModel):
    """What one item holds. A label on its run carries it, so that a restarted agent rebuilds its allocations."""

    model_config = ConfigDict(frozen=True)

    gpus: tuple[str, ...] = Field(default=(), description="Indexes of GPUs.")
    cpus: float = 0
    memory: int = 0

    def as_label(self) -> str:
        """Return it as the text of a label."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_label(cls, text: str) -> Allocation | None:
        """Read the text of a label; `None` when it is not one that an agent wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None


class Denied(BaseModel):
    """The answer to a request that cannot be met."""

    model_config = ConfigDict(frozen=True)

    reason: str
    never: bool = Field(default=False, description="It does not fit on this machine even when nothing else runs.")


class Allocations(BaseModel):
    """The capacity of one agent, and the allocation of each item that holds some of it."""

    model_config = ConfigDict(frozen=True)

    capacity: Capacity = Capacity()
    held: dict[str, Allocation] = Field(default_factory=dict)

    def holding(self, holder: str, allocation: Allocation) -> Allocations:
        """Return the allocations in which `holder` holds this allocation, in place of any earlier one."""
        return self.model_copy(update={"held": {**self.held, holder: allocation}})

    def without(self, holder: str) -> Allocations:
        """Return the allocations in which `holder` holds nothing."""
        return self.model_copy(
            update={"held": {key: allocation for key, allocation in self.held.items() if key != holder}}
        )

    def holder_of(self, gpu: str) -> str | None:
        """Return who holds a GPU."""
        return next((holder for holder, allocation in self.held.items() if gpu in allocation.gpus), None)

    def allocate(
        self, request: DeviceRequest, *, busy: Mapping[str, str] = _NO_GPUS, reserved: DeviceRequest | None = None
    ) -> Allocation | Denied:
        """Answer a request; nothing is held by asking.

        Args:
            request: what it asks for.
            busy: why a GPU that no item holds cannot be used, by index, such as "is held by process 77".
            reserved: the request of the item that comes first; that much of what is free is not given out.
        """
        never = self._never(request)
        if never:
            return Denied(reason=never, never=True)
        if not self.capacity.is_known and not request.gpus.is_none:
            return Denied(reason=f"It asks for {request.gpus}, and {self.capacity.note}.")
        free = [gpu for gpu in self.capacity.gpus if self.holder_of(gpu.index) is None and gpu.index not in busy]
        cpus = _left(self.capacity.cpus, sum(allocation.cpus for allocation in self.held.values()))
        memory = _left(self.capacity.memory, sum(allocation.memory for allocation in self.held.values()))
        if reserved is not None:
            kept = _wanted(reserved.gpus, self.capacity.gpus, free, whole=False)
            free = [gpu for gpu in free if gpu not in kept]
            cpus, memory = _left(cpus, reserved.cpus), _left(memory, reserved.memory)
        gpus = _wanted(request.gpus, self.capacity.gpus, free, whole=True)
        if gpus is None:
            return Denied(reason=self._gpus_taken(request.gpus, free, busy, reserved))
        if cpus is not None and request.cpus > cpus + _EPSILON:
            return Denied(
                reason=f"{max(cpus, 0):g} of {self.capacity.cpus:g} CPUs are free; it asks for {request.cpus:g}."
            )
        if memory is not None and request.memory > memory:
            return Denied(reason=f"{in_gib(max(memory, 0))} is free; it asks for {in_gib(request.memory)}.")
        return Allocation(gpus=tuple(gpu.index for gpu in gpus), cpus=request.cpus, memory=request.memory)

    def can_ever_allocate(self, request: DeviceRequest) -> bool:
        """Whether a request can be met here once nothing else runs, as far as is known."""
        return not self._never(request)

    def _never(self, request: DeviceRequest) -> str:
        """Say why a request cannot be met here even when nothing runs; an empty text when it can."""
        gpus = self.capacity.gpus
        why = f" ({self.capacity.note})" if self.capacity.note else ""
        has = f"this agent has {_names(gpus)}" if gpus else f"this agent has no GPU{why}"
        if self.capacity.is_known:
            for wanted in request.gpus.ids:
                if not any(gpu.matches(wanted) for gpu in gpus):
                    return f"It asks for the GPU {wanted!r}, and {has}."
            if request.gpus.count > len(gpus) or (request.gpus.all and not gpus):
                return f"It asks for {request.gpus}, and {has}."
        if self.capacity.cpus is not None and request.cpus > self.capacity.cpus + _EPSILON:
            return f"It asks for {counted(request.cpus, 'CPU')}, and this agent has {self.capacity.cpus:g}."
        if self.capacity.memory is not None and request.memory > self.capacity.memory:
            return f"It asks for {in_gib(request.memory)}, and this agent has {in_gib(self.capacity.memory)}."
        return ""

    def _gpus_taken(
        self, asked: GpuRequest, free: list[Gpu], busy: Mapping[str, str], reserved: DeviceRequest | None
    ) -> str:
        taken = [f"GPU {index} {why}" for index, why in busy.items()]
        held = [gpu for gpu in self.capacity.gpus if self.holder_of(gpu.index)]
        taken += [f"{_names(held)} in use by other items"] if held else []
        if reserved is not None and not reserved.gpus.is_none:
            taken.append(f"{reserved.gpus} kept for an item that comes first")
        return f"{len(free)} of {len(self.capacity.gpus)} GPUs are free ({'; '.join(taken)}); it asks for {asked}."


def _left(have: Any, less: Any) -> Any:
    return None if have is None else have - less


def _wanted(asked: GpuRequest, gpus: Collection[Gpu], free: list[Gpu], *, whole: bool) -> Any:
    """Choose free GPUs for a request. With `whole`, return `None` when they do not suffice."""
    if asked.all:
        chosen, most = free, len(gpus)
    elif asked.ids:
        chosen = [gpu for gpu in free if any(gpu.matches(wanted) for wanted in asked.ids)]
        most = sum(any(gpu.matches(wanted) for wanted in asked.ids) for gpu in gpus)
    else:
        chosen, most = free[: asked.count], asked.count
    return None if whole and len(chosen) < most else chosen


def _names(gpus: Collection[Gpu]) -> str:
    """Say which GPUs, such as `GPUs 0,1`."""
    return f"GPU{'s' if len(gpus) > 1 else ''} {','.join(gpu.index for gpu in gpus)}"
