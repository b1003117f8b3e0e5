"""Submitter options: which options, secrets and path values a submitter may give, and how they join the queue's own.

An option may be written as the command line of Docker has it (`--shm-size`, `shm_size`, `m`); it is compared, merged
and handed on under its one normal name, and `env` as a mapping. What the values mean is the runner's business.

A submitter names only the secrets that the queue's owner allows, and only in `env`: a job can print its variables. A
value inside a path or a bind of the owner's (`/data/{{team}}:/data`) must not lead out of it. A value that only the
owner may choose (a namespace, an account) is refused, unless the owner's `pattern` or `enum` allows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.errors import QueueError, UnsafeSpecError
from prefect_launch.policy.template import SUBMITTED, QueueConfig, fill_text, named_in, placeholders
from prefect_launch.runners.base import Runner
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.server.secrets import reference_to, secret_names
from prefect_launch.spec.option_names import ENV, normalise_option, normalise_options


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
    runner: type[Runner],
    *,
    extra_allowed: Iterable[str] = (),
    locked: Mapping[str, str] | None = None,
    fixed: Collection[str] = (),
) -> dict[str, Any]:
    """Return a submitter's options under their normal names, when the queue lets a submitter set each of them.

    Args:
        options: `resource_args` of this resource, as the submitter wrote them.
        runner: of the resource.
        extra_allowed: options that the queue's owner allows besides: the queue's `submitter_options`.
        locked: options (or `env.NAME`) that the queue sets from a template variable, with the variable's name.
        fixed: those that the queue fixes, which is said elsewhere.

    Raises:
        UnsafeSpecError: naming the option, and what to use or whom to ask.
        SubmitterError: for an option that the resource does not have, as `Runner.unknown_option` returns it.
        SpecError: as `normalise_options`.
    """
    resource = runner.name
    may_set = {normalise_option(name) for name in (*runner.submitter_options, *extra_allowed)}
    known = {normalise_option(name) for name in runner.options} | may_set
    normal = normalise_options(options)
    for name in options:
        option = normalise_option(name)
        if option not in known:
            settable = may_set - {*fixed, *(locked or {})}
            raise runner.unknown_option(name, where=f" in resource_args.{resource}", known=settable)
        if option not in may_set:
            raise UnsafeSpecError(
                f"resource_args.{resource} option {name!r} is for a queue's owner to set. Leave it out; the owner can"
                " set it in the queue's config, or let submitters set it ('prefect-launch queue edit …"
                f" --allow {option}')."
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
                    f" allow it to submitters ('prefect-launch queue edit … --allow-secret {name}')."
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


# --- values that a submitter fills in ---

#: Says how freely a submitter's value may stand at a place of the options: `Runner.fill_rule`.
RuleOf = Callable[[str, Keys, str], FillRule]
#: Options whose value is a path, or holds one, whether or not a `/` stands next to the placeholder.
_PATHS: Final = frozenset({"device", "mount", "tmpfs", "volume", "workdir"})
#: Those whose paths are of the host, where what a job has made may be a link.
_HOST_PATHS: Final = frozenset({"device", "mount", "volume"})
#: Options of several fields, which these characters divide.
_FIELDS: Final = frozenset({"add-host", "device", "mount", "tmpfs", "volume", "volumes"})
_DIVIDERS: Final = ':,"'


class _Place(NamedTuple):
    """A text in a queue's options.

    Attributes:
        option: under its normal name.
        keys: that lead to the text in the option's value.
        text: as the owner wrote it.
    """

    option: str
    keys: Keys
    text: str

    def __str__(self) -> str:
        return self.option + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)


def check_filled_values(
    config: QueueConfig,
    values: Mapping[str, Any],
    macros: Mapping[str, str],
    *,
    rule_of: RuleOf | None = None,
    check_allowed: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Refuse values that may not stand where they are filled in.

    Args:
        config: the queue's.
        values: of its template variables, as the submitter gave them; checked against their schemas.
        macros: what `prefect_launch.policy.template` fills in. Those of a submitter's choice, such as `run_name`, are
            looked at.
        rule_of: the resource's rule for a place; None: a value is free unless its option is a path.
        check_allowed: refuses what a submitter may not give in an option that the owner allows to submitters.

    Raises:
        UnsafeSpecError: naming the variable, its value, the place and the rule.
    """
    defaults = {name: rule["default"] for name, rule in config.template_variables.items() if "default" in rule}
    for place in _places(normalise_options(config.resource_args)):
        for name in named_in(place.text):
            given = macros.get(name[2:-1]) if name.startswith("$") else values.get(name)
            if given is None or not _is_free(name, config, values):
                continue
            rule = _rule(place, config, rule_of)
            if check_allowed is not None and _is_allowed(place, config):
                filled = fill_text(place.text, {**defaults, **values}, macros)
                check_allowed({place.option: _nested(place.keys, filled)})
            if rule is FillRule.OWNER:
                raise UnsafeSpecError(_owners_refusal(name, given, str(place)))
            if not isinstance(given, str):
                continue
            fault = _fault(given, place.option, place.text, is_path=rule is FillRule.PATH)
            if fault or (fault := _climbs(place.text, {**defaults, **values}, macros)):
                raise UnsafeSpecError(_path_refusal(name, given, str(place), fault))


