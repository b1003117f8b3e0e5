"""Which files of a folder belong to a code job: `.gitignore` and `.launchignore`, nested ones too, as git reads them.

A `.launchignore` is read after the `.gitignore` beside it, so `!weights.bin` in it brings back what git leaves out.
Never taken: `.git`, `wandb`, `__pycache__`, `.venv`. As in git, what lies in a folder that is left out stays out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from prefect_launch.errors import SourceError

IGNORE_FILES: Final = (".gitignore", ".launchignore")
#: Repository, run data, caches and environments: never code, often huge, sometimes secret.
NEVER_TAKEN: Final = frozenset({".git", "wandb", "__pycache__", ".venv"})


def list_code(folder: Path) -> list[str]:
    """List what of a folder belongs to its code: files and links, as sorted relative POSIX paths.

    Args:
        folder: the root of the code.

    Raises:
        SourceError: when an ignore file cannot be read.
    """
    return sorted(_walk(folder, "", ()))


_Rules = tuple[tuple[str, GitIgnoreSpec], ...]


def _walk(folder: Path, prefix: str, above: _Rules) -> Iterator[str]:
    rules = (*above, *((prefix, spec) for spec in _read_rules(folder)))
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = f"{prefix}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name in NEVER_TAKEN or _is_ignored(f"{path}/" if is_folder else path, rules):
            continue
        if is_folder:
            yield from _walk(folder / entry.name, f"{path}/", rules)
        else:
            yield path


def _read_rules(folder: Path) -> Iterator[GitIgnoreSpec]:
    for name in IGNORE_FILES:
        path = folder / name
        if path.is_file():
            try:
                yield GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig").splitlines())
            except (UnicodeDecodeError, ValueError) as error:
                raise SourceError(
                    f"The ignore file {path} cannot be read: {error}. Write patterns as UTF-8 text."
                ) from error


def _is_ignored(path: str, rules: _Rules) -> bool:
    """Ask the rules from the deepest up; the first that says anything decides."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path.removeprefix(prefix)).include
        if verdict is not None:
            return verdict
    return False
