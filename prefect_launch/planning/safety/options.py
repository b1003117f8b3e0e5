"""Options of `local-container` and `local-process`: one form for them, who may set which, and and merging them.

An option may be written as the command line of Docker has it (`--shm-size`, `shm_size`, `m`); it is compared, merged
and handed on under its one normal name, and `env` as a mapping. What the values mean is the runner's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.queues.template import placeholders

#: Docker's short names (and one more), each the same option as the long one: `m` is what a queue's `memory` is.
SHORT_NAMES = {
    "c": "cpu-shares",
    "cpu": "cpus",  # It stands in the reference's list; `docker run` has no such option.
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
_ENV = "env"


def normalise_option(name: object) -> str:
    """Return the one name of an option: `"--Shm_Size"` is `"shm-size"`, `"m"` is `"memory"`.

    Raises:
        SpecError: when it is not text, or empty.
    """
    text = _plain_name(name)
    return SHORT_NAMES.get(text, text)


def normalise_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their normal names, `env` as a mapping; nothing of the caller's is shared at the top level.

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
        if option == _ENV:
            normal[_ENV] = {**normal.get(_ENV, {}), **read_env(value)}
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


def locked_options(queue_options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that the queue sets from template variables, each with the variable's name.

    Args:
        queue_options: the queue's options, placeholders not yet filled.

    Returns:
        By normal name; a single environment variable as `env.NAME`, so that the others stay free.
    """
    locked = {}
    for option, value in normalise_options(queue_options).items():
        parts = {f"{_ENV}.{name}": item for name, item in value.items()} if option == _ENV else {option: value}
        locked.update({part: names[0] for part, item in parts.items() if (names := placeholders(item))})
    return locked


def check_submitter_args(
    options: Mapping[str, Any],
    *,
    resource: str,
    allowed: Collection[str],
    extra_allowed: Iterable[str] = (),
    locked: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a submitter's options under their normal names, when the queue lets a submitter set each of them.

    Args:
        options: `resource_args` of this resource, as the submitter wrote them.
        resource: its name, for the messages.
        allowed: the options that any submitter may set: the runner's `submitter_options`.
        extra_allowed: those that the queue's owner allows besides: the queue's `submitter_options`.
        locked: options (or `env.NAME`) that the queue sets from a template variable, with the variable's name.

    Raises:
        UnsafeSpecError: naming the option, and what to use or whom to ask.
        SpecError: as `normalise_options`.
    """
    may_set = {_plain_name(name) for name in (*allowed, *extra_allowed)}
    normally = {normalise_option(name) for name in may_set}
    normal = normalise_options(options)
    for name in options:
        if normalise_option(name) not in normally:
            raise UnsafeSpecError(
                f"Unsupported resource_args.{resource} option {_plain_name(name)!r}. Supported options are:"
                f" {', '.join(sorted(may_set))}. The queue's owner can set it in the queue's own config, or allow it to"
                " submitters by adding it to the queue's submitter_options."
            )
    _check_locked(normal, resource, locked or {})
    return normal


def merge_resource_args(queue_options: Mapping[str, Any], submitter_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the queue's options with a submitter's over them: `env` name by name, everything else replaced.

    Args:
        queue_options: of one resource, template variables filled in.
        submitter_options: of the same resource; check them first.

    Returns:
        Options under their normal names, `env` as a mapping. Nothing that was given is changed.
    """
    queue, submitter = normalise_options(queue_options), normalise_options(submitter_options)
    merged = {**queue, **submitter}
    if _ENV in merged:
        merged[_ENV] = {**queue.get(_ENV, {}), **submitter.get(_ENV, {})}
    return merged


def _check_locked(normal: Mapping[str, Any], resource: str, locked: Mapping[str, str]) -> None:
    given = {*normal, *(f"{_ENV}.{name}" for name in normal.get(_ENV, {}))}
    for option, variable in locked.items():
        if option in given or normalise_option(option) in given:
            raise UnsafeSpecError(
                f"resource_args.{resource} option {option!r} is set by the queue's template variable {variable!r} and"
                f" cannot be given directly. Give template_variables={{{variable!r}: …}} instead"
                f" (-v {variable}=… on the command line)."
            )


def _plain_name(name: object) -> str:
    text = name.strip("-").replace("_", "-").lower() if isinstance(name, str) else ""
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
