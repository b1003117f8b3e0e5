"""Limits of a queue: which options are fixed for submitters, and the most that they may ask for.

What the queue's config sets is fixed, unless the owner lists it among the submitters' options. A maximum applies to
everything that an item asks for. A run that asks for nothing gets the maximum, if it would otherwise have no limit.
Even without a maximum, a submitter may not ask for no limit (`memory: 0`, `pids-limit: -1`, `gpus: all`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from prefect_launch.core.units import format_duration, parse_duration
from prefect_launch.errors import LaunchError, QueueError, UnsafeSpecError, unknown_name
from prefect_launch.policy.template import QueueConfig, placeholders
from prefect_launch.runners.base import Runner
from prefect_launch.runners.option_values import GPU_VARIABLES, UNLIMITED, Amount, Quantity
from prefect_launch.spec.option_names import normalise_option, normalise_options

#: The limit of what is no option of a resource: the spec's `timeout`.
TIMEOUT: Final = "timeout"
_ENV: Final = "env"
_MEMORY: Final = "memory"
#: All memory and swap together; a run that does not set it has as much swap as memory, by Docker's rule.
_SWAP: Final = "memory-swap"

Quantities = Mapping[str, Quantity]
#: Of an option that says by itself how much it asks for.
_NO_AMOUNT: Final = Amount(UNLIMITED, "")


def normalise_allowed(option: object) -> str:
    """Return the one name of a submitters' option; a single variable is `env.NAME`, its name as it is written."""
    text = str(option)
    prefix, dot, name = text.partition(".")
    return f"{_ENV}.{name}" if dot and name and normalise_option(prefix) == _ENV else normalise_option(option)


def read_limits(given: object, resource: str, quantities: Quantities) -> dict[str, Any]:
    """Read a queue's `limits`: the option, or `timeout`, and its maximum.

    Raises:
        QueueError: for an option that can have no maximum, or an invalid maximum.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise QueueError(f"A queue's limits must be a mapping such as {{'memory': '16g', 'gpus': 2}}, not {given!r}.")
    known = sorted({TIMEOUT, *(name for name, quantity in quantities.items() if quantity.has_maximum)})
    limits: dict[str, Any] = {}
    for name, value in given.items():
        option = normalise_option(name)
        if option not in known:
            raise QueueError(str(unknown_name("limit", option, known, where=f" of the resource {resource!r}")))
        if option in limits:
            raise QueueError(f"The limit of {option!r} is given twice. Keep one of them.")
        if (most := _maximum(option, value, quantities)) == UNLIMITED or most <= 0:
            raise QueueError(f"The limit {value!r} of {option!r} is no maximum. Leave it out for no limit.")
        limits[option] = value
    return limits


def _maximum(option: str, value: Any, quantities: Quantities) -> float:
    try:
        return (parse_duration(value) or 0) if option == TIMEOUT else quantities[option].measure(value)
    except (ValueError, LaunchError) as error:
        raise QueueError(f"The limit {value!r} of {option!r} is no good value: {error}") from None


def limits_of(config: QueueConfig) -> dict[str, Any]:
    """Return a queue's limits, with what follows from them: one of memory and swap together is one of memory, too."""
    limits = dict(config.limits)
    if _SWAP in limits:
        limits.setdefault(_MEMORY, limits[_SWAP])
    return limits


