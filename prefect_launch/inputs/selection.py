"""Which values of a config are inputs: the `include` and `exclude` of `manage_config_file` and `manage_wandb_config`.

A path names a key with dots between the levels, such as `trainer.lr`; a dot that belongs to a key is written `\\.`.
Exclude wins over include; no include means all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefect_launch.errors import JobCodeError

KeyPath = tuple[str, ...]


def parse_paths(name: str, paths: Iterable[str] | None) -> tuple[KeyPath, ...]:
    """Read a list of dotted paths.

    Args:
        name: the argument's name, for the message: "include" or "exclude".
        paths: the paths; `None` is none of them.

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
        include: paths to keep; none of them keeps all. A path that is not there is passed over.
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
