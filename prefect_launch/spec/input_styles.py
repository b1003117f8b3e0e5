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


def input_arguments(inputs: Mapping[str, Any], style: str, schema: Mapping[str, Any] | None) -> list[str]:
    """Return inputs as arguments; none for a style that has none.

    Args:
        inputs: by name; a group of inputs is a mapping.
        style: one of `INPUTS_AS`.
        schema: the job's.
    """
    if style == "args":
        return _options(inputs, schema or {})
    if style == "jsonargparse":
        return [f"--{name}={_text(value)}" for name, value in flat(inputs).items()]
    return hydra_overrides(inputs) if style == "hydra" else []


def _options(inputs: Mapping[str, Any], schema: Mapping[str, Any], group: str = "") -> list[str]:
    """Return inputs as `argparse` and click take them."""
    placed: list[str] = []
    words: list[str] = []
    known = schema.get("properties") or {}
    for name in sorted(inputs, key=lambda name: _rules(known, name).get("position", len(known))):
        path, value, rules = f"{group}{name}", inputs[name], _rules(known, name)
        if rules.get(POSITIONAL) and value is not None:
            placed += map(_text, value if isinstance(value, list) else [value])
        elif isinstance(value, Mapping):
            words += _options(value, rules, f"{path}.")
        elif isinstance(value, bool):
            # Without the flag it is false, unless true is the default: then there is a flag for false.
            words += [f"--{path}"] if value else [f"--no-{path}"] if rules.get("default") is True else []
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{path}", *map(_text, value)] if value else []
        elif value is not None:
            words.append(f"--{path}={_text(value)}")
    return [*placed, *words]


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
