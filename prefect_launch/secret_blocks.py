"""Secrets: Prefect `Secret` blocks that a spec or a queue names, read on the agent when a run starts and nowhere
before.

Only `{{ prefect.blocks.secret.<name> }}` is filled in. What is read goes into the run's environment and options; it is
never written to the database, a log, a command line or a file that stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.errors import NotFoundError

_SECRET: Final = re.compile(r"\{\{\s*prefect\.blocks\.secret\.([a-z0-9-]+)\s*\}\}")


async def resolve_secrets(value: Any) -> Any:
    """Return a copy of nested mappings and lists with the secrets that their texts name filled in.

    Raises:
        NotFoundError: when there is no such block.
    """
    names = set(_names(value))
    if not names:
        return value
    known = {name: await read_secret(name) for name in names}
    return _fill(value, known)


async def read_secret(name: str) -> str:
    """Return what a Secret block holds.

    Raises:
        NotFoundError: when there is no such block.
    """
    from prefect.blocks.system import Secret

    try:
        block: Any = await Secret.aload(name)
    except ValueError:
        raise NotFoundError(
            f"There is no Secret block {name!r} on the Prefect server. Make it in the UI (Blocks, Secret) or with"
            f" Secret(value=…).save({name!r})."
        ) from None
    return str(block.get())


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in _names(item)]
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _names(item)]
    return _SECRET.findall(value) if isinstance(value, str) else []


def _fill(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(item, known) for item in value]
    return _SECRET.sub(lambda match: known[match[1]], value) if isinstance(value, str) else value
