"""Causes of a schema's errors: in a union (`anyOf`, `oneOf`) the branch that was meant, and what is wrong in it.

jsonschema says of such a value only that no branch takes it. Here the branch is chosen before it is judged: by its tag
(a property that each branch fixes, or OpenAPI's `discriminator`), by the type of the value, or by its names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

#: Keywords by which a branch fixes the value of its tag.
_FIXED = ("const", "enum")


def causes(errors: Iterable[Any]) -> Iterator[Any]:
    """Yield jsonschema's errors, with the causes of one in a union in its place."""
    for error in errors:
        if error.validator in ("anyOf", "oneOf") and error.context:
            yield from causes(_chosen(error))
        else:
            yield error


def worst_cause(errors: Iterable[Any]) -> Any:
    """Return the error to tell first, or None: an unknown name before others, since it is often the cause of them."""
    found = list(causes(errors))
    return min(found, key=lambda error: (not unknown_names(error), len(error.absolute_path)), default=None)


def unknown_names(error: Any) -> list[str]:
    """Return the names that an error calls unknown: keys of an object that the schema closes to others."""
    if error.validator != "additionalProperties" or error.validator_value is not False:
        return []
    known = error.schema.get("properties", {})
    return [name for name in error.instance if name not in known]


def _chosen(error: Any) -> list[Any]:
    """Return the errors of the branch that was meant."""
    branches: dict[int, list[Any]] = {}
    for each in error.context:
        branches.setdefault(each.relative_schema_path[0], []).append(each)
    fitting = [errors for errors in branches.values() if not any(_is_of_type(each) for each in errors)]
    if not fitting:
        return [_merged([each for errors in branches.values() for each in errors if _is_of_type(each)])]
    tag = _tag(error, fitting)
    told = [[each for each in errors if tag is not None and _fixes(each, tag)] for errors in fitting]
    meant = [errors for errors, excluded in zip(fitting, told, strict=True) if not excluded]
    if not meant:
        return [_merged([each for excluded in told for each in excluded])]
    return min(meant, key=_distance)


def _distance(errors: list[Any]) -> tuple[float, int]:
    """Say how far a value is from a branch: names that the branch has not, the less the nearer they are to one."""
    strangeness = 0.0
    for each in errors:
        known = [str(name) for name in each.schema.get("properties", {})] if unknown_names(each) else []
        for name in unknown_names(each):
            strangeness += 1 - max((SequenceMatcher(None, name, one).ratio() for one in known), default=0.0)
    return strangeness, len(errors)


def _tag(error: Any, branches: list[list[Any]]) -> str | None:
    """Return the property that tells the branches apart, when one does."""
    discriminator = error.schema.get("discriminator")
    if isinstance(discriminator, Mapping) and isinstance(discriminator.get("propertyName"), str):
        return str(discriminator["propertyName"])
    names = [{each.relative_path[0] for each in errors if _fixes(each)} for errors in branches]
    # A branch that was meant does not complain of its tag; all others do.
    for name in sorted({name for found in names for name in found}, key=str):
        if sum(name in found for found in names) >= len(branches) - 1:
            return str(name)
    return None


def _fixes(error: Any, tag: str | None = None) -> bool:
    path = error.relative_path
    return error.validator in _FIXED and len(path) == 1 and (tag is None or path[0] == tag)


def _is_of_type(error: Any) -> bool:
    return error.validator == "type" and not error.relative_path


def _merged(errors: list[Any]) -> Any:
    """Return one error for a value that no branch takes: it names what any of them would."""
    # A secret's own schema says that its value is not to be shown.
    first = next((each for each in errors if isinstance(each.schema, Mapping) and "format" in each.schema), errors[0])
    values: list[Any] = []
    for each in errors:
        given = each.validator_value
        values += [value for value in (given if isinstance(given, list) else [given]) if value not in values]
    kind = "type" if first.validator == "type" else "enum"
    return type(first)(
        first.message,
        validator=kind,
        path=first.absolute_path,
        validator_value=values,
        instance=first.instance,
        schema=first.schema,
    )
