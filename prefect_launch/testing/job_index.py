"""The in-memory fake of `prefect_launch.jobs.index.ServerJobIndex`, with its rules and its refusals.

It yields to the event loop at every call, so that two writers really interleave, and counts its calls for tests that
say what a lookup may cost.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import anyio.lowlevel

from prefect_launch.jobs.index import check_entry


class InMemoryJobIndex:
    """A job index that lives as long as the object.

    Attributes:
        calls: how often each method was called.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[dict[str, Any], frozenset[str]]] = {}
        self.calls: Counter[str] = Counter()

    async def create(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        """Store a new value; `False` when the name is taken."""
        await self._called("create")
        check_entry(name, value)
        if name in self._entries:
            return False
        self._entries[name] = (copy.deepcopy(dict(value)), frozenset(tags))
        return True

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return the value of that name, if there is one."""
        await self._called("read")
        entry = self._entries.get(name)
        return copy.deepcopy(entry[0]) if entry else None

    async def write(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> None:
        """Store a value, whether the name is taken or not."""
        await self._called("write")
        check_entry(name, value)
        self._entries[name] = (copy.deepcopy(dict(value)), frozenset(tags))

    async def delete(self, name: str) -> bool:
        """Remove a value; `False` when there was none."""
        await self._called("delete")
        return self._entries.pop(name, None) is not None

    async def find(self, tags: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        """List the names and values that have all these tags, by name."""
        await self._called("find")
        wanted = frozenset(tags)
        return [(name, copy.deepcopy(value)) for name, (value, own) in sorted(self._entries.items()) if wanted <= own]

    async def _called(self, method: str) -> None:
        self.calls[method] += 1
        await anyio.lowlevel.checkpoint()
