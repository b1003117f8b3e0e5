"""Options of `local-container` and `local-process`: one form for them, who may set which, and and merging them.

An option may be written as the command line of Docker has it (`--shm-size`, `shm_size`, `m`); it is compared, merged
and handed on under its one normal name, and `env` as a mapping. What the values mean is the runner's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.policy.template import placeholders
from prefect_launch.spec.option_names import ENV, normalise_option, normalise_options, plain_name


def locked_options(queue_options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that the queue sets from template variables, each with the variable's name.

    Args:
        queue_options: the queue's options, placeholders not yet filled.

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

    Args:
        queue_options: of one resource, template variables filled in.
        submitter_options: of the same resource; check them first.

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
