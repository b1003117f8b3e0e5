"""Readers of the values of container options: each takes what a person wrote and gives what the Docker Engine API
wants.

Every reader raises `ValueError` with the rule in words; `container_options.py` puts the option's name and the value
before it.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Mapping
from typing import Any

from prefect_launch.runners.gpu_option import read_gpus

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[bkmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_NANO = 1_000_000_000


def text(value: object) -> str:
    """A text, or a number as one."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or str(value) == "" or "\0" in str(value):
        raise ValueError("it must be text or a number, and not empty")
    return str(value)


def integer(value: object) -> int:
    """A whole number, also as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it must be a whole number")
    return value


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
    return [text(one) for one in values]


def words(value: object) -> list[str]:
    """A command: a text, split as a shell splits it, or a list of texts."""
    if isinstance(value, (list, tuple)):
        return [str(one) if isinstance(one, (str, int, float)) else text(one) for one in value]
    return shlex.split(text(value))


def size(value: object) -> int:
    """Bytes: a number, or one with a unit (`512m`, `1.5g`)."""
    found = _SIZE.match(text(value).strip())
    if not found:
        raise ValueError('it must be a number of bytes, or one with a unit: b, k, m, g or t, such as "512m"')
    return int(float(found["number"]) * _UNITS[found["unit"].lower()])


def size_or_unlimited(value: object) -> int:
    """As `size`, and -1 for no limit."""
    return -1 if text(value).strip() == "-1" else size(value)


def nano_cpus(value: object) -> int:
    """A number of CPUs, such as 0.5, in billionths."""
    try:
        cpus = float(text(value))
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
        soft = int(match[2])
        found.append({"Name": match[1], "Soft": soft, "Hard": int(match[3] or soft)})
    return found


def pairs(value: object) -> dict[str, str]:
    """A mapping, or a list of "KEY=VALUE" or "KEY"."""
    if isinstance(value, Mapping):
        return {text(key): text(one) for key, one in value.items()}
    split = (one.partition("=") for one in texts(value))
    return {key: one for key, _, one in split}


def tmpfs(value: object) -> dict[str, str]:
    """Folders in memory: "/path" or "/path:options"."""
    split = (one.partition(":") for one in texts(value))
    return {path: options for path, _, options in split}


def devices(value: object) -> list[dict[str, str]]:
    """Devices: "/dev/x", "/dev/x:/dev/y" or "/dev/x:/dev/y:rwm"."""
    found = []
    for one in texts(value):
        host, _, rest = one.partition(":")
        inside, _, rights = rest.partition(":")
        found.append({"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": rights or "rwm"})
    return found


def binds(value: object) -> list[str]:
    """Volumes: "/host/path:/path" or "name:/path", with ":ro" when they are only read."""
    for one in texts(value):
        parts = one.split(":")
        if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
            raise ValueError('each must be SOURCE:/PATH or SOURCE:/PATH:OPTIONS, such as "/data:/data:ro"')
    return texts(value)


_MOUNT_KEYS = {"type": "Type", "source": "Source", "src": "Source", "target": "Target", "dst": "Target"}


def mounts(value: object) -> list[dict[str, Any]]:
    """Mounts, as `docker run --mount` takes them: "type=bind,source=/data,target=/data,readonly"."""
    return [_mount(one) for one in texts(value)]


def _mount(written: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"Type": "volume"}
    for field in next(csv.reader([written])):
        key, equals, value = field.strip().partition("=")
        key = {"destination": "dst"}.get(key, key)
        if key in ("readonly", "ro"):
            mount["ReadOnly"] = not equals or boolean(value)
        elif key in _MOUNT_KEYS and value:
            mount[_MOUNT_KEYS[key]] = value
        else:
            raise ValueError('each must have the form "type=bind,source=/data,target=/data,readonly"')
    if not str(mount.get("Target", "")).startswith("/"):
        raise ValueError("each must have a target, an absolute path in the container")
    return mount
