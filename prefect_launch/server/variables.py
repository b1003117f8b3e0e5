"""The server's variables: small values by name, where an agent posts how it is and reads what it is told."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from prefect_launch.server.rest import Rest, is_taken, raise_refusal

_PAGE: Final = 200


class VariableCalls:
    """Calls about variables; a name is of `[a-z0-9_-]`, a value JSON of at most 5 000 characters."""

    _rest: Rest

    async def read_variable(self, name: str) -> Any:
        """Read a variable's value; `None` when there is none."""
        found = await self._rest.get("GET", f"/variables/name/{name}")
        return None if found is None else found["value"]

    async def write_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> None:
        """Set a variable, made when it is not there.

        Raises:
            SpecError: for a bad name, or a value that is too long.
        """
        body = {"value": value, "tags": list(tags)}
        if await self._rest.get("PATCH", f"/variables/name/{name}", json=body) is not None:
            return
        response = await self._rest.call("POST", "/variables/", json={"name": name, **body})
        if is_taken(response):  # somebody else has made it just now
            await self._rest.get("PATCH", f"/variables/name/{name}", json=body)
            return
        raise_refusal(response)

    async def create_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> bool:
        """Make a variable; false when there is one of that name, which stays as it is.

        Raises:
            SpecError: for a bad name, or a value that is too long.
        """
        response = await self._rest.call("POST", "/variables/", json={"name": name, "value": value, "tags": list(tags)})
        if is_taken(response):
            return False
        raise_refusal(response)
        return True

    async def delete_variable(self, name: str) -> bool:
        """Delete a variable; whether it was there."""
        return await self._rest.get("DELETE", f"/variables/name/{name}") is not None

    async def list_variables(self, tag: str) -> dict[str, Any]:
        """Return the values of the variables with a tag, by their names."""
        values: dict[str, Any] = {}
        while True:
            body = {"variables": {"tags": {"all_": [tag]}}, "limit": _PAGE, "offset": len(values)}
            page = await self._rest.get("POST", "/variables/filter", json=body)
            values.update({variable["name"]: variable["value"] for variable in page})
            if len(page) < _PAGE:
                return values
