"""Readers of option values: from what a person wrote to what the Docker Engine API takes; and quantities of options.

Every reader raises `ValueError` with the rule in words; the caller puts the option's name and the value before it. A
`Quantity` measures an option, so that a queue's owner can set a maximum of it.
"""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from prefect_launch.core.units import MAX_INTEGER, as_text, counted, parse_size

Value = TypeVar("Value")

_NANO = 1_000_000_000
#: The engine's own least memory of a container.
_MIN_MEMORY_BYTES = 6 * 1024**2
_MAX_PATH_CHARS = 4096
_MAX_CPU = 65_535
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def of_form(pattern: str, rule: str, *, max_chars: int = 255) -> Callable[[object], str]:
    """Return a reader of a text that matches a pattern from its first to its last character.

    Args:
        pattern: a regular expression.
        rule: what it says, in words.
        max_chars: of the text.
    """
    form = re.compile(pattern, re.ASCII)

    def read(value: object) -> str:
        found = as_text(value)
        if len(found) > max_chars or not form.fullmatch(found):
            raise ValueError(rule)
        return found

    return read


def each(reader: Callable[[object], Value]) -> Callable[[object], list[Value]]:
    """Return a reader of one text, or a list of them that is not empty, each as another reader reads it."""
    return lambda value: [reader(one) for one in texts(value)]


container_name = of_form(
    r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", "it must be letters, digits, '_', '.' and '-', a letter or a digit first"
)
platform = of_form(
    r"[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+){0,2}", 'it must be OS, OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT: "linux/arm64"'
)
hostname = of_form(
    r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*",
    "it must be a host's name: letters, digits, '-' and '.'",
    max_chars=64,
)
network = of_form(
    r"(container:)?[a-zA-Z0-9][a-zA-Z0-9_.-]*", 'it must be the name of a network, "host", "none" or "container:NAME"'
)
ipc = of_form(
    r"none|private|shareable|host|container:[a-zA-Z0-9][a-zA-Z0-9_.-]*",
    'it must be "none", "private", "shareable", "host" or "container:NAME"',
)
runtime = of_form(r"[a-zA-Z0-9][a-zA-Z0-9_./-]*", "it must be the name of a runtime that the engine knows")
user = of_form(r"[a-zA-Z0-9_][\w.-]*\$?(:[a-zA-Z0-9_][\w.-]*\$?)?", "it must be USER or USER:GROUP, by names or ids")
capabilities = each(of_form(r"(?i:(CAP_)?[A-Z_]+)", 'each must be a capability of the kernel, such as "SYS_PTRACE"'))
security_options = each(
    of_form(r"[a-z-]+([=:][\x20-\x7e]+)?", 'each must be NAME or NAME=VALUE: "no-new-privileges"', max_chars=65_536)
)


def integer(value: object) -> int:
    """A whole number, also as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it must be a whole number")
    return value


def between(least: int, most: int, *others: int) -> Callable[[object], int]:
    """Return a reader of a whole number of a range, or one of some others."""
    rule = f"it must be a whole number from {least:,} to {most:,}" + "".join(f", or {other}" for other in others)

    def read(value: object) -> int:
        number = integer(value)
        if number not in others and not least <= number <= most:
            raise ValueError(rule)
        return number

    return read


def cpu_list(value: object) -> str:
    """CPUs, or memory nodes, by number: "0-3", "0,2"; a bare number is one."""
    found = of_form(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", 'it must be numbers and ranges: "0-3", "0,2"')(value)
    for part in found.split(","):
        first, _, last = part.partition("-")
        if not int(first) <= int(last or first) <= _MAX_CPU:
            raise ValueError('it must be numbers and ranges, each from the least to the greatest: "0-3", "0,2"')
    return found


def path(value: object) -> str:
    """A path in the container, as a text of one line that does not lead upwards."""
    found = as_text(value)
    if not found.isprintable() or len(found) > _MAX_PATH_CHARS or ".." in found.split("/"):
        raise ValueError("it must be a path of one line, without '..' in it")
    return found


def absolute_path(value: object) -> str:
    """A path from the root, in the container or on its host."""
    found = path(value)
    if not found.startswith("/"):
        raise ValueError(f"{found!r} must be an absolute path, without '..' in it")
    return found


def boolean(value: object) -> bool:
    """True or false, also as those words."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def texts(value: object) -> list[str]:
    """One text, or a list of them that is not empty."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError("the list must not be empty")
    return [as_text(one) for one in values]


def words(value: object) -> list[str]:
    """A command: a text, split as a shell splits it, or a list of texts."""
    if isinstance(value, (list, tuple)):
        return ["" if one == "" else as_text(one) for one in value]
    return shlex.split(as_text(value))


def memory(value: object) -> int:
    """As `parse_size`: 0 for no limit, or at least 6 MiB, the engine's own least."""
    found = parse_size(value)
    if 0 < found < _MIN_MEMORY_BYTES:
        raise ValueError("it must be at least 6m, the engine's own least")
    return found


