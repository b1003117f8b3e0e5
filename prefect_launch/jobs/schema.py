"""Input schema of a job: loading it, making it plain, and checking the inputs of a run against it.

A schema is given as plain data, a JSON or YAML file, a pydantic class or instance, or `module:Class`. What is stored
with the job is its plain form (`prefect_launch.jobs.schema`). Inputs come back with the defaults filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, cast

import yaml
from anyio import to_thread
from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from prefect_launch.core.validation import MAX_INTEGER, MIN_INTEGER, check_server_json
from prefect_launch.errors import InputError, SpecError, clause, unknown_name
from prefect_launch.inputs.schema import lift_required, map_subschemas, unknown_names, worst_cause
from prefect_launch.jobs.schema_class import read_schema_class

#: What a schema can be given as: a schema, a pydantic class or instance, a file's path, or `module:Class`.
SchemaSource = Mapping[str, Any] | type[BaseModel] | BaseModel | Path | str

_FILE_ENDINGS: Final = (".json", ".yaml", ".yml")


async def load_schema(source: SchemaSource, *, folder: Path | None = None) -> Schema:
    """Return the plain input schema of a job.

    Args:
        source: a schema; a pydantic class or instance; the path of a JSON or YAML file; or `module:Class`, a pydantic
            class or a dict, which is imported in a process of its own.
        folder: where `module:Class` is imported from and relative paths start: the job's code. Default: here.

    Raises:
        SpecError: when it cannot be read, is no valid schema of an object, refers to itself or to elsewhere, or a
            default breaks it.
    """
    if isinstance(source, (str, Path)):
        raw, name = await _read(str(source), folder)
    elif isinstance(source, Mapping):
        raw, name = dict(source), "the schema"
    elif isinstance(source, BaseModel) or (isinstance(source, type) and issubclass(source, BaseModel)):
        raw, name = _of_model(source)
    else:
        raise SpecError(
            f"A job's schema must be a JSON schema (a dict, or a file's path), a pydantic class or instance, or"
            f" the text 'module:Class'; not {type(source).__name__} {source!r}."
        )
    return plain_schema(raw, name=name)


def check_inputs(schema: Mapping[str, Any] | None, run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a run, with the schema's defaults for what was not given.

    Args:
        schema: the job's plain schema (`Job.schema`); `None` allows everything.
        run_config: the inputs. They are not changed.

    Raises:
        InputError: naming the input, its value and the rule that it breaks; for an unknown one, the nearest right name.
    """
    inputs = deepcopy(dict(run_config))
    if schema is None:
        return inputs
    filled = _filled(schema, inputs)
    error = worst_cause(validator(schema).iter_errors(filled))
    if error is not None:
        raise _readable(error)
    return filled


def _of_model(source: BaseModel | type[BaseModel]) -> tuple[Schema, str]:
    model = source if isinstance(source, type) else type(source)
    try:
        return model.model_json_schema(), f"the schema of {model.__name__}"
    except PydanticInvalidForJsonSchema as error:
        raise SpecError(
            f"The class {model.__name__} has no JSON schema: {clause(error)}. Use plain types for its fields."
        ) from None


async def _read(source: str, folder: Path | None) -> tuple[object, str]:
    base = folder or Path()
    if source.endswith(_FILE_ENDINGS):
        return await to_thread.run_sync(_read_file, base / source, Path(source)), f"the schema file {source}"
    module, colon, attribute = source.partition(":")
    if not colon or not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise SpecError(
            f"The schema {source!r} is neither a file ({', '.join(_FILE_ENDINGS)}) nor of the form module:Class,"
            " such as 'train:Inputs'."
        )
    return await read_schema_class(module, attribute, folder=base), f"the schema of {source}"


def _read_file(beside_code: Path, as_given: Path) -> object:
    path = next((path for path in (as_given, beside_code) if path.is_file()), None)
    if path is None:
        raise SpecError(f"The schema file {str(as_given)!r} does not exist, here or in {beside_code.parent}.")
    try:
        content = path.read_bytes()  # Of bytes, both tell the encoding, by a byte-order mark too.
        value: object = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"The schema file {str(path)!r} cannot be read: {error}.") from None
    return value


# --- inputs ---


