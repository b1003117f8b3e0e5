"""Secure mode of an agent: a submitter names a job and gives it inputs, and decides nothing else.

Each field of the launch spec is locked unless its declaration says otherwise (`Option.in_secure_mode`), so that a field
that is added later is locked too.
Environment variables, arguments, options of the resource and everything else are the job's and the queue's. Unlike the
reference, which locks what it lists and documents a lock on the image that it does not keep, this holds for all
resources.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.spec.launch_spec import DockerSource, LaunchSpec
from prefect_launch.spec.option import fields_of
from prefect_launch.spec.option_names import normalise_option

#: What a submitter may set, by the dotted path of the field in a launch spec.
FREE: Final = frozenset(field.path for field in fields_of(LaunchSpec) if field.option.in_secure_mode)
_WORDS: Final = {
    "overrides.entry_point": 'the "entrypoint" override',
    "docker.docker_image": 'the "image" (it runs jobs only)',
    "image_uri": 'the "image" (it runs jobs only)',
}


def locked_parts(spec: LaunchSpec, *, pins: bool | None = None) -> list[str]:
    """List what a spec sets that an agent in secure mode does not let a submitter decide, in words.

    Args:
        spec: the item's.
        pins: what the queue says of `docker.pin`, which is then the item's too.
    """
    return [
        words
        for path, value in _set_fields(spec)
        if path not in FREE and not (path == "docker.pin" and value == pins)
        for words in _in_words(path, value)
    ]


def secured(spec: LaunchSpec, *, pins: bool | None = None) -> LaunchSpec:
    """Return a spec as an agent in secure mode runs it.

    The digest that its image's tag meant when it was queued is the word of who queued it: it counts only where the
    queue's owner wants images pinned so. Else the image is what its name means at the start.

    Args:
        spec: the item's.
        pins: what the queue says of `docker.pin`.

    Raises:
        UnsafeSpecError: naming what is locked, and the next step.
    """
    for locked in locked_parts(spec, pins=pins):
        raise UnsafeSpecError(
            f"This agent is configured to lock {locked} but the job specification attempts to override it."
            " Remove it, make it part of the job, or use a queue whose agents are not in secure mode."
        )
    return spec if pins else spec.model_copy(update={"docker": DockerSource()})


def _set_fields(spec: LaunchSpec) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each field that is not at its default, those of nested parts one by one."""
    for field in fields_of(LaunchSpec):
        value = attrgetter(field.path)(spec)
        if value != field.info.get_default(call_default_factory=True):
            yield field.path, value


def _in_words(path: str, value: Any) -> list[str]:
    if path == "resource_args":
        return [f'"{normalise_option(name)}" in resource_args.{kind}' for kind, args in value.items() for name in args]
    part, _, leaf = path.rpartition(".")
    return [_WORDS.get(path) or (f'the "{leaf}" override' if part == "overrides" else f'"{path}"')]
