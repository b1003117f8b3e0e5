"""Input declarations: the config files, and the parts of the run's config, that a submitter may change.

A declaration applies the submitter's overrides to the file, checks the inputs against their schema, and leaves a note
of them in the run's output folder (`.launch/inputs/`), which the agent keeps. In a program that was not started by
launch it changes and writes nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefect_launch.errors import JobCodeError
from prefect_launch.inputs.atomic import write_atomically
from prefect_launch.inputs.config_files import deep_merge, find_config_file, merge_into_file, normal_path
from prefect_launch.inputs.environment import file_overrides, find_config
from prefect_launch.inputs.outputs import launched_output_dir
from prefect_launch.inputs.schema import check_values, hide_secrets, load_schema

#: Where declarations are noted, below the output folder.
DECLARATIONS = ".launch/inputs"
#: The reference's key for the run's own config, beside config files.
WANDB_CONFIG_NAME = "@wandb.config"
#: File systems end a name at 255 bytes; the rest is for the suffix and a temporary name.
_MAX_NAME_BYTES = 150


def manage_config_file(
    path: str | os.PathLike[str],
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    schema: object = None,
) -> dict[str, Any]:
    """Declare a config file as an input of this job, and apply the submitter's overrides to it, on disk.

    Call it before the file is read. `./c.json` and `c.json` are the same file.

    Args:
        path: of a .json, .yaml or .yml file, relative to the working directory and below it.
        include: dotted paths of the keys that are inputs; all when left out. `\\.` is a dot inside a key.
        exclude: dotted paths of the keys that are not; they win over `include`.
        schema: of the inputs: a JSON schema as a dict or as the path of a .json file, or a pydantic model class or
            instance.

    Returns:
        The whole content of the file as it now is.

    Raises:
        JobCodeError: a `LaunchError`, for a path that is absolute, has `..`, does not exist, leaves the working
            directory or has another suffix; for a bad include, exclude or schema; for a file that cannot be read or
            written.
        InputError: a `LaunchError`, when the inputs break the schema; the overrides are then in the file already.
    """
    name, folder = normal_path(path), Path.cwd()
    selection = (parse_paths("include", include), parse_paths("exclude", exclude))
    rules = None if schema is None else load_schema(schema)
    values = merge_into_file(find_config_file(name, folder), _overrides_of(name))
    _declare(name, values, selection, rules, where=f"the config file {name!r}")
    return values


def manage_wandb_config(
    include: Iterable[str] | None = None, exclude: Iterable[str] | None = None, schema: object = None
) -> dict[str, Any]:
    """Declare the run's config, as `load_config` gives it, as an input of this job; see `manage_config_file`.

    Returns:
        The whole config; `{}` in a program that was not started by launch, where nothing is checked.

    Raises:
        JobCodeError: for a bad include, exclude or schema, or a config that is not JSON.
        InputError: when the inputs break the schema.
    """
    selection = (parse_paths("include", include), parse_paths("exclude", exclude))
    rules = None if schema is None else load_schema(schema)
    values = find_config()
    if values is None:
        return {}
    _declare(WANDB_CONFIG_NAME, values, selection, rules, where="the run's config")
    return values


def _overrides_of(name: str) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for path, values in file_overrides().items():
        # A path that is no config file's can be no other spelling of this one; its own declaration reports it.
        if os.path.normpath(path) == name:
            if not isinstance(values, Mapping):
                raise JobCodeError(f"The overrides of {path!r} are a {type(values).__name__}; they must be a mapping.")
            overrides = deep_merge(overrides, values)
    return overrides


def _declare(
    name: str, values: dict[str, Any], selection: tuple[Any, Any], schema: dict[str, Any] | None, *, where: str
) -> None:
    whole = _json_ready(values)
    inputs = select(whole, *selection)
    if schema is not None:
        check_values(inputs, schema, where=where, whole=whole)
    folder = launched_output_dir()
    if folder is not None:
        _note(folder / DECLARATIONS, name, inputs, schema)


def _note(folder: Path, name: str, inputs: dict[str, Any], schema: dict[str, Any] | None) -> None:
    shown = inputs if schema is None else hide_secrets(inputs, schema)
    text = json.dumps({"name": name, "values": shown, "schema": schema}, indent=2, allow_nan=False)
    file = folder / f"{_file_name(name)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text + "\n")
    except OSError as error:
        raise JobCodeError(
            f"The declaration of {name!r} cannot be written to {str(file)!r}: {error.strerror}."
            " Make the output folder writable, or free space."
        ) from None


def _file_name(name: str) -> str:
    # Here, since these two would be a fifth of the import time of this package.
    from hashlib import sha256
    from urllib.parse import quote

    safe = quote(name, safe="@")
    return safe if len(safe) <= _MAX_NAME_BYTES else f"{safe[:80]}-{sha256(name.encode()).hexdigest()[:32]}"


def _json_ready(value: Any) -> Any:
    """Copy what YAML can hold and JSON cannot (dates, NaN, keys that are numbers) to what JSON has for it."""
    if isinstance(value, dict):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


# --- include and exclude ---

KeyPath = tuple[str, ...]


def parse_paths(name: str, paths: Iterable[str] | None) -> tuple[KeyPath, ...]:
    """Read a list of dotted paths.

    Raises:
        JobCodeError: when it is one text rather than a list, holds something that is not text, an empty key, or a
            backslash before anything but a dot.
    """
    if paths is None:
        return ()
    if isinstance(paths, str) or not isinstance(paths, Iterable):
        raise JobCodeError(f"{name} must be a list of paths such as ['trainer.lr'], not {paths!r}.")
    return tuple(split_path(name, path) for path in paths)


def split_path(name: str, path: object) -> KeyPath:
    """Cut one dotted path into its keys.

    Raises:
        JobCodeError: as `parse_paths`.
    """
    if not isinstance(path, str):
        raise JobCodeError(f"A path in {name} must be text such as 'trainer.lr', not {type(path).__name__} {path!r}.")
    keys = [""]
    characters = iter(path)
    for character in characters:
        if character == ".":
            keys.append("")
        elif character != "\\":
            keys[-1] += character
        elif next(characters, None) == ".":
            keys[-1] += "."
        else:
            raise JobCodeError(
                f"Invalid path {path!r} in {name}: a backslash must stand before the dot that it escapes ('\\.')."
            )
    if not all(keys):
        raise JobCodeError(f"Invalid path {path!r} in {name}: it has an empty key. Write a dot inside a key as '\\.'.")
    return tuple(keys)


def select(values: Mapping[str, Any], include: Iterable[KeyPath], exclude: Iterable[KeyPath]) -> dict[str, Any]:
    """Return the part of a nested config that is included and not excluded.

    Args:
        values: the config; it is not changed.
        include: paths to keep; an empty list keeps all. A missing path is skipped.
        exclude: paths to leave out.
    """
    wanted = tuple(include)
    kept = _keep(values, wanted) if wanted else dict(values)
    return _drop(kept, tuple(exclude))


def _keep(values: Mapping[str, Any], paths: tuple[KeyPath, ...]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        below = tuple(path[1:] for path in paths if path[0] == str(key))
        if () in below:
            kept[key] = value
        elif below and isinstance(value, Mapping) and (inner := _keep(value, below)):
            kept[key] = inner
    return kept


def _drop(values: Mapping[str, Any], paths: tuple[KeyPath, ...]) -> dict[str, Any]:
    left = {}
    for key, value in values.items():
        below = tuple(path[1:] for path in paths if path[0] == str(key))
        if () not in below:
            left[key] = _drop(value, below) if below and isinstance(value, Mapping) else value
    return left
