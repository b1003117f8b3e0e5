"""Names of resource options: one normal form for each spelling.

People may write an option as in Docker's command line (`--shm-size`, `shm_size`, `m`). It is compared, merged and
passed on under its normal name, and `env` as a mapping. The runner reads the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.errors import SpecError

#: Docker's short names (and one more), each the same option as the long one: `m` is what a queue's `memory` is.
SHORT_NAMES = {
    "c": "cpu-shares",
    "cpu": "cpus",  # From the reference's list; `docker run` has no such option.
    "e": "env",
    "h": "hostname",
    "l": "label",
    "m": "memory",
    "net": "network",
    "p": "publish",
    "u": "user",
    "v": "volume",
    "w": "workdir",
}

#: Where a word begins in a name such as `ResourceConfig`.
_WORD_BEGINS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")

ENV: Final = "env"

#: Other names of resources, as the reference has them.
_RESOURCES: Final = {"gcp-vertex": "vertex"}


def resource_name(name: str) -> str:
    """Return the one name of a resource: `"gcp-vertex"` is `"vertex"`."""
    return _RESOURCES.get(name, name)


def normalise_option(name: object) -> str:
    """Return the normal name of an option: `"--Shm_Size"` is `"shm-size"`, `"m"` is `"memory"`, and
    `"ResourceConfig"` is `"resource-config"`.

    Raises:
        SpecError: when it is not text, or empty.
    """
    text = plain_name(name)
    return SHORT_NAMES.get(text, text)


def normalise_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their normal names, `env` as a mapping; the result is a new mapping.

    Raises:
        SpecError: when one is given twice under two names, or `env` cannot be read.
    """
    if not isinstance(options, Mapping):
        raise SpecError(
            f"Resource options must be a mapping of names to values, not {type(options).__name__} {options!r}."
        )
    normal: dict[str, Any] = {}
    spelling: dict[str, object] = {}
    for name, value in options.items():
        option = normalise_option(name)
        if option == ENV:
            normal[ENV] = {**normal.get(ENV, {}), **read_env(value)}
        elif option in normal:
            raise SpecError(
                f"The option {option!r} is given twice, as {spelling[option]!r} and {name!r}. Keep one of them."
            )
        else:
            normal[option] = value
        spelling[option] = name
    return normal


def read_env(value: object) -> dict[str, str]:
    """Read environment variables as a mapping, as a list of `NAME=value`, or as one such text.

    Raises:
        SpecError: when a name is empty or has `=` or a zero byte, a value is not text or a number, a list is empty, or
            an entry of one has no `=`: Docker would then copy the variable from the agent's environment.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)):
            raise SpecError(f"env must be a mapping or a list of 'NAME=value', not {type(value).__name__} {value!r}.")
        if not entries:
            raise SpecError("env is an empty list: give a mapping or a list of 'NAME=value', or leave it out.")
        pairs = [_split(entry) for entry in entries]
    return {_env_name(name): _env_value(name, item) for name, item in pairs}


def plain_name(name: object) -> str:
    """Return an option's name in lower case, with `-` and no leading dashes; a short name is not replaced.

    Raises:
        SpecError: when it is not text, or empty.
    """
    text = name.strip("-") if isinstance(name, str) else ""
    if text[:1].isupper():
        text = _WORD_BEGINS.sub("-", text)
    text = text.replace("_", "-").lower()
    if not text:
        raise SpecError(f"Invalid option name {name!r}: use a name such as 'memory' or 'shm-size'.")
    return text


def _split(entry: object) -> tuple[str, str]:
    name, equals, value = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    if not equals:
        raise SpecError(
            f"Invalid env entry {entry!r}: write 'NAME=value'."
            " A name alone would copy the variable from the agent's machine."
        )
    return name, value


def _env_name(name: object) -> str:
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        raise SpecError(
            f"Invalid environment variable name {name!r} in env: it must be text without '=', and not empty."
        )
    return name


def _env_value(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or "\0" in str(value):
        raise SpecError(f"Invalid value {value!r} of {name!r} in env: it must be text or a number. Put it in quotes.")
    return str(value)
