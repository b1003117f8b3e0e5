"""Input schema that a job's code declares: loading it, checking values, and explaining errors.

A schema is a JSON schema (a dict, or the path of a .json file) or a pydantic model. The reference's own additions are
understood: `required: true` on a property, and `format: "secret"`, whose value is never shown or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from prefect_launch.errors import InputError, JobCodeError, unknown_name

_HIDDEN = "***"
_SECRET_FORMATS = ("secret", "password")
_SHOWN_VALUE_CHARS = 80
_BRANCHES = ("allOf", "anyOf", "oneOf")
#: Keywords whose value is one schema, a list of schemas, or a mapping of names to schemas.
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_MANY = (*_BRANCHES, "prefixItems")
_NAMED = ("properties", "patternProperties", "dependentSchemas")


def load_schema(schema: object) -> dict[str, Any]:
    """Return a JSON schema of whatever stands for one.

    Args:
        schema: a dict, a pydantic model class or instance, or the path of a JSON file.

    Raises:
        JobCodeError: when it is none of these, or no valid schema.
    """
    loaded = _as_dict(schema)
    normal: dict[str, Any] = lift_required(loaded)
    jsonschema = _jsonschema()
    try:
        jsonschema.validators.validator_for(normal, jsonschema.Draft202012Validator).check_schema(normal)
    except jsonschema.SchemaError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "its top level"
        raise JobCodeError(f"The schema is not a valid JSON schema, at {where}: {error.message}") from None
    return normal


def check_values(values: Mapping[str, Any], schema: Mapping[str, Any], *, where: str, whole: Mapping[str, Any]) -> None:
    """Refuse inputs that break their schema.

    Args:
        values: the inputs, JSON-ready: what `include` and `exclude` left.
        schema: as `load_schema` returns it.
        where: where they come from, for the message, such as "the config file 'c.json'".
        whole: the config before `include` and `exclude`; a required property that was only left out by them is not
            missed.

    Raises:
        InputError: naming the field, its value (unless it is a secret) and the rule.
    """
    jsonschema = _jsonschema()
    from referencing.exceptions import Unresolvable  # jsonschema's own dependency

    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    try:
        faults = [error for error in causes(validator.iter_errors(values)) if not _was_left_out(error, whole)]
    except Unresolvable as error:
        raise JobCodeError(
            f"The schema refers to something that it does not hold: {error}. Put it under '$defs'."
        ) from None
    except RecursionError:
        raise JobCodeError("The schema refers to itself without end. Correct its '$ref'.") from None
    worst = worst_cause(faults)
    if worst is not None:
        raise InputError(
            f"Invalid input in {where}: {_describe(worst)}. Correct it in the launch config, or correct the schema."
        )


def hide_secrets(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a copy of inputs in which what the schema calls a secret reads `***`."""
    return _hide(value, [schema], schema)


def _as_dict(schema: object) -> dict[str, Any]:
    if isinstance(schema, Mapping):
        return dict(schema)
    make = getattr(schema, "model_json_schema", None)
    if callable(make):
        made: dict[str, Any] = make()
        return made
    if isinstance(schema, (str, os.PathLike)):
        return _read_schema_file(os.fspath(schema))
    raise JobCodeError(
        "schema must be a dict, Pydantic model instance, or Pydantic model class (or the path of a JSON-schema file),"
        f" not {type(schema).__name__} {schema!r}."
    )


