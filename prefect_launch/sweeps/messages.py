"""Error messages of a sweep configuration: path, value, rule and nearest name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import ValidationError

from prefect_launch.core.validation import first_error, reason
from prefect_launch.errors import SpecError, clause, nearest_name, unknown_name

_SHOWN_CHARS: Final = 80


def invalid(path: str, value: object, rule: str, *, near: str | None = None) -> SpecError:
    """Return the error for a value that breaks a rule.

    Args:
        path: where it stands, such as `parameters.lr.min`.
        value: the value seen.
        rule: the rule, as a clause, such as `it must be above 0`.
        near: the right value that was most likely meant.
    """
    text = repr(value)
    shown = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
    hint = f" Did you mean {near!r}?" if near else ""
    return SpecError(f"Invalid {path} {shown} in the sweep configuration: {rule}.{hint}")


#: Keys that people write, also those of Ray Tune, Optuna and Katib, and the key that they mean.
_MEANT: Final = {
    **{"num_workers": "scheduler", "distribution": "parameters", "queue": "launch"},
    **dict.fromkeys(("count", "num_samples", "n_trials", "max_trials", "maxTrialCount"), "run_cap"),
    **dict.fromkeys(("mode", "direction", "type"), "goal"),
}


def check_block(value: object, known: Collection[str], path: str = "") -> Mapping[str, Any]:
    """Return a value that must be a mapping of known keys.

    Args:
        value: the value.
        known: its keys.
        path: where it stands; empty for the whole configuration.

    Raises:
        SpecError: when it is no mapping.
        NotFoundError: for an unknown key; names the nearest right one.
    """
    if not isinstance(value, Mapping):
        raise invalid(path or "content", value, f"it must be a mapping; its keys are {', '.join(sorted(known))}")
    for key in value:
        if key not in known:
            near = _MEANT.get(key) if _MEANT.get(key) in known else None
            raise unknown_name("key", key, known, where=f" in {path or 'the sweep configuration'}", near=near)
    return value


def first_refusal(error: ValidationError, path: str = "") -> SpecError:
    """Return what pydantic found first, as an error of ours.

    Args:
        error: pydantic's error.
        path: where the validated block stands.
    """
    first = first_error(error)
    where = ".".join(str(part) for part in (path, *first["loc"]) if part != "")
    if first["type"] == "missing":
        return SpecError(f"The sweep configuration has no {where}, which is required here. Add it.")
    if first["type"] == "literal_error":
        expected = str(first["ctx"]["expected"])
        near = nearest_name(first["input"], re.findall(r"'([^']*)'", expected))
        return invalid(where, first["input"], f"it must be {expected}", near=near)
    rule = clause(reason(first))
    rule = f"it {rule.removeprefix('Input ')}" if rule.startswith("Input ") else rule
    return invalid(where, first["input"], rule.replace("it should be", "it must be"))
