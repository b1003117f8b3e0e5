"""The in-memory server's variables."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final

from prefect_launch.errors import SpecError
from prefect_launch.testing.server_store import Calls, as_json, call

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
        if not _NAME.fullmatch(name):
            raise SpecError(f"The Prefect server refuses this: name: Variable name must be of a-z, 0-9, _, -: {name!r}")
        if len(json.dumps(value)) > _MOST_CHARS:
            raise SpecError(
                f"The Prefect server refuses this: value: Variable value must be ≤ {_MOST_CHARS} characters"
            )
        self._store.variables[name] = (as_json(value), tuple(tags))

    @call
    def delete_variable(self, name: str) -> bool:
        """Delete a variable; whether it was there."""
        return self._store.variables.pop(name, None) is not None

    @call
    def list_variables(self, tag: str) -> dict[str, Any]:
        """Return the values of the variables with a tag, by their names."""
        return {name: value for name, (value, tags) in sorted(self._store.variables.items()) if tag in tags}
