"""Queue options: what a queue's owner asks for, and its check into a `QueueConfig`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.core.units import parse_duration
from prefect_launch.core.validation import check_server_json, first_error
from prefect_launch.errors import QueueError, SpecError, UnsafeSpecError, unknown_name
from prefect_launch.jobs.model import SourceKind
from prefect_launch.policy.limits import (
    check_limits,
    check_own_limits,
    normalise_allowed,
    read_limits,
    with_limits,
)
from prefect_launch.policy.submitter_options import check_free_places
from prefect_launch.policy.template import (
    BUILT_IN,
    QueueConfig,
    check_placeholders,
    is_whole,
    placeholders,
    read_template_variables,
    with_macros,
)
from prefect_launch.runners.base import Runner
from prefect_launch.runners.registry import runner_class
from prefect_launch.spec.option_names import normalise_options, resource_name


@dataclass(frozen=True)
class QueueOptions:
    """One queue, as its owner asks for it.

    Attributes:
        name: 1 to 64 letters, digits, `_`, `.`, `-`.
        type: the resource that its items run on, such as `local-process` or `local-container`.
        entity: its owner; by default that of the `Api`.
        prioritization_mode: `V0` (four priorities, the default) or `DISABLED` (one).
        config: the resource's options; `{{var}}` in it stands for a template variable, and
            `{"resource_args": {type: options}}` is understood too. Beside them may stand `docker: {pin: true}`, every
            item runs just the image that its tag meant when it was queued, or `{pin: false}`, the one that its tag
            means at the start; what an item says of it wins. `limits` is the most that an item may ask for:
            `{memory: 16g, gpus: 2, timeout: 12h}`. And `outputs: {max_bytes: 1g, max_files: 100}`: no more is kept of
            the outputs of one run.
        template_variables: `{name: {"schema": {type, enum, minimum, maximum, default}}}`.
        concurrency: how many items may be active at a time, at least 1; `None` for no limit.
        submitter_options: options that submitters may set besides the resource's usual ones, or though the config sets
            them; `env.NAME` for one variable.
        submitter_secrets: names of the Secret blocks that submitters may name in `env`, and so have; by default none.
            The queue's own config may name any.
        fail_impossible_after: seconds, or a text such as `1h`, after which an item fails that asks for more than its
            agent's machine has, while no other agent is online for the queue that has as much; by default it waits.
        per_author: how many jobs of one author may be active at a time, at least 1; authors then take turns inside a
            priority. `None` for no limit.
        per_author_waiting: how many jobs of one author may wait, at least 1: `launch_add` refuses more.
        preempt: whether a critical item that waits for a place sends one low item that is `resumable` back into the
            queue.
    """

    name: str
    type: str
    entity: str | None = None
    prioritization_mode: str | None = None
    config: Mapping[str, Any] | None = None
    template_variables: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None
    concurrency: int | None = field(default=None, kw_only=True)
    submitter_options: Iterable[str] = field(default=(), kw_only=True)
    submitter_secrets: Iterable[str] = field(default=(), kw_only=True)
    fail_impossible_after: float | str | None = field(default=None, kw_only=True)
    per_author: int | None = field(default=None, kw_only=True)
    per_author_waiting: int | None = field(default=None, kw_only=True)
    preempt: bool = field(default=False, kw_only=True)


# Queue options: what a queue's owner asks for, and its check into a `QueueConfig`.

PRIORITIZATION_MODES: Final = ("V0", "DISABLED")
#: What a queue's config says of images, beside the options of its resource.
_DOCKER: Final = "docker"
#: And what it says of the most that an item may ask for.
_LIMITS: Final = "limits"
_PIN: Final = "pin"
#: What it says of the outputs that are kept.
_OUTPUTS: Final = "outputs"
#: Stands for the value of a macro: it is a text, a number, a name and an image.
_SOME_VALUE: Final = "1"
_BLOCK_NAME: Final = re.compile(r"[a-z0-9-]+")


def make_config(options: QueueOptions) -> QueueConfig:
    """Make and check a queue's configuration, with nothing asked of the server.

    Raises:
        NotFoundError: for an unknown resource or option.
        QueueError: for a template variable, a mode, a limit, a `pin`, an output limit, the name of a secret or a
            `fail_impossible_after`, and for a share of an author, that is not right.
    """
    resource = resource_name(options.type)
    runner = runner_class(resource)
    docker, limits, outputs, given = _split(options.config)
    resource_args = _options_of(resource, given)
    check_server_json(resource_args, "The queue's config", error=QueueError)
    check_server_json(limits, "The queue", path="limits", error=QueueError)
    allowed = tuple(dict.fromkeys(normalise_allowed(option) for option in options.submitter_options))
    for option in resource_args:
        if option not in runner.options:
            raise runner.unknown_option(option, where=f" of the resource {resource!r}")
    _check_allowed(options.name, allowed, runner)
    made = check_placeholders(
        QueueConfig(
            resource=resource,
            resource_args=resource_args,
            template_variables=read_template_variables(options.template_variables),
            submitter_options=allowed,
            limits=read_limits(limits, resource, runner.quantities),
            submitter_secrets=_secrets_of(options.submitter_secrets),
            entity=options.entity,
            prioritization_mode=_mode(options.prioritization_mode),
            pin=_pin_of(docker, resource, runner),
            fail_impossible_after=_duration("fail_impossible_after", options.fail_impossible_after),
            outputs=_outputs_of(outputs),
            per_author=_share("per_author", options.per_author),
            per_author_waiting=_share("per_author_waiting", options.per_author_waiting),
            preempt=_preempt(options),
        )
    )
    check_free_places(made, runner.fill_rule)
    _check_values(made, runner)
    return check_own_limits(made, runner.quantities)


def _check_allowed(queue: str, allowed: Collection[str], runner: type[Runner]) -> None:
    """Refuse to let submitters set what the resource does not have, though the queue may have done so before."""
    known = [name for name in allowed if name in runner.options or name.startswith("env.")]
    for option in allowed:
        if option not in known:
            error = runner.unknown_option(option, where=f" of the resource {runner.name!r}")
            stay = "".join(f" --allow {name}" for name in known)
            raise type(error)(
                f"{error} If the queue lets submitters set it already, take that back:"
                f" 'prefect-launch queue edit {queue} --allow none{stay}'."
            )


def _mode(given: str | None) -> str:
    if given is not None and given not in PRIORITIZATION_MODES:
        raise QueueError(f"Unknown prioritization mode {given!r}: use 'V0' (four priorities) or 'DISABLED' (one).")
    return given or "V0"


def _whole_options(config: QueueConfig) -> dict[str, Any]:
    """Return a queue's own options of which no variable, secret or macro of an agent's config is filled in later.

    An item's own macros, such as `${image_uri}`, have a text in place of their value, so that the rest is checked.
    """
    filled = {
        name: with_macros(value, dict.fromkeys(BUILT_IN, _SOME_VALUE))
        for name, value in config.resource_args.items()
        if not placeholders(value)
    }
    return {name: value for name, value in filled.items() if is_whole(value)}


def _check_values(config: QueueConfig, runner: type[Runner]) -> None:
    """Check the values of a queue's own options that are all there."""
    whole = _whole_options(config)
    try:
        checked = runner.check_options(whole)
        if whole.keys() == config.resource_args.keys():
            runner.check_together(checked)
            limited = with_limits(checked, config, runner.quantities, runner.amounts(checked))
            filled = limited.keys() - checked.keys()
            check_limits({}, config, runner.quantities, runner.amounts(limited), filled)
    except (SpecError, UnsafeSpecError) as error:
        raise QueueError(f"The queue's config is not right: {error}") from None


