"""A job's input schema: read from where people keep it, and held against the inputs of a run.

A schema is given as plain data, a JSON or YAML file, a pydantic class or instance, or `module:Class`. What is stored
with the job is its plain form (`prefect_launch.jobs.plain_schema`). Inputs come back with the defaults filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import yaml
from anyio import to_thread
from jsonschema import ValidationError
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from prefect_launch.errors import InputError, SpecError, clause, unknown_name
from prefect_launch.inputs.faults import unknown_names, worst_cause
from prefect_launch.jobs.plain_schema import Schema, plain_schema, validator
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
        missing = error.message.split("'")[1] if "'" in error.message else error.message
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
    "minLength": "it must have at least {limit} characters",
    "maxLength": "it must have at most {limit} characters",
    "pattern": "it must match the pattern {limit!r}",
    "format": "it must be a {limit}",
    "minItems": "it must have at least {limit} items",
    "maxItems": "it must have at most {limit} items",
    "uniqueItems": "its items must differ",
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
