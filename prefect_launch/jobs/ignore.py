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

from prefect_launch.core.filesystem import fail, walk
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
    return sorted(_taken(folder))


_Rules = tuple[tuple[str, GitIgnoreSpec], ...]


def _taken(top: Path) -> Iterator[str]:
    above: dict[str, _Rules] = {}
    for parent, folders, names in walk(top, onerror=fail):
        prefix = "" if parent == os.fspath(top) else f"{Path(parent).relative_to(top).as_posix()}/"
        rules = (*above.pop(prefix, ()), *((prefix, spec) for spec in _read_rules(Path(parent))))
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [
            name
            for name in folders
            if name not in (*links, *NEVER_TAKEN) and not _is_ignored(f"{prefix}{name}/", rules)
        ]
        above.update((f"{prefix}{name}/", rules) for name in folders)
        for name in (*names, *links):
            if name not in NEVER_TAKEN and not _is_ignored(f"{prefix}{name}", rules):
                yield f"{prefix}{name}"


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