def _secrets_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of Secret blocks, each once."""
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if not isinstance(name, str) or not _BLOCK_NAME.fullmatch(name):
            raise QueueError(
                f"Invalid name {name!r} of a Secret block in submitter_secrets: use its name on the Prefect server, in"
                " small letters, digits and '-'."
            )
    return tuple(dict.fromkeys(given))


def _duration(name: str, value: float | str | None) -> float | None:
    try:
        return parse_duration(value)
    except SpecError as error:
        raise QueueError(f"A queue's {name}: {error}") from None


def _options_of(resource: str, config: Mapping[str, Any]) -> dict[str, Any]:
    options = _mapping(config)
    if set(config) == {"resource_args"}:
        options = {resource_name(name): one for name, one in _mapping(config["resource_args"]).items()}
        if set(options) - {resource}:
            raise QueueError(f"The queue's resource is {resource!r}, but its config is for {', '.join(options)}.")
        options = _mapping(options.get(resource, {}))
    return normalise_options(options)


def _split(config: Mapping[str, Any] | None) -> tuple[Any, Any, Any, Mapping[str, Any]]:
    """Return what a config says of images, of limits, of outputs, and the rest of it."""
    given = dict(_mapping({} if config is None else config))
    return given.pop(_DOCKER, None), given.pop(_LIMITS, None), given.pop(_OUTPUTS, None), given


def _preempt(options: QueueOptions) -> bool:
    if options.preempt and options.prioritization_mode == "DISABLED":
        raise QueueError("A queue without priorities has no critical and no low items: leave preempt out.")
    return bool(options.preempt)


def _share(name: str, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise QueueError(f"A queue's {name} must be a whole number of at least 1, not {value!r}. None is no limit.")
    return value


def _outputs_of(outputs: Any) -> OutputLimits:
    try:
        return OutputLimits.model_validate({} if outputs is None else outputs)
    except ValidationError as error:
        first = first_error(error)
        where = ".".join(("outputs", *(str(part) for part in first["loc"])))
        raise QueueError(
            f"A queue's {where} is not right (value: {first['input']!r}): {first['msg']}. It takes max_bytes, a size"
            " such as 10g, and max_files, a whole number; or none."
        ) from None


def _pin_of(docker: Any, resource: str, runner: type[Runner]) -> bool | None:
    said = {} if docker is None else docker
    pin = said.get(_PIN) if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or not isinstance(pin, bool | None):
        raise QueueError(f"A queue's docker must be a mapping such as {{'pin': True}}, not {docker!r}.")
    for name in said:
        if name != _PIN:
            raise unknown_name("option", str(name), [_PIN], where=" of docker in the queue's config")
    if pin and SourceKind.IMAGE not in runner.sources:
        raise QueueError(f"A queue of {resource!r} runs no images: there is none to pin. Leave docker out.")
    return pin


def _mapping(config: object) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise QueueError(f"A queue's config must be a mapping of options, not {type(config).__name__} {config!r}.")
    return config