def size_or_unlimited(value: object) -> int:
    """As `parse_size`, and -1 for no limit."""
    return -1 if as_text(value).strip() == "-1" else parse_size(value)


def nano_cpus(value: object) -> int:
    """A number of CPUs, such as 0.5, in billionths."""
    try:
        cpus = float(as_text(value))
    except ValueError:
        raise ValueError("it must be a number of CPUs, such as 1.5") from None
    if not 0 < cpus < 10_000:
        raise ValueError("it must be a number of CPUs above 0, such as 1.5")
    return round(cpus * _NANO)


def device_requests(value: object) -> list[dict[str, Any]]:
    """GPUs: "all", a count, or ids (indexes or UUIDs), as every resource takes them."""
    wanted = read_gpus(value)
    if wanted.is_none:
        return []
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    if wanted.ids:
        return [{**request, "DeviceIDs": list(wanted.ids)}]
    return [{**request, "Count": -1 if wanted.all else wanted.count}]


def ulimits(value: object) -> list[dict[str, Any]]:
    """Limits such as `nofile=1024:2048` or `core=0`."""
    found = []
    for one in texts(value):
        match = re.fullmatch(r"(\w+)=(-?\d+)(?::(-?\d+))?", one.strip())
        if not match:
            raise ValueError('each must be NAME=SOFT or NAME=SOFT:HARD, such as "nofile=1024:2048"')
        if match[1] not in _ULIMITS:
            raise ValueError(f"{match[1]!r} is none of {', '.join(_ULIMITS)}")
        soft, hard = int(match[2]), int(match[3] or match[2])
        if not all(-1 <= number <= MAX_INTEGER for number in (soft, hard)) or (hard >= 0 and not -1 < soft <= hard):
            raise ValueError("each must be -1 (no limit) or more, the soft one not above the hard one")
        found.append({"Name": match[1], "Soft": soft, "Hard": hard})
    return found


def pairs(value: object) -> dict[str, str]:
    """A mapping, or a list of "KEY=VALUE" or "KEY"."""
    if isinstance(value, Mapping):
        return {as_text(key): as_text(one) for key, one in value.items()}
    split = (one.partition("=") for one in texts(value))
    return {key: one for key, _, one in split}


def tmpfs(value: object) -> dict[str, str]:
    """Folders in memory: "/path" or "/path:options"."""
    split = (one.partition(":") for one in texts(value))
    return {absolute_path(folder): _mount_options(options) for folder, _, options in split}


def _mount_options(options: str) -> str:
    if not re.fullmatch(r"[\w=,%.-]*", options, re.ASCII):
        raise ValueError('the options after a folder must be such as "size=64m,mode=1777"')
    return options


def hosts(value: object) -> list[str]:
    """Names of hosts with their addresses: "db:10.0.0.1", "me:host-gateway"."""
    for one in texts(value):
        name, _, address = one.partition(":")
        hostname(name)
        if address != "host-gateway":
            ip_address(address.strip("[]"))
    return texts(value)


def addresses(value: object) -> list[str]:
    """Addresses of the internet protocol."""
    return [str(ip_address(one)) for one in texts(value)]


def devices(value: object) -> list[dict[str, str]]:
    """Devices: "/dev/x", "/dev/x:/dev/y" or "/dev/x:/dev/y:rwm"."""
    found = []
    for one in texts(value):
        host, _, rest = one.partition(":")
        inside, _, rights = rest.partition(":")
        rights = rights or "rwm"
        if not set(rights) <= set("rwm") or len(set(rights)) < len(rights):
            raise ValueError('each must be /PATH, /PATH:/PATH or /PATH:/PATH:RIGHTS, the rights of "rwm"')
        found.append(
            {
                "PathOnHost": absolute_path(host),
                "PathInContainer": absolute_path(inside or host),
                "CgroupPermissions": rights,
            }
        )
    return found


_PROPAGATIONS = frozenset({"shared", "rshared", "slave", "rslave", "private", "rprivate"})


def volumes(value: object) -> list[dict[str, Any]]:
    """Volumes: "/host/path:/path" or "name:/path", with ":ro" when they are only read.

    They are made as mounts: a folder of the host that is not there is an error then, and not made by the engine.
    """
    return [_volume(one) for one in texts(value)]