def _filled(schema: Mapping[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    result = dict(value)
    for key, each in _properties(schema).items():
        if key not in result and "default" in each:
            result[key] = deepcopy(each["default"])
        if isinstance(result.get(key), dict):
            result[key] = _filled(each, result[key])
        elif key not in result and "properties" in each:
            inner = _filled(each, {})
            # A group that nobody gave comes into being only when its defaults make it whole.
            if inner and set(each.get("required", ())) <= inner.keys():
                result[key] = inner
    return result


def _properties(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    properties = schema.get("properties", {})
    return {key: each for key, each in properties.items() if isinstance(each, Mapping)}


def _readable(error: ValidationError) -> InputError:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    rule, limit = str(error.validator), error.validator_value
    for name in unknown_names(error):
        inside = f"{where}." if where else ""
        closed = error.schema if isinstance(error.schema, Mapping) else {}
        known = [f"{inside}{key}" for key in _properties(closed)]
        return InputError(str(unknown_name("input", f"{inside}{name}", known)))
    if rule == "required":
        missing = next(
            name for name in cast("list[str]", limit) if name not in cast("Mapping[str, object]", error.instance)
        )
        name = f"{where}.{missing}" if where else missing
        return InputError(f"The input {name!r} is required and has no default. Give it a value.")
    described = _RULES.get(rule)
    words = " or ".join(map(str, limit)) if rule == "type" and isinstance(limit, list) else limit
    text = described.format(limit=words) if described else error.message
    return InputError(f"The input {where or 'config'!r} is {_short(error.instance)}: {text}.")


_RULES = {
    "type": "it must be of type {limit}",
    "enum": "it must be one of {limit}",
    "const": "it must be {limit!r}",
    "minimum": "it must be at least {limit}",
    "maximum": "it must be at most {limit}",
    "exclusiveMinimum": "it must be greater than {limit}",
    "exclusiveMaximum": "it must be less than {limit}",
    "multipleOf": "it must be a multiple of {limit}",
    "minLength": "it must have {limit} or more characters",
    "maxLength": "it must have {limit} or fewer characters",
    "pattern": "it must match the pattern {limit!r}",
    "format": "it must be a {limit}",
    "minItems": "it must have {limit} or more items",
    "maxItems": "it must have {limit} or fewer items",
    "uniqueItems": "its items must differ",
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


# --- plain schemas: no references, closed to unknown inputs, checked ---

Schema = dict[str, Any]

#: Keywords whose schema a value need not obey: a bound in one would change what the whole schema lets through.
_CONDITIONS: Final = ("contains", "not", "if", "propertyNames")
#: Where a form's schema defines any value that the server can send.
_ANY_VALUE: Final = "anyValue"
#: An object with one of these is described in parts: closing a part would refuse what another part allows.
_PARTS: Final = frozenset({"allOf", "anyOf", "oneOf", "if", "then", "else", "patternProperties", "dependentSchemas"})


def plain_schema(raw: object, *, name: str = "the schema") -> Schema:
    """Return a schema without references, closed to unknown inputs, and checked.

    Raises:
        SpecError: as `load_schema` does.
    """
    if not isinstance(raw, Mapping):
        raise SpecError(f"{name} must be a JSON schema, a mapping; it is {type(raw).__name__}.")
    check_server_json(raw, name)
    root = lift_required(json.loads(json.dumps(dict(raw))))
    schema: Schema = _closed(_lifted(_inlined(root, root, (), name)))
    schema.pop("$defs", None)
    schema.pop("definitions", None)
    schema.setdefault("type", "object")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "/".join(str(part) for part in error.path) or "its top"
        raise SpecError(f"{name} is no valid JSON schema: at {place}: {error.message}. Correct it there.") from None
    if schema["type"] != "object":
        raise SpecError(
            f"{name} must describe an object, whose properties are the job's inputs; not {schema['type']!r}."
        )
    _check_defaults(schema, name, "")
    return schema


def with_positions(schema: Mapping[str, Any]) -> Schema:
    """Return a schema whose inputs know their place (Prefect's `position`): a stored document sorts its keys."""
    inputs = schema.get("properties") or {}
    placed = {name: {"position": place, **_as_schema(each)} for place, (name, each) in enumerate(inputs.items())}
    return {**schema, "properties": placed} if placed else dict(schema)


def inputs_in_order(schema: Mapping[str, Any] | None) -> dict[str, Schema]:
    """Return the inputs of a schema in the order of their `position`, those without one last."""
    inputs = {name: _as_schema(each) for name, each in ((schema or {}).get("properties") or {}).items()}
    return dict(sorted(inputs.items(), key=lambda pair: pair[1].get("position", len(inputs))))


def within_64_bits(schema: Any) -> Any:
    """Return a schema whose numbers have bounds, at any depth: its own, or those of what the Prefect server can send.

    A fraction is bounded, too: a JSON schema cannot tell `1e20` from an integer. Where the schema says nothing of a
    value, it refers to a definition of `value_definitions`, which the whole schema must have.
    """
    if not isinstance(schema, Mapping):
        return dict(_reference(_ANY_VALUE)) if schema else schema
    result = {**map_subschemas(schema, within_64_bits), **{key: schema[key] for key in _CONDITIONS if key in schema}}
    if schema.keys() & {
        "enum",
        "const",
        "allOf",
        "anyOf",
        "oneOf",
    }:  # Its values are known, or bounded by each of its branches.
        return result
    if _may_be(schema, "integer", "number"):
        if not schema.keys() & {"minimum", "exclusiveMinimum"}:
            result["minimum"] = MIN_INTEGER
        if not schema.keys() & {"maximum", "exclusiveMaximum"}:
            result["maximum"] = MAX_INTEGER
    if _may_be(schema, "array"):
        result["items"] = within_64_bits(schema.get("items", True))
    if _may_be(schema, "object"):
        rest = "unevaluatedProperties" if "unevaluatedProperties" in schema else "additionalProperties"
        result[rest] = within_64_bits(schema.get(rest, True))
    return result


def value_definitions(**texts: Mapping[str, Any]) -> dict[str, Schema]:
    """Return the `definitions` of a form's schema: values of any depth whose numbers the Prefect server can send.

    Args:
        texts: rules for all texts in a value, such as a `pattern`, by the name of another such definition.
    """
    return {name: _any_value(name, rules) for name, rules in {_ANY_VALUE: {}, **texts}.items()}


def _any_value(name: str, rules: Mapping[str, Any]) -> Schema:
    # Without a type, each of these holds for the values of one type: texts, numbers, lists, mappings.
    inside = _reference(name)
    return {**rules, "minimum": MIN_INTEGER, "maximum": MAX_INTEGER, "items": inside, "additionalProperties": inside}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _may_be(schema: Mapping[str, Any], *kinds: str) -> bool:
    """Whether a schema lets values of one of some types through."""
    of = schema.get("type", kinds)
    return bool({of} & {*kinds} if isinstance(of, str) else {*of} & {*kinds})


def _as_schema(schema: Any) -> Schema:
    """Return a property's schema as a mapping: JSON schema lets `true` and `false` stand for any and none."""
    return dict(schema) if isinstance(schema, Mapping) else ({} if schema else {"not": {}})


def _inlined(schema: Any, root: Mapping[str, Any], seen: tuple[str, ...], name: str) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    reference = schema.get("$ref", schema.get("$dynamicRef"))
    if reference is None:
        return map_subschemas(schema, lambda each: _inlined(each, root, seen, name))
    if reference in seen:
        raise SpecError(
            f"{name} refers to itself through {reference!r}; inputs of any depth cannot be shown as a form."
        )
    target = _target(reference, root, name)
    beside = {key: value for key, value in schema.items() if key not in ("$ref", "$dynamicRef")}
    return {**_inlined(target, root, (*seen, reference), name), **beside}


def _target(reference: object, root: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    parts = str(reference).split("/")
    place: Any = root
    for part in parts[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        place = place.get(key) if isinstance(place, Mapping) else None
    if parts[0] != "#" or not isinstance(place, Mapping):
        raise SpecError(f"{name} refers to {reference!r}, which is not in it. Put the definition into '$defs'.")
    return place


def _lifted(schema: Any) -> Any:
    """Put the content of an `allOf` of one in its place: pydantic writes such for a field with a default."""
    if not isinstance(schema, Mapping):
        return schema
    result = map_subschemas(schema, _lifted)
    parts = result.get("allOf")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping):
        result = {**parts[0], **{key: value for key, value in result.items() if key != "allOf"}}
    return result


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    in_parts = bool(_PARTS & schema.keys()) and "properties" in schema
    result = dict(schema) if in_parts or "allOf" in schema else map_subschemas(schema, _closed)
    if "properties" in result and not in_parts:
        result.setdefault("additionalProperties", "unevaluatedProperties" in result)
    return result


def _check_defaults(schema: Any, name: str, path: str) -> None:
    if not isinstance(schema, Mapping):
        return
    if "default" in schema and path:
        for error in validator(schema).iter_errors(schema["default"]):
            raise SpecError(
                f"{name}: the default of {path!r}, {schema['default']!r}, breaks its own rule: {error.message}."
                " Correct the default or the rule."
            )
    for key, each in (schema.get("properties") or {}).items():
        _check_defaults(each, name, f"{path}.{key}" if path else key)


def validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Return what checks values against a plain schema, formats such as `date` and `uuid` included."""
    return Draft202012Validator(dict(schema), format_checker=FormatChecker())
