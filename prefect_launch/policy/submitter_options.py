"""Submitter options: which options, secrets and path values a submitter may give, and how they join the queue's own.

An option may be written as the command line of Docker has it (`--shm-size`, `shm_size`, `m`); it is compared, merged
and handed on under its one normal name, and `env` as a mapping. What the values mean is the runner's business.

A submitter names only the secrets that the queue's owner allows, and in `env` alone: a job prints what it was given.
A value that lands in a path or a bind of the owner's (`/data/{{team}}:/data`) must not lead out of it, unless the
owner's `pattern` or `enum` lets it through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.policy.template import SUBMITTED, QueueConfig, fill_text, named_in, placeholders
from prefect_launch.server.secrets import reference_to, secret_names
from prefect_launch.spec.option_names import ENV, normalise_option, normalise_options, plain_name


def locked_options(queue_options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that the queue sets from template variables, each with the variable's name.

    Returns:
        By normal name; a single environment variable as `env.NAME`, so that the others stay free.
    """
    locked = {}
    for option, value in normalise_options(queue_options).items():
        parts = {f"{ENV}.{name}": item for name, item in value.items()} if option == ENV else {option: value}
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
    may_set = {plain_name(name) for name in (*allowed, *extra_allowed)}
    normally = {normalise_option(name) for name in may_set}
    normal = normalise_options(options)
    for name in options:
        if normalise_option(name) not in normally:
            raise UnsafeSpecError(
                f"Unsupported resource_args.{resource} option {plain_name(name)!r}. Supported options are:"
                f" {', '.join(sorted(may_set))}. The queue's owner can set it in the queue's own config, or allow it to"
                " submitters by adding it to the queue's submitter_options."
            )
    _check_locked(normal, resource, locked or {})
    return normal