def fixed_options(config: QueueConfig, runner: type[Runner]) -> dict[str, str]:
    """Return the options (or `env.NAME`) that a queue fixes for its submitters, each with the reason in words."""
    free = _free(config)
    free |= {f"{_ENV}.{name}" for name in GPU_VARIABLES} if _ENV in free else set()
    own, limits = normalise_options(config.resource_args), limits_of(config)
    inside = runner.set_inside(own)
    places = {
        **{option: f"is set by the queue (at {place})" for option, place in inside.items()},
        **dict.fromkeys((f"{_ENV}.{name}" for name in own.get(_ENV, {})), "is set by the queue"),
        **dict.fromkeys((option for option in own if option != _ENV), "is set by the queue"),
    }
    fixed = {option: reason for option, reason in places.items() if not _names_of(option) & free}
    own = {**own, **inside}
    for option, quantity in runner.quantities.items():
        bound = sorted((quantity.bounds_with - {option}) & (own.keys() | limits.keys()))
        if bound and option not in own and option not in free and option not in limits:
            fixed[option] = f"would change what the queue's {bound[0]!r} limits"
    if "gpus" in own or "gpus" in limits:
        named = {f"{_ENV}.{name}" for name in GPU_VARIABLES}
        fixed |= dict.fromkeys(named - free - fixed.keys(), "would change what the queue's 'gpus' limits")
    return fixed


def _names_of(option: str) -> set[str]:
    """Return what an owner may allow so that submitters may set an option: `env.NAME`, or all of `env`."""
    return {option, _ENV} if option.startswith(f"{_ENV}.") else {option}


def check_fixed(options: Mapping[str, Any], config: QueueConfig, runner: type[Runner]) -> None:
    """Refuse a submitter's options that are fixed.

    Raises:
        UnsafeSpecError: naming the option, its value and the next step.
    """
    given = {*options, *(f"{_ENV}.{name}" for name in options.get(_ENV) or ())}
    for option, reason in fixed_options(config, runner).items():
        if option in given:
            raise UnsafeSpecError(_refusal(config, option, reason, runner.quantities))


def check_unlimited(options: Mapping[str, Any], config: QueueConfig, quantities: Quantities) -> None:
    """Refuse a submitter's options that ask for no limit, where the queue neither allows nor limits them.

    Raises:
        UnsafeSpecError: naming the option, its value and the next step.
    """
    for option, value in options.items():
        if option in quantities and option not in _free(config) and option not in limits_of(config):
            _check_unlimited(option, value, config, quantities)


def check_limits(
    options: Mapping[str, Any],
    config: QueueConfig,
    quantities: Quantities,
    amounts: Mapping[str, Amount] | None = None,
    filled: Collection[str] = (),
) -> None:
    """Refuse options, the queue's with the submitter's over them, that ask for more than the queue's limits.

    Args:
        options: filled in; what cannot be measured yet is left out.
        config: the queue's.
        quantities: of the resource's options.
        amounts: that the whole run asks for, as far as its options alone do not say it.
        filled: options that nobody asked for: `with_limits` has put them in.

    Raises:
        UnsafeSpecError: naming the option, its value and the limit.
        QueueError: for a limit that is none, in a queue that was not made by `make_config`.
    """
    config = config.model_copy(update={"limits": read_limits(config.limits, config.resource, quantities)})
    own, limits = normalise_options(config.resource_args), limits_of(config)
    for option, value in options.items():
        if option in limits:
            if quantities[option].measure(value) > quantities[option].measure(limits[option]):
                raise UnsafeSpecError(
                    f"resource_args.{config.resource} option {option!r} is {value!r}, and at most"
                    f" {limits[option]!r} is allowed on this queue. Ask for less."
                )
        elif option in quantities and placeholders(own.get(option)) and not _is_owner_s(own[option], config):
            _check_unlimited(option, value, config, quantities)
    for option, amount in (amounts or {}).items():
        if option in limits and amount.number > quantities[option].measure(limits[option]):
            asks, step = f"asks for {amount.text} of {option!r} in all", "Ask for less"
            if option in filled:
                asks, step = (
                    f"asks for no {option!r}: with the queue's limit it is {amount.text} in all",
                    "Ask for some",
                )
            raise UnsafeSpecError(
                f"resource_args.{config.resource} {asks}, and at most {limits[option]!r} is allowed on this queue."
                f" {step}."
            )