def _volume(written: str) -> dict[str, Any]:
    source, target, *options = written.split(":")[:3] if written.count(":") in (1, 2) else ("", "")
    if not source or not target:
        raise ValueError('each must be SOURCE:/PATH or SOURCE:/PATH:OPTIONS, such as "/data:/data:ro"')
    mount = _checked({"Type": "bind" if "/" in source else "volume", "Source": source, "Target": target})
    for option in options[0].split(",") if options else ():
        if option in ("ro", "rw"):
            mount["ReadOnly"] = option == "ro"
        elif option in _PROPAGATIONS and mount["Type"] == "bind":
            mount["BindOptions"] = {"Propagation": option}
        elif option == "nocopy" and mount["Type"] == "volume":
            mount["VolumeOptions"] = {"NoCopy": True}
        elif option in ("z", "Z"):
            raise ValueError(f"the option {option!r} cannot be had of a mount; label the folder, or use security-opt")
        else:
            raise ValueError(f"the option {option!r} is not known: it may be ro, rw, nocopy, or a propagation")
    return mount


def _checked(mount: dict[str, Any]) -> dict[str, Any]:
    """Return a mount whose source and target may be."""
    if absolute_path(mount.get("Target", "")).rstrip("/") == "":
        raise ValueError("each must have a target, an absolute path in the container, and not '/'")
    kind, source = mount["Type"], mount.get("Source")
    if kind == "bind":
        absolute_path(source or "")
    elif source is not None and (kind != "volume" or not _VOLUME_NAME.fullmatch(source)):
        raise ValueError(f"{source!r} cannot be the source of a mount of the type {kind!r}")
    return mount


_MOUNT_KEYS = {"type": "Type", "source": "Source", "src": "Source", "target": "Target", "dst": "Target"}


def mounts(value: object) -> list[dict[str, Any]]:
    """Mounts, as `docker run --mount` takes them: "type=bind,source=/data,target=/data,readonly"."""
    return [_mount(one) for one in texts(value)]


def _mount(written: str) -> dict[str, Any]:
    if not written.isprintable():
        raise ValueError("each must be one line")
    mount: dict[str, Any] = {"Type": "volume"}
    for field in next(csv.reader([written]), []):
        key, equals, value = field.strip().partition("=")
        key = {"destination": "dst"}.get(key, key)
        if key in ("readonly", "ro"):
            mount["ReadOnly"] = not equals or boolean(value)
        elif key in _MOUNT_KEYS and value:
            mount[_MOUNT_KEYS[key]] = value
        else:
            raise ValueError('each must have the form "type=bind,source=/data,target=/data,readonly"')
    if mount["Type"] not in ("bind", "volume", "tmpfs"):
        raise ValueError('each must be of the type "bind", "volume" or "tmpfs"')
    if "Target" not in mount:
        raise ValueError("each must have a target, an absolute path in the container")
    return _checked(mount)


# --- GPUs ---

#: Environment variables that select the GPUs which a program, or the engine, sees.
GPU_VARIABLES: Final = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_GPU_RULE: Final = (
    'it must be "all", a count, or ids (indexes or UUIDs): a list such as ["0", "2"], "0,2", or "device=0,2"'
)
#: No machine has a million GPUs.
_MAX_GPU_DIGITS: Final = 6
_GPU_PREFIX: Final = "device="
_GPU_ID: Final = re.compile(r"\d+|[A-Za-z][\w.:-]*-[\w./:-]+")
_NO_GPUS: Final = ("", "0", "none")
_ALL_GPUS: Final = ("all", "-1")


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
        return counted(self.count, "GPU")


def read_gpus(value: object) -> GpuRequest:
    """Read GPUs as every resource takes them: "all" (or -1), a count (2, "2"), or ids.

    Ids are a list (`["0", "2"]`), a text with commas ("0,2"), one UUID, or Docker's own form "device=0,2". A bare
    number is a count; one single id is `["3"]` or "device=3".

    Raises:
        ValueError: with the rule in words.
    """
    if isinstance(value, (list, tuple)):
        return _gpus_of_ids([_gpu_id(one) for one in value])
    if value is None:
        return GpuRequest()
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(_GPU_RULE)
    text = str(value).strip().strip('"').strip()
    if text.lower() in _NO_GPUS:
        return GpuRequest()
    if text.lower() in _ALL_GPUS:
        return GpuRequest(all=True)
    if text.isdecimal():
        if len(text) > _MAX_GPU_DIGITS:
            raise ValueError(_GPU_RULE)
        return GpuRequest(count=int(text))
    return _gpus_of_ids([_gpu_id(one) for one in text.removeprefix(_GPU_PREFIX).split(",")])


