"""Inputs as a program takes them: as arguments in the words of its parser, or as environment variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from prefect_launch.core.nested import flat
from prefect_launch.errors import InputError

#: How a job's program gets its inputs, besides `$LAUNCH_CONFIG`, which it always has.
InputsAs = Literal["json", "args", "jsonargparse", "hydra", "env"]
INPUTS_AS: Final[tuple[str, ...]] = get_args(InputsAs)

#: In the schema of an input: the program takes it by its place among the arguments, without a name.
POSITIONAL: Final = "positional"

#: Text that Hydra reads as the same text without quotes.
_PLAIN_IN_HYDRA: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.\-]*\Z")
_WORDS_OF_HYDRA: Final = {"true", "false", "null", "nan", "inf", "infinity"}
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*\Z")
#: Variables that launch, the system, Python or the GPUs' driver give a meaning.
_RESERVED: Final = re.compile(
    r"(LAUNCH|WANDB|PREFECT|LD|LC|PYTHON|CUDA|NVIDIA)_.*|PYTHON.*|PATH|HOME|USER|LOGNAME|SHELL|PWD|TMPDIR|HOSTNAME|LANG|TERM"
)


def input_arguments(
    inputs: Mapping[str, Any], style: str, schema: Mapping[str, Any] | None, own: Sequence[str] = ()
) -> list[str]:
    """Return inputs as arguments, none for a style that has none, with the arguments that were given as such.

    Args:
        inputs: by name; a group of inputs is a mapping.
        style: one of `INPUTS_AS`.
        schema: the job's.
        own: the arguments that were given; of an option in both, they win.
    """
    if style == "args":
        placed, words = _positional(inputs, schema or {}), _options(inputs, schema or {})
        # A parser takes what begins with a dash for an option, unless it comes after all options.
        is_last = any(word.startswith("-") for word in placed)
        return [*words, *own, "--", *placed] if is_last else [*placed, *words, *own]
    if style == "jsonargparse":
        return [*(f"--{name}={_text(value)}" for name, value in flat(inputs).items()), *own]
    return [*hydra_overrides(inputs), *own] if style == "hydra" else [*own]


def _positional(inputs: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return the inputs that a program takes by their places."""
    known = schema.get("properties") or {}
    values = [inputs[name] for name in _in_order(inputs, known) if _rules(known, name).get(POSITIONAL)]
    lists = [value if isinstance(value, list) else [value] for value in values if value is not None]
    return [_text(one) for each in lists for one in each]


def _options(inputs: Mapping[str, Any], schema: Mapping[str, Any], group: str = "") -> list[str]:
    """Return the other inputs as `argparse` and click take them."""
    words: list[str] = []
    known = schema.get("properties") or {}
    for name in _in_order(inputs, known):
        path, value, rules = f"{group}{name}", inputs[name], _rules(known, name)
        if rules.get(POSITIONAL):
            continue
        if isinstance(value, Mapping):
            words += _options(value, rules, f"{path}.")
        elif isinstance(value, bool):
            # Without the flag it is false, unless true is the default: then there is a flag for false.
            words += [f"--{path}"] if value else [f"--no-{path}"] if rules.get("default") is True else []
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{path}", *map(_text, value)] if value else []
        elif value is not None:
            words.append(f"--{path}={_text(value)}")
    return words


def _in_order(inputs: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    return sorted(inputs, key=lambda name: _rules(known, name).get("position", len(known)))


def _rules(known: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    rules = known.get(name)
    return rules if isinstance(rules, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def hydra_overrides(inputs: Mapping[str, Any]) -> list[str]:
    """Return inputs in the grammar of Hydra's overrides."""
    return [f"{name}={_hydra_value(value)}" for name, value in flat(inputs).items()]


def _hydra_value(value: object) -> str:
    if isinstance(value, str):
        return _hydra_text(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_hydra_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_hydra_text(str(key))}: {_hydra_value(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def _hydra_text(text: str) -> str:
    if _PLAIN_IN_HYDRA.match(text) and text.lower() not in _WORDS_OF_HYDRA:
        return text
    # A quote, and backslashes before one or at the end, are escaped; `${` would be an interpolation.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'".replace("${", "\\${")


def input_variables(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return inputs as environment variables: names in upper case, texts as they are, all else as JSON.

    An input that is null becomes no variable.

    Raises:
        InputError: for a name that makes no variable, or one that has a meaning already; for two that make the same.
    """
    variables: dict[str, str] = {}
    for name, value in inputs.items():
        if value is None:
            continue
        variable = re.sub(r"[-. ]", "_", name).upper()
        if not _VARIABLE.match(variable):
            raise InputError(f"The input {name!r} makes no environment variable. Rename it: letters, digits and '_'.")
        if _RESERVED.fullmatch(variable):
            raise InputError(
                f"The input {name!r} would set the environment variable {variable}, which has a meaning of its own."
                " Rename the input."
            )
        if variable in variables:
            raise InputError(f"Two inputs set the environment variable {variable}, {name!r} and another. Rename one.")
        variables[variable] = _text(value)
    return variables