def merge_resource_args(queue_options: Mapping[str, Any], submitter_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the queue's options with a submitter's over them: `env` name by name, everything else replaced.

    Returns:
        Options under their normal names, `env` as a mapping. Nothing that was given is changed.
    """
    queue, submitter = normalise_options(queue_options), normalise_options(submitter_options)
    merged = {**queue, **submitter}
    if ENV in merged:
        merged[ENV] = {**queue.get(ENV, {}), **submitter.get(ENV, {})}
    return merged


def _check_locked(normal: Mapping[str, Any], resource: str, locked: Mapping[str, str]) -> None:
    given = {*normal, *(f"{ENV}.{name}" for name in normal.get(ENV, {}))}
    for option, variable in locked.items():
        if option in given or normalise_option(option) in given:
            raise UnsafeSpecError(
                f"resource_args.{resource} option {option!r} is set by the queue's template variable {variable!r} and"
                f" cannot be given directly. Give template_variables={{{variable!r}: …}} instead"
                f" (-v {variable}=… on the command line)."
            )


# --- secrets ---


def check_submitter_secrets(options: Mapping[str, Any], *, resource: str, allowed: Collection[str] | None) -> None:
    """Refuse a submitter's options that name a secret which is not the submitter's to name. None is read for it.

    Args:
        options: `resource_args` of this resource, under their normal names.
        resource: its name, for the messages.
        allowed: names of the secrets that the queue lets submitters name; `None`: any, for a run of no queue, which its
            caller starts on their own machine with their own access to the server.

    Raises:
        UnsafeSpecError: naming the secret, where it stands, and the next step.
    """
    for option, value in options.items():
        for name in secret_names(value):
            if option != ENV:
                raise UnsafeSpecError(
                    f"resource_args.{resource} option {option!r} names the secret {name!r}: a submitter's secret may"
                    " stand in env alone, where no command line shows it. Give it as"
                    f" env={{NAME: {reference_to(name)}}}."
                )
            if allowed is not None and name not in allowed:
                raise UnsafeSpecError(
                    f"resource_args.{resource} option 'env' names the secret {name!r}, which this queue does not let"
                    f" submitters name{_instead(allowed)}. The queue's owner can name it in the queue's own config, or"
                    f" allow it to submitters ('prefect-launch queue create … --replace --allow-secret {name}')."
                )


def check_variables_name_no_secret(values: Mapping[str, Any]) -> None:
    """Refuse template variables whose values name a secret: what a submitter fills in is never filled in again.

    Raises:
        UnsafeSpecError: naming the variable and the secret.
    """
    for variable, value in values.items():
        for name in secret_names(value):
            raise UnsafeSpecError(
                f"Template variable {variable!r} names the secret {name!r}; a variable's value is taken as it is, and"
                " names none. Give another value; the queue's owner can name the secret in the queue's own config."
            )


def secrets_pattern(allowed: Collection[str]) -> str:
    """Return a regular expression (of JSON schemas) that texts match which name no secret but these."""
    names = "|".join(re.escape(name) for name in sorted(allowed)) or r"(?!)"
    reference = rf"\{{\{{\s*prefect\.blocks\.secret\.(?!(?:{names})\s*\}}\}})[a-z0-9-]+\s*\}}\}}"
    return rf"^(?![\s\S]*{reference})"


def _instead(allowed: Collection[str]) -> str:
    return f" (it lets them name {', '.join(sorted(allowed))})" if allowed else ""


# --- values that stand in a path ---

#: Options whose value is a path, or holds one, whether or not a `/` is written beside the placeholder.
_PATHS: Final = frozenset({"device", "mount", "tmpfs", "volume", "workdir"})
#: Those whose paths are of the host, where what a job has made may be a link.
_HOST_PATHS: Final = frozenset({"device", "mount", "volume"})
#: Options of several fields, which these characters divide.
_FIELDS: Final = frozenset({"add-host", "device", "mount", "tmpfs", "volume"})
_DIVIDERS: Final = ':,"'


def check_path_values(config: QueueConfig, values: Mapping[str, Any], macros: Mapping[str, str]) -> None:
    """Refuse values that would change the meaning of a path or a bind which they are filled into.

    Args:
        config: the queue's.
        values: of its template variables, as the submitter gave them; checked against their schemas.
        macros: what `prefect_launch.policy.template` fills in. Those of a submitter's choice, such as `run_name`, are
            looked at.

    Raises:
        UnsafeSpecError: naming the variable, its value, the option and the rule.
    """
    defaults = {name: rule["default"] for name, rule in config.template_variables.items() if "default" in rule}
    for option, text in _texts(normalise_options(config.resource_args)):
        names = [name for name in named_in(text) if _is_free(name, config, values)]
        for name in names:
            given = macros.get(name[2:-1]) if name.startswith("$") else values.get(name)
            if not isinstance(given, str):
                continue
            fault = _fault(given, option, text) or _climbs(text, {**defaults, **values}, macros)
            if fault:
                raise UnsafeSpecError(_path_refusal(name, given, option, fault))


def _is_free(name: str, config: QueueConfig, values: Mapping[str, Any]) -> bool:
    """Whether a submitter chose the value, and the owner has not said which there may be."""
    if name.startswith("$"):
        return name[2:-1] in SUBMITTED
    schema = config.template_variables.get(name, {})
    is_default = "default" in schema and values.get(name) == schema["default"]
    return name in values and not is_default and not schema.keys() & {"enum", "pattern"}


def _fault(value: str, option: str, text: str) -> str | None:
    """Return the rule that a value breaks where it stands; `None` when it breaks none."""
    if option not in _PATHS | _FIELDS and "/" not in text:
        return None
    if not value.strip():
        return "it must not be empty"
    if not value.isprintable():
        return "it must have no line breaks and no control characters"
    if option in _FIELDS and set(value) & set(_DIVIDERS):
        return "it must have no ':', ',' or '\"', which divide the option's fields"
    if value.startswith("/"):
        return "it must be no absolute path"
    if {".", ".."} & set(value.split("/")):
        return "it must not lead out of its folder ('.' and '..')"
    if option in _HOST_PATHS and "/" in value:
        return "it must have no '/': it is the name of one folder of the host"
    return None


def _climbs(text: str, values: Mapping[str, Any], macros: Mapping[str, str]) -> str | None:
    """Return a rule that is broken by a value and the owner's text together: `.` in `/data/.{{team}}` makes `..`."""
    filled = fill_text(text, values, macros)
    if _dots(filled) > _dots(fill_text(text, _Letters(), _Letters())):
        return "it must not lead out of its folder ('.' and '..')"
    return None


def _dots(text: str) -> int:
    return sum(part in (".", "..") for part in re.split(r"[/:,=]", text)) if "/" in text else 0


class _Letters(dict[str, str]):
    """A letter for whatever is named."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "x"


def _path_refusal(name: str, value: str, option: str, fault: str) -> str:
    if name.startswith("$"):
        return (
            f"{name[2:-1]} cannot be {value!r} on this queue, which puts it into a path or a bind (its option"
            f" {option!r}): {fault}. Choose another."
        )
    return (
        f"Template variable {name!r} cannot be {value!r}, which the queue puts into a path or a bind (its option"
        f" {option!r}): {fault}. Give another value; the queue's owner can say which there may be by a pattern or an"
        " enum of the variable."
    )


def _texts(value: Any, option: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in options, each with the option that it stands in; a variable of env as `env.NAME`."""
    if isinstance(value, str):
        yield option, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, name if not option else f"{option}.{name}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, option)
