"""Config files of a job: which path is one, how it is read, merged with overrides, and written back.

JSON is written with an indent of two spaces, YAML in block style in the file's own order (its comments are lost, as
they are with the reference). The agent's side uses the same functions, so that a file is changed in one way only.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_launch.errors import JobCodeError
from prefect_launch.inputs.atomic import write_atomically

_YAML_SUFFIXES = (".yaml", ".yml")
_SUFFIXES = (".json", *_YAML_SUFFIXES)


def normal_path(path: object) -> str:
    """Return the one spelling of a config file's path: `./a//c.json` and `a/c.json` are the same file.

    Args:
        path: relative to the job's working directory, with `/` between its parts.

    Raises:
        JobCodeError: when it is not text, empty, absolute, has `..` as a part, a control character, or a suffix other
            than .json, .yaml and .yml.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(text, str) or not text:
        raise JobCodeError(f"A config file must be named by its relative path, not {path!r}.")
    rule = None
    if posixpath.isabs(text):
        rule = "it is absolute; use a path relative to the job's working directory"
    elif ".." in text.split("/"):
        rule = "it leaves its folder with '..'; use a path below the job's working directory"
    elif not text.isprintable():
        rule = "it holds a control character"
    elif posixpath.splitext(text)[1] not in _SUFFIXES:
        rule = f"only {', '.join(_SUFFIXES)} files can be config files"
    if rule:
        raise JobCodeError(f"Invalid config file path {text!r}: {rule}.")
    return posixpath.normpath(text)


def find_config_file(path: object, folder: Path) -> Path:
    """Return the real path of a config file below a folder.

    Raises:
        JobCodeError: as `normal_path`, and when there is no such file, or it is a link to outside of the folder.
    """
    name = normal_path(path)
    root = folder.resolve()
    try:
        found = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise JobCodeError(f"The config file {name!r} does not exist in {str(root)!r}. Check the path.") from None
    if not found.is_file():
        raise JobCodeError(f"The config file {name!r} is not a file. Name the file itself.")
    if root not in found.parents:
        raise JobCodeError(
            f"The config file {name!r} is a link that leaves the job's working directory (to {str(found)!r})."
            " Copy the file there before you declare it."
        )
    return found


def read_config_file(file: Path) -> dict[str, Any]:
    """Return a config file's content; an empty YAML file is `{}`.

    Raises:
        JobCodeError: when it cannot be read, is not JSON or YAML, or holds something other than a mapping.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = _load(file, text)
    except (OSError, ValueError, RecursionError) as error:
        raise JobCodeError(f"The config file {file.name!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise JobCodeError(f"The config file {file.name!r} holds a {type(values).__name__}, and must hold a mapping.")
    return values


def merge_into_file(file: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge overrides into a config file on disk, and return what it then holds.

    A file that has these values already is not written: merging twice is merging once.

    Raises:
        JobCodeError: when the file cannot be read or written, or the overrides are no mapping.
    """
    if not isinstance(overrides, Mapping):
        raise JobCodeError(f"The overrides of {file.name!r} are a {type(overrides).__name__}; they must be a mapping.")
    values = read_config_file(file)
    merged = deep_merge(values, overrides)
    # Compared as text, since `True == 1` in Python and not in a config.
    text = _dump(file, merged)
    if text != _dump(file, values):
        try:
            write_atomically(file, text)
        except OSError as error:
            raise JobCodeError(
                f"The overrides of {file.name!r} cannot be written to {str(file)!r}: {error.strerror}."
                " The file's folder must be writable for the job."
            ) from None
    return merged


def deep_merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `overrides` over them: mappings key by key; all else, lists too, is replaced."""
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _load(file: Path, text: str) -> Any:
    if file.suffix not in _YAML_SUFFIXES:
        return json.loads(text)
    yaml = _yaml(file)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from None
    return {} if values is None else values


def _dump(file: Path, values: Mapping[str, Any]) -> str:
    if file.suffix not in _YAML_SUFFIXES:
        return json.dumps(values, indent=2) + "\n"
    text: str = _yaml(file).safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _yaml(file: Path) -> Any:
    try:
        import yaml  # only for YAML files: 20 ms, and not every job has it
    except ImportError:
        raise JobCodeError(
            f"The config file {file.name!r} needs PyYAML, which is not installed."
            " Add 'pyyaml' to the job's requirements."
        ) from None
    return yaml