def with_limits(
    options: Mapping[str, Any],
    config: QueueConfig,
    quantities: Quantities,
    amounts: Mapping[str, Amount] | None = None,
) -> dict[str, Any]:
    """Return options with the queue's limit where a run would have more, or no limit at all.

    Args:
        options: that a run has.
        config: the queue's.
        quantities: of the resource's options.
        amounts: that the whole run asks for already, as far as its options alone do not say it.

    Raises:
        QueueError: for a limit that is none, in a queue that was not made by `make_config`.
    """
    config = config.model_copy(update={"limits": read_limits(config.limits, config.resource, quantities)})
    limits = limits_of(config)
    limited = {
        **options,
        **{
            option: limits[option]
            for option, quantity in quantities.items()
            if option in limits
            and option not in options
            and ((amounts or {}).get(option) or _NO_AMOUNT).number == UNLIMITED
            and quantity.is_above(limits[option], options)
            and not (option == "cpus" and "cpu-quota" in options)
        },
    }
    if _SWAP in limits and _SWAP not in limited and _MEMORY in limited:
        with suppress(ValueError):  # A macro is not filled in yet, or the value is refused later.
            if 2 * quantities[_MEMORY].measure(limited[_MEMORY]) > quantities[_SWAP].measure(limits[_SWAP]):
                limited[_SWAP] = limits[_SWAP]
    return limited


def time_limit(asked: float | None, config: QueueConfig) -> float | None:
    """Return a run's time limit in seconds: what was asked for, or else the queue's limit.

    Raises:
        UnsafeSpecError: when more was asked for.
    """
    most = parse_duration(config.limits.get(TIMEOUT))
    if most is not None and asked is not None and asked > most:
        raise UnsafeSpecError(
            f"The timeout is {format_duration(asked)}, and at most {format_duration(most)} is allowed on this queue."
            " Ask for less."
        )
    return most if asked is None else asked


def check_own_limits(config: QueueConfig, quantities: Quantities) -> QueueConfig:
    """Return a queue's config when its own options are within its limits, and no limit is above one that holds it too.

    Raises:
        QueueError: when one is not.
    """
    limits = limits_of(config)
    if _SWAP in limits and quantities[_MEMORY].measure(limits[_MEMORY]) > quantities[_SWAP].measure(limits[_SWAP]):
        raise QueueError(
            f"The queue's limit {limits[_MEMORY]!r} of {_MEMORY!r} is above its limit {limits[_SWAP]!r} of {_SWAP!r},"
            " which is of all memory and swap together. Change one."
        )
    for option, value in config.resource_args.items():
        if option in limits and not placeholders(value) and "${" not in str(value):
            try:
                asked = quantities[option].measure(value)
            except ValueError as error:
                raise QueueError(f"The queue's {option!r} is {value!r}: {error}.") from None
            if asked > quantities[option].measure(limits[option]):
                raise QueueError(
                    f"The queue's {option!r} is {value!r}, above its own limit {limits[option]!r}. Change one."
                )
    return config


def _free(config: QueueConfig) -> set[str]:
    return {normalise_allowed(option) for option in config.submitter_options}


def _is_owner_s(template: Any, config: QueueConfig) -> bool:
    """Whether a filled-in value can only be one that the owner wrote: of an enum."""
    return all("enum" in config.template_variables.get(name, {}) for name in placeholders(template))


def _check_unlimited(option: str, value: Any, config: QueueConfig, quantities: Quantities) -> None:
    if quantities[option].measure(value) == UNLIMITED:
        raise UnsafeSpecError(
            f"resource_args.{config.resource} option {option!r} is {value!r}, which means no limit: a submitter may not"
            " ask for that. Give a number; the queue's owner can let submitters have it"
            f" ('prefect-launch queue edit … --allow {option}')."
        )


def _refusal(config: QueueConfig, option: str, reason: str, quantities: Quantities) -> str:
    has_maximum = option in quantities and quantities[option].has_maximum
    most = f" --limit {option}=MAXIMUM" if has_maximum else ""
    return (
        f"resource_args.{config.resource} option {option!r} {reason} and cannot be given. Leave it out; the owner"
        f" can let submitters set it ('prefect-launch queue edit … --allow {option}{most}')."
    )