def written_ids(ids: tuple[str, ...]) -> str:
    """Write ids as the option takes them, whatever their number."""
    return _GPU_PREFIX + ",".join(ids)


def visible_gpus(ids: tuple[str, ...]) -> dict[str, str]:
    """Return the environment variables by which a program sees these GPUs and no others."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # else CUDA counts the fastest card as 0
        "CUDA_VISIBLE_DEVICES": ",".join(ids),
        "NVIDIA_VISIBLE_DEVICES": ",".join(ids) or "void",
    }


def _gpus_of_ids(ids: list[str]) -> GpuRequest:
    if len(set(ids)) != len(ids):
        raise ValueError("it names a GPU twice")
    return GpuRequest(ids=tuple(ids))


def _gpu_id(value: object) -> str:
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not _GPU_ID.fullmatch(text):
        raise ValueError(_GPU_RULE)
    return text


# --- quantities ---

UNLIMITED: Final = math.inf


@dataclass(frozen=True)
class Quantity:
    """How much an option asks for.

    Attributes:
        measure: reads a value as a number of its unit (bytes, billionths of a CPU, GPUs); infinite where it means that
            there is no limit. Raises `ValueError` for an invalid value.
        has_maximum: whether a queue can set a maximum of it.
        unset: how much a run has that does not set it, or the function of its other options that says it; where that
            is above a queue's maximum, it gets the maximum.
        bounds_with: options that say the same in another way, or together with it.
    """

    measure: Callable[[object], float]
    has_maximum: bool = True
    unset: float | Callable[[Mapping[str, Any]], float] = 0
    bounds_with: frozenset[str] = frozenset()

    def is_above(self, most: object, options: Mapping[str, Any]) -> bool:
        """Whether a run with these options, which does not set it, has more than a maximum."""
        return (self.unset(options) if callable(self.unset) else self.unset) > self.measure(most)


class Amount(NamedTuple):
    """How much a whole run asks for.

    Attributes:
        number: in the unit of the quantity; infinite where nothing limits it.
        text: the same for people.
    """

    number: float
    text: str


def bytes_above_zero(value: object) -> float:
    """Bytes; 0 and -1 are no limit."""
    found = size_or_unlimited(value)
    return found if found > 0 else UNLIMITED


def count_above_zero(value: object) -> float:
    """A count; 0 and less are no limit."""
    count = integer(value)
    return count if count > 0 else UNLIMITED


def gpus(value: object) -> float:
    """GPUs, however they are asked for."""
    asked = read_gpus(value)
    return UNLIMITED if asked.all else len(asked.ids) or asked.count


def greatest_ulimit(value: object) -> float:
    """The greatest of some ulimits; -1 is no limit."""
    limits = [one[kind] for one in ulimits(value) for kind in ("Soft", "Hard")]
    return UNLIMITED if min(limits) < 0 else max(limits)


_MEMORY: Final = frozenset({"memory", "memory-swap"})
_CPUS: Final = frozenset({"cpus", "cpu-period", "cpu-quota"})

#: Of `local-container`, as the Docker Engine takes them.
CONTAINER_QUANTITIES: Final = {
    "cpu-period": Quantity(integer, has_maximum=False, bounds_with=_CPUS),
    "cpu-quota": Quantity(count_above_zero, has_maximum=False, bounds_with=_CPUS),
    "cpu-shares": Quantity(integer, unset=1024),
    "cpus": Quantity(nano_cpus, unset=UNLIMITED, bounds_with=_CPUS),
    "gpus": Quantity(gpus),
    "memory": Quantity(bytes_above_zero, unset=UNLIMITED, bounds_with=_MEMORY),
    "memory-reservation": Quantity(bytes_above_zero),
    "memory-swap": Quantity(bytes_above_zero, bounds_with=_MEMORY),
    "pids-limit": Quantity(count_above_zero, unset=UNLIMITED),
    "shm-size": Quantity(bytes_above_zero, unset=64 * 1024**2),
    "ulimit": Quantity(greatest_ulimit, has_maximum=False),
}
#: Of `local-process`: what its agent keeps free for it. A job that says nothing has nothing kept free.
PROCESS_QUANTITIES: Final = {
    "cpus": Quantity(nano_cpus),
    "gpus": Quantity(gpus),
    "memory": Quantity(parse_size),
}
