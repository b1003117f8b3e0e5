"""Command of a trial: W&B's macros in the `command` of a sweep file, and parameters as arguments.

Each macro is replaced where it stands, and every other word is kept in its place. W&B Launch keeps the last macro for
arguments alone, and loses the words around it. Values in arguments are written as W&B writes them: as Python's `str`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.spec.input_styles import hydra_overrides

#: How parameters are written as arguments by the key `args`.
ArgsStyle = Literal["hyphens", "no_hyphens", "json", "hydra"]

_MACRO: Final = re.compile(r"\$\{([^{}]*)\}")
_VARIABLE: Final = "envvar:"
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


# --- parameters as arguments ---


def _named(params: Mapping[str, Any], before: str = "", after: str = "=") -> list[str]:
    return [f"{before}{name}{after}{value}" for name, value in params.items()]


def _without_equals(params: Mapping[str, Any]) -> list[str]:
    return [word for name, value in params.items() for word in (f"--{name}", str(value))]


def _without_boolean_values(params: Mapping[str, Any]) -> list[str]:
    kept = {name: value for name, value in params.items() if value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in kept.items()]


def _json(params: Mapping[str, Any]) -> list[str]:
    return [json.dumps(params)]


#: W&B's macros for arguments: each is a word of its own, and becomes these words.
_ARGUMENTS: Final[dict[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "args": lambda params: _named(params, "--"),
    "args_no_hyphens": _named,
    "args_no_boolean_flags": _without_boolean_values,
    "args_no_equals": _without_equals,
    "args_json": _json,
    "args_append_hydra": lambda params: _named(params, "+"),
    "args_override_hydra": lambda params: _named(params, "++"),
}
_STYLES: Final[dict[ArgsStyle, Callable[[Mapping[str, Any]], list[str]]]] = {
    "hyphens": _ARGUMENTS["args"],
    "no_hyphens": _ARGUMENTS["args_no_hyphens"],
    "json": _json,
    "hydra": hydra_overrides,
}
#: Macros that stand for one text, in a longer word too.
_TEXTS: Final = {"env": "/usr/bin/env", "interpreter": "python"}
_PROGRAM: Final = "program"
#: Macros of W&B that need a file next to the job, and what to write in their place.
_NEED_A_FILE: Final = {"args_json_file": "args_json", "args_dict": "args_json"}


def trial_arguments(params: Mapping[str, Any], style: ArgsStyle) -> list[str]:
    """Return a trial's parameters as arguments.

    Args:
        params: by name; a group of parameters is a mapping.
        style: `hyphens` (`--lr=0.1`), `no_hyphens` (`lr=0.1`), `json` (one text), or `hydra` (`o.lr=0.1`, in the
            grammar of Hydra's overrides, groups by dotted names).
    """
    return _STYLES[style](params)


# --- the command of the file ---


def check_command(command: Sequence[str], program: str | None) -> None:
    """Refuse a command with a macro that has no meaning; needs no trial.

    Args:
        command: the words of the file.
        program: the file's `program`.

    Raises:
        NotFoundError: for an unknown macro; names the nearest right one.
        SpecError: for a macro that cannot be filled in, or that stands inside a word where it needs its own.
    """
    for word in command:
        for macro in _MACRO.findall(word):
            _check_macro(macro, word, program)


def _check_macro(macro: str, word: str, program: str | None) -> None:
    if macro.startswith(_VARIABLE):
        if not _VARIABLE_NAME.match(macro.removeprefix(_VARIABLE)):
            raise SpecError(f"Invalid macro ${{{macro}}} in the command of the sweep configuration: name a variable.")
        return
    if macro in _NEED_A_FILE:
        raise SpecError(
            f"The macro ${{{macro}}} in the command of the sweep configuration is not available here."
            f" Use ${{{_NEED_A_FILE[macro]}}}, or read the parameters from the job's inputs."
        )
    if macro in _ARGUMENTS:
        if word != f"${{{macro}}}":
            raise SpecError(
                f"The macro ${{{macro}}} stands inside the word {word!r} in the command of the sweep configuration. It"
                " becomes several words: make it a word of its own."
            )
        return
    if macro == _PROGRAM:
        if program is None:
            raise SpecError("The command of the sweep configuration has ${program}, and there is no program. Add it.")
        return
    if macro not in _TEXTS:
        known = [*_TEXTS, _PROGRAM, *_ARGUMENTS, f"{_VARIABLE}NAME"]
        where = (
            " in the command of the sweep configuration (parameters reach the command by ${args}; a variable of a shell"
            " is $NAME without braces)"
        )
        raise unknown_name("macro", macro, known, where=where)


def variables_of(command: Iterable[str]) -> tuple[str, ...]:
    """Return the environment variables that a command names with `${envvar:NAME}`, each once."""
    macros = [macro for word in command for macro in _MACRO.findall(word)]
    return tuple(dict.fromkeys(name.removeprefix(_VARIABLE) for name in macros if name.startswith(_VARIABLE)))


def trial_command(
    command: Sequence[str], program: str | None, params: Mapping[str, Any], variables: Mapping[str, str]
) -> list[str]:
    """Return the command of one trial.

    Args:
        command: the words of the file; `check_command` has accepted them.
        program: the file's `program`.
        params: the trial's parameters.
        variables: the environment variables that the command may name.

    Raises:
        SpecError: for a variable that is not among them.
    """
    texts = {**_TEXTS, _PROGRAM: program or ""}
    for name in variables_of(command):
        if name not in variables:
            known = f" Allowed: {', '.join(sorted(variables))}." if variables else ""
            raise SpecError(
                f"The command of the sweep configuration names the environment variable {name!r}, which it may not"
                f" read.{known} Let the program read it from its own environment, or write its value."
            )
        texts[f"{_VARIABLE}{name}"] = variables[name]
    filled: list[str] = []
    for word in command:
        macro = _MACRO.fullmatch(word)
        if macro and macro[1] in _ARGUMENTS:
            filled += _ARGUMENTS[macro[1]](params)
        else:
            # In one pass: what a variable holds is never read as a macro.
            filled.append(_MACRO.sub(lambda found: texts[found[1]], word))
    return filled
