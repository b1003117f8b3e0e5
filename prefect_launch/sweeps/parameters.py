"""Parameters of a sweep configuration: which distribution each one has, nested groups too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from prefect_launch.errors import SpecError, nearest_name
from prefect_launch.sweeps.distributions import DISTRIBUTIONS, Distribution, IntUniform, Uniform
from prefect_launch.sweeps.messages import first_refusal, invalid

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_GROUP: Final = "parameters"
#: Every key that some shape of a parameter has.
_KEYS: Final = frozenset(
    {"distribution", _GROUP, *(key for kind in DISTRIBUTIONS.values() for key in kind.model_fields)}
)
_EXAMPLE: Final = "such as {values: [1, 2]} or {min: 0.1, max: 1.0}"


class Parameter(NamedTuple):
    """One parameter of a sweep.

    Attributes:
        path: its name, after those of the groups that it is in.
        distribution: what it may be.
    """

    path: tuple[str, ...]
    distribution: Distribution


def parse_parameters(value: object, path: str = _GROUP, groups: tuple[str, ...] = ()) -> tuple[Parameter, ...]:
    """Read a mapping of parameters and of groups of them.

    Args:
        value: plain data: a mapping of names to shapes.
        path: where it stands, such as `parameters`.
        groups: names of the groups that it is in.

    Returns:
        The parameters sorted by name, those of a group in its place: the order of W&B's grid.

    Raises:
        SpecError: names the parameter, its value and the rule; for a misspelt key or word, the nearest right one.
    """
    if not isinstance(value, Mapping) or not value:
        raise invalid(path, value, f"it must be a mapping of at least one name to its values, {_EXAMPLE}")
    for name in value:
        if not _NAME.match(name):
            raise invalid(
                f"name in {path}",
                name,
                "a parameter's name has letters, digits, '_', '.' and '-', and begins with a letter or '_'",
            )
    found: list[Parameter] = []
    for name, item in sorted(value.items()):
        found += _parse(item, f"{path}.{name}", (*groups, name))
    return tuple(found)


def _parse(value: object, path: str, names: tuple[str, ...]) -> tuple[Parameter, ...]:
    if not isinstance(value, Mapping):
        raise invalid(path, value, f"it must be a mapping, {_EXAMPLE}. For a constant, write {{value: {value}}}")
    for key in value:
        if key not in _KEYS:
            raise invalid(
                f"key in {path}", key, f"a parameter has {', '.join(sorted(_KEYS))}", near=nearest_name(key, _KEYS)
            )
    if _GROUP in value:
        return _parse_group(value, path, names)
    kind = _kind(value, path)
    given = {key: item for key, item in value.items() if key != "distribution"}
    for key in given:
        if key not in kind.model_fields:
            fields = " and ".join(kind.model_fields)
            raise invalid(
                f"{path}.{key}", given[key], f"a parameter of the distribution {kind.name!r} has only {fields}"
            )
    try:
        return (Parameter(names, kind.model_validate(given)),)
    except ValidationError as error:
        raise _refusal(error, kind, value, path) from None


def _parse_group(value: Mapping[str, Any], path: str, names: tuple[str, ...]) -> tuple[Parameter, ...]:
    for key in value:
        if key != _GROUP:
            raise invalid(f"{path}.{key}", value[key], f"a group of parameters has only the key {_GROUP!r}")
    return parse_parameters(value[_GROUP], f"{path}.{_GROUP}", names)


def _kind(value: Mapping[str, Any], path: str) -> type[Distribution]:
    """Return the distribution that is named, or that the keys mean."""
    if "distribution" in value:
        named = value["distribution"]
        if not isinstance(named, str) or named not in DISTRIBUTIONS:
            words = ", ".join(DISTRIBUTIONS)
            near = nearest_name(named, DISTRIBUTIONS)
            if f"{near}_values" in DISTRIBUTIONS:
                near = f"{near}_values"  # The other one takes exponents, and hardly anybody means it.
            raise invalid(f"{path}.distribution", named, f"it must be one of {words}", near=near)
        return DISTRIBUTIONS[named]
    if "value" in value:
        return DISTRIBUTIONS["constant"]
    if "probabilities" in value:
        return DISTRIBUTIONS["categorical_w_probabilities"]
    if "values" in value:
        return DISTRIBUTIONS["categorical"]
    if "min" in value or "max" in value:
        ends = (value.get("min"), value.get("max"))
        return Uniform if any(isinstance(end, float) for end in ends) else IntUniform
    raise SpecError(
        f"Invalid {path} {dict(value)!r} in the sweep configuration: it must have 'value', 'values', 'min' and 'max',"
        " 'distribution', or 'parameters'."
    )


def _refusal(error: ValidationError, kind: type[Distribution], value: Mapping[str, Any], path: str) -> SpecError:
    first = error.errors()[0]
    if not first["loc"]:  # a rule on several keys
        return invalid(path, dict(value), str(first["ctx"]["error"]) if "ctx" in first else first["msg"])
    if first["type"] == "missing":
        fields = " and ".join(name for name, field in kind.model_fields.items() if field.is_required())
        return SpecError(
            f"The sweep configuration has no {path}.{first['loc'][0]}: the distribution {kind.name!r} needs {fields}."
        )
    return first_refusal(error, path)