def check_free_places(config: QueueConfig, rule_of: RuleOf) -> None:
    """Refuse a queue's config that leaves to its submitters what only the owner chooses.

    Args:
        config: the queue's.
        rule_of: the resource's rule for a place.

    Raises:
        QueueError: naming the variable, or the macro, and the place.
    """
    for place in _places(normalise_options(config.resource_args)):
        for name in named_in(place.text):
            if _chosen_by_submitter(name, config) and _rule(place, config, rule_of) is FillRule.OWNER:
                raise QueueError(
                    f"The queue's {place} is {place.text!r}, so that a submitter would choose by {_called(name)} what"
                    f" only the queue's owner may. {_next_step(name)}"
                )


def _rule(place: _Place, config: QueueConfig, rule_of: RuleOf | None) -> FillRule:
    if rule_of is None or _is_allowed(place, config):
        return FillRule.ANY
    return rule_of(*place)


def _is_allowed(place: _Place, config: QueueConfig) -> bool:
    """Whether the owner lets submitters set the option as a whole."""
    return place.option in {normalise_option(name) for name in config.submitter_options}


def _is_free(name: str, config: QueueConfig, values: Mapping[str, Any]) -> bool:
    """Whether a submitter chose the value, and the owner has not said which there may be."""
    if name.startswith("$"):
        return _chosen_by_submitter(name, config)
    schema = config.template_variables.get(name, {})
    is_default = "default" in schema and values.get(name) == schema["default"]
    return name in values and not is_default and _chosen_by_submitter(name, config)


def _chosen_by_submitter(name: str, config: QueueConfig) -> bool:
    """Whether a variable or a macro has what values a submitter likes."""
    if name.startswith("$"):
        return name[2:-1] in SUBMITTED
    schema = config.template_variables.get(name)
    return schema is not None and not (schema.keys() & {"enum", "pattern"} or schema.keys() >= {"minimum", "maximum"})


def _nested(keys: Keys, value: Any) -> Any:
    for key in reversed(keys):
        value = [value] if isinstance(key, int) else {key: value}
    return value


def _called(name: str) -> str:
    return f"the macro {name}" if name.startswith("$") else f"the template variable {name!r}"


def _next_step(name: str) -> str:
    if name.startswith("$"):
        return "Use a template variable there, with an enum or a pattern."
    return "Say which values there may be, by an enum or a pattern of the variable (of a number: minimum and maximum)."


def _owners_refusal(name: str, value: Any, place: str) -> str:
    called = name[2:-1] if name.startswith("$") else f"Template variable {name!r}"
    return (
        f"{called} cannot be {value!r} on this queue, which puts it into {place}: what stands there, only the queue's"
        f" owner chooses. Leave it out, or ask the queue's owner. For the owner: {_next_step(name)}"
    )


def _fault(value: str, option: str, text: str, *, is_path: bool = False) -> str | None:
    """Return the rule that a value breaks where it stands; `None` when it breaks none."""
    if not is_path and option not in _PATHS | _FIELDS and "/" not in text:
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


def _path_refusal(name: str, value: str, place: str, fault: str) -> str:
    if name.startswith("$"):
        return (
            f"{name[2:-1]} cannot be {value!r} on this queue, which puts it into a path or a bind (its option"
            f" {place!r}): {fault}. Choose another."
        )
    return (
        f"Template variable {name!r} cannot be {value!r}, which the queue puts into a path or a bind (its option"
        f" {place!r}): {fault}. Give another value; the queue's owner can say which there may be by a pattern or an"
        " enum of the variable."
    )


def _places(options: Mapping[str, Any]) -> Iterator[_Place]:
    """Yield the texts in options, each with its place."""
    for option, value in options.items():
        yield from (_Place(option, keys, text) for keys, text in _texts(value))


def _texts(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, (*keys, name))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _texts(item, (*keys, number))
