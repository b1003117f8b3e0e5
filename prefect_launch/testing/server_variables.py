"""The in-memory server's variables."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

from prefect_launch.errors import SpecError
from prefect_launch.testing.server_store import Calls, Watcher, as_json, call

_NAME: Final = re.compile(r"[a-z0-9_-]+")
_MOST_CHARS: Final = 5_000


class VariableTwin(Calls):
    """Calls about variables."""

    @call
    def read_variable(self, name: str) -> Any:
        """Read a variable's value; `None` when there is none."""
        return self._store.variables.get(name, (None, ()))[0]

    @call
    def write_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> None:
        """Set a variable, made when it is not there.

        Raises:
            SpecError: for a bad name, or a value that is too long.
        """
        self._keep(name, value, tags)

    def _keep(self, name: str, value: Any, tags: Collection[str]) -> None:
        if not _NAME.fullmatch(name):
            raise SpecError(f"The Prefect server refuses this: name: Variable name must be of a-z, 0-9, _, -: {name!r}")
        if len(json.dumps(value)) > _MOST_CHARS:
            raise SpecError(
                f"The Prefect server refuses this: value: Variable value must be ≤ {_MOST_CHARS} characters"
            )
        self._store.variables[name] = (as_json(value), tuple(tags))
        self._tell(name)

    @call
    def create_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> bool:
        """Make a variable; false when there is one of that name, which stays as it is."""
        if name in self._store.variables:
            return False
        self._keep(name, value, tags)
        return True

    @call
    def delete_variable(self, name: str) -> bool:
        """Delete a variable; whether it was there."""
        self._tell(name)
        return self._store.variables.pop(name, None) is not None

    def watch_variable(self, name: str) -> AsyncIterator[str]:
        """Yield an empty text, then the variable's name whenever it is set or deleted. Ends when the server goes down.

        Raises:
            ServerUnavailableError: at the first step, when the server is down.
        """
        watcher = Watcher(variable=name)
        with self._store.lock:
            self._store.watchers.add(watcher)
        return self._told(watcher)

    def _tell(self, name: str) -> None:
        for watcher in list(self._store.watchers):
            if watcher.variable == name:
                watcher.tell(name)

    @call
    def list_variables(self, tag: str) -> dict[str, Any]:
        """Return the values of the variables with a tag, by their names."""
        return {name: value for name, (value, tags) in sorted(self._store.variables.items()) if tag in tags}