def _read_schema_file(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            loaded = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise JobCodeError(f"The schema file {path!r} cannot be read: {error}. Name a JSON-schema file.") from None
    if not isinstance(loaded, dict):
        raise JobCodeError(f"The schema file {path!r} holds a {type(loaded).__name__}, and must hold an object.")
    return loaded


def map_subschemas(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a JSON schema with a change made to each schema directly in it; definitions stay."""
    result = dict(schema)
    for key, value in schema.items():
        if key in _ONE and isinstance(value, Mapping):
            result[key] = change(value)
        elif key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: change(each) for name, each in value.items()}
        elif key in _MANY and isinstance(value, list):
            result[key] = [change(each) for each in value]
    return result


def lift_required(schema: Any) -> Any:
    """Move the reference's `required: true` on a property to its parent's list, where JSON schema wants it."""
    if not isinstance(schema, Mapping):
        return schema
    lifted = map_subschemas(schema, lift_required)
    for key in ("$defs", "definitions"):
        if isinstance(lifted.get(key), Mapping):
            lifted[key] = {name: lift_required(each) for name, each in lifted[key].items()}
    properties, given = lifted.get("properties"), lifted.get("required")
    if isinstance(properties, Mapping):
        marked = [
            name for name, part in properties.items() if isinstance(part, Mapping) and part.get("required") is True
        ]
        lifted["properties"] = {name: _without_mark(part) for name, part in properties.items()}
        if marked and (given is None or isinstance(given, list)):
            lifted["required"] = sorted({*(given or ()), *marked})
    return lifted


def _without_mark(part: Any) -> Any:
    if isinstance(part, Mapping) and isinstance(part.get("required"), bool):
        return {key: value for key, value in part.items() if key != "required"}
    return part


def _was_left_out(error: Any, whole: Mapping[str, Any]) -> bool:
    if error.validator != "required":
        return False
    there: Any = whole
    for key in error.absolute_path:
        there = there[key]
    return all(name in there for name in error.validator_value if name not in error.instance)


def _describe(error: Any) -> str:
    """Say what is wrong without jsonschema's own text where that would quote a whole object, secrets included."""
    field = ".".join(str(part) for part in error.absolute_path)
    at = f" at {field!r}" if field else ""
    for name in unknown_names(error):
        return str(unknown_name("property", name, error.schema.get("properties", {}), where=at)).rstrip(".")
    if error.validator in ("required", "additionalProperties", "dependentRequired", "unevaluatedProperties"):
        return f"{error.message}{at}"
    name = repr(field) if field else "the config"
    rule = json.dumps(error.validator_value, default=str)
    return f"{name} is {_shown(error)}, which breaks the rule {error.validator}: {rule[:400]}"


def _shown(error: Any) -> str:
    if isinstance(error.instance, (dict, list)):
        count = len(error.instance)
        return f"a {'mapping' if isinstance(error.instance, dict) else 'list'} of {count} item{'s' * (count != 1)}"
    if isinstance(error.schema, dict) and _is_secret(error.schema):
        return "a secret value"
    text = repr(error.instance)
    return text if len(text) <= _SHOWN_VALUE_CHARS else text[:_SHOWN_VALUE_CHARS] + "…"


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return schema.get("format") in _SECRET_FORMATS


def _hide(value: Any, schemas: list[Any], root: Mapping[str, Any]) -> Any:
    branches = [branch for schema in schemas for branch in _branches(schema, root, ())]
    if value is not None and any(_is_secret(branch) for branch in branches):
        return _HIDDEN
    if isinstance(value, dict):
        return {key: _hide(item, _below(branches, "properties", key), root) for key, item in value.items()}
    if isinstance(value, list):
        items = [branch["items"] for branch in branches if "items" in branch]
        return [_hide(item, items, root) for item in value]
    return value


def _below(branches: list[Mapping[str, Any]], keyword: str, key: str) -> list[Any]:
    return [branch[keyword][key] for branch in branches if key in branch.get(keyword, {})]


def _branches(schema: Any, root: Mapping[str, Any], seen: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and all that may apply with it: what it refers to, and the members of allOf, anyOf, oneOf."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        yield from _branches(_referred(reference, root), root, (*seen, reference))
    for keyword in _BRANCHES:
        for branch in schema.get(keyword, ()):
            yield from _branches(branch, root, seen)


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    target: Any = root if reference.startswith("#") else None
    for part in reference.lstrip("#").strip("/").split("/"):
        if part:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
    return target


def _jsonschema() -> Any:
    try:
        import jsonschema  # only when a schema is given: 100 ms, and not every job has it
        import jsonschema.validators
    except ImportError:
        raise JobCodeError(
            "Checking inputs against a schema needs jsonschema, which is not installed."
            " Add 'jsonschema' to the job's requirements, or leave the schema out."
        ) from None
    return jsonschema


# --- causes of an error in a union (`anyOf`, `oneOf`) ---

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
    excluded = [[each for each in errors if tag is not None and _fixes(each, tag)] for errors in fitting]
    meant = [errors for errors, ruled_out in zip(fitting, excluded, strict=True) if not ruled_out]
    if not meant:
        return [_merged([each for ruled_out in excluded for each in ruled_out])]
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
