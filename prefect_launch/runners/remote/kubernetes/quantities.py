"""Quantities of Kubernetes, such as `500m` CPUs or `2Gi` of memory: read from text, written, and summed over an object.

In the short options memory is written as on every resource (`2g`, `512m`: powers of 1024), or as in a manifest (`2Gi`).
In a manifest it is written as Kubernetes takes it: there `2g` is nothing, and `512m` is half a byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from prefect_launch.core.units import as_text, parse_size
from prefect_launch.runners.option_values import UNLIMITED, Quantity, gpus, nano_cpus, read_gpus

_QUANTITY: Final = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([eE][+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII
)
_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}
_RULE: Final = "it must be a number, or one with a unit of Kubernetes: 500m, 2, 512Mi, 2Gi, 2G"
_NANO: Final = 10**9
_BINARY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTkmgt])i", re.ASCII)
_MILLI: Final = re.compile(r"\d+m", re.ASCII)
#: Of containers; other names of resources are those of devices.
GPU_RESOURCE: Final = "nvidia.com/gpu"
#: Names of devices that compute: `amd.com/gpu`, `nvidia.com/mig-1g.5gb`, `gpu.intel.com/i915`, `google.com/tpu`.
_GPU: Final = re.compile(r"[^/]*gpu[^/]*/.+|.+/(.*gpu.*|mig-.+|tpu|gaudi|neuron.*)", re.IGNORECASE)


def parse_quantity(value: object) -> Decimal:
    """Return a quantity of a manifest as a number: CPUs, bytes, devices.

    Raises:
        ValueError: with the rule in words, and for another spelling the right one.
    """
    text = as_text(value).strip()
    found = _QUANTITY.fullmatch(text)
    if not found:
        other = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgtKMGT])(?:[iI]?[bB])?", text)
        meant = f"; for {text!r} write '{other[1]}{other[2].upper()}i'" if other else ""
        raise ValueError(f"{_RULE}{meant}")
    number = Decimal(found[1] + (found[2] or "")) * _SUFFIXES[found[3] or ""]
    if number < 0:
        raise ValueError("it must not be below 0")
    return number


def read_cpus(value: object) -> int:
    """A number of CPUs, such as 1.5 or "500m", in billionths."""
    text = as_text(value).strip()
    return nano_cpus(float(text[:-1]) / 1000 if _MILLI.fullmatch(text) else text)


def read_memory(value: object) -> int:
    """Bytes above 0: a number, or one with a unit (`512m`, `2g`, `2Gi`)."""
    text = as_text(value).strip()
    size = parse_size(text + "b" if _BINARY.fullmatch(text) else text)
    if size <= 0:
        raise ValueError("it must be more than 0: to set no limit, leave it out")
    return size


def read_gpu_count(value: object) -> int:
    """A number of GPUs: which ones, the cluster chooses."""
    asked = read_gpus(value)
    if asked.all or asked.ids:
        raise ValueError("it must be a number of GPUs: which ones, the cluster chooses")
    return asked.count


def written_cpus(nano: int) -> str:
    """Write billionths of a CPU as a manifest has them, such as `2` or `1500m`."""
    return str(nano // _NANO) if nano % _NANO == 0 else f"{-(-nano // 10**6)}m"


def written_bytes(size: int) -> str:
    """Write bytes as a manifest has them, such as `2Gi`."""
    for letter, power in (("Ti", 4), ("Gi", 3), ("Mi", 2), ("Ki", 1)):
        if size % 1024**power == 0:
            return f"{size // 1024**power}{letter}"
    return str(size)


def asked_of(container: Mapping[str, Any], gpu_resource: str = GPU_RESOURCE) -> dict[str, float]:
    """Return how much a container may use: billionths of CPUs, bytes, GPUs; infinite where nothing limits it.

    A pod that has `resources` of its own is taken as well. The greater of its limit and its request counts, and every
    kind of GPU.
    """
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}

    def greatest(resource: str, unset: float) -> float:
        given = [_number(part.get(resource)) for part in (limits, requests)]
        return max(unset if given[0] is None else 0.0, *(float(one) for one in given if one is not None), 0.0)

    gpus = [name for name in {**limits, **requests} if is_gpu(name, gpu_resource)]
    return {
        "cpus": greatest("cpu", UNLIMITED) * _NANO,
        "memory": greatest("memory", UNLIMITED),
        "gpus": sum(greatest(name, 0.0) for name in gpus),
    }


def is_gpu(resource: str, gpu_resource: str = GPU_RESOURCE) -> bool:
    """Whether a resource of a container is a GPU, or a part of one, as which queues count it.

    Args:
        resource: its name, such as `cpu` or `amd.com/gpu`.
        gpu_resource: that the queue's owner calls one.
    """
    return resource == gpu_resource or bool(_GPU.fullmatch(resource))


def _number(value: object) -> Decimal | None:
    try:
        return None if value is None else parse_quantity(value)
    except ValueError:
        return None


#: Of `kubernetes`. A container that says nothing may use all that its node has.
QUANTITIES: Final = {
    "cpus": Quantity(read_cpus, unset=UNLIMITED),
    "gpus": Quantity(gpus),
    "memory": Quantity(read_memory, unset=UNLIMITED),
    "shm-size": Quantity(read_memory),
}
