"""The index of jobs: small values under unique names on the Prefect server, as its Variables.

Storage blocks cannot compare and set, the server can: creating a variable whose name is taken is refused. That is what
makes a version number belong to one writer. The index holds only what finds and checks a job; its files are in storage.
`prefect_launch.testing.InMemoryJobIndex` is the twin, and the same contract tests run on both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_launch.errors import InternalError, ServerUnavailableError

#: The server refuses longer values (as JSON in UTF-8).
MAX_VALUE_BYTES: Final = 5000
#: The server refuses longer names and other characters.
_NAME: Final = re.compile(r"[a-z0-9_]{1,255}\Z")


class JobIndex(Protocol):
    """Named JSON values with tags. Names are made of `[a-z0-9_]`, at most 255; values have at most 5000 bytes of JSON.

    Every call raises `ServerUnavailableError` when the server does not answer.
    """

    async def create(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        """Store a new value; `False`, and nothing changed, when the name is taken. Atomic between all writers."""
        ...

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return the value of that name, if there is one."""
        ...

    async def write(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> None:
        """Store a value, whether the name is taken or not. The last writer wins."""
        ...

    async def delete(self, name: str) -> bool:
        """Remove a value; `False` when there was none."""
        ...

    async def find(self, tags: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        """List the names and values that have all these tags, by name."""
        ...


class ServerJobIndex:
    """The index on a Prefect server.

    Args:
        client: an open client; its transport decides how long a server that is away is waited for.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def create(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        """Store a new value; `False` when the name is taken."""
        check_entry(name, value)
        try:
            await self._client.create_variable(VariableCreate(name=name, value=dict(value), tags=list(tags)))
        except ObjectAlreadyExists:
            return False
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return True

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return the value of that name, if there is one."""
        try:
            found = await self._client.read_variable_by_name(name)
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return _value_of(found) if found is not None else None

    async def write(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> None:
        """Store a value, whether the name is taken or not."""
        while not (await self._update(name, value, tags) or await self.create(name, value, tags)):
            continue

    async def _update(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        check_entry(name, value)
        try:
            await self._client.update_variable(VariableUpdate(name=name, value=dict(value), tags=list(tags)))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:
                return False
            raise _readable(error, name) from error
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return True

    async def delete(self, name: str) -> bool:
        """Remove a value; `False` when there was none."""
        try:
            await self._client.delete_variable_by_name(name)
        except ObjectNotFound:
            return False
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return True

    async def find(self, tags: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        """List the names and values that have all these tags, by name."""
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        # A page's size is the server's to say, so the end is an empty page.
        while page := await self._page(tags, offset=offset):
            offset += len(page)
            found |= {variable.name: _value_of(variable) for variable in page}
        return sorted(found.items())

    async def _page(self, tags: Collection[str], *, offset: int) -> list[Variable]:
        # The client's own `read_variables` knows neither filters nor pages.
        query = {"variables": {"tags": {"all_": list(tags)}}, "offset": offset, "sort": "NAME_ASC"}
        try:
            response = await self._client.request("POST", "/variables/filter", json=query)
        except httpx.HTTPError as error:
            raise _readable(error, f"tagged {', '.join(tags)}") from error
        return [Variable.model_validate(row) for row in response.json()]


def check_entry(name: str, value: Mapping[str, Any]) -> None:
    """Refuse what the server would refuse.

    Raises:
        InternalError: for a name of other characters or a value that is too large. Who writes the index sees to both.
    """
    size = len(json.dumps(dict(value), ensure_ascii=False, separators=(",", ":")).encode())
    if not _NAME.match(name) or size > MAX_VALUE_BYTES:
        raise InternalError(
            f"The job index entry {name!r} ({size} bytes) cannot be stored: a name is 1 to 255 of a-z, 0-9 and '_',"
            f" a value at most {MAX_VALUE_BYTES} bytes. Please report this."
        )


def _value_of(variable: Variable) -> dict[str, Any]:
    if not isinstance(variable.value, dict):
        raise InternalError(
            f"The Prefect variable {variable.name!r} belongs to the job index, but somebody gave it the value"
            f" {variable.value!r}. Delete the variable, and create the job again."
        )
    return variable.value


def _readable(error: httpx.HTTPError, name: str) -> Exception:
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
        return InternalError(
            f"The Prefect server refused the job index entry {name!r}:"
            f" {error.response.status_code} {error.response.text[:300]}. Please report this."
        )
    return ServerUnavailableError(
        f"The Prefect server did not answer for the job index entry {name!r} ({type(error).__name__}: {error})."
        " Start it with 'prefect server start', or set PREFECT_API_URL to the address of the one to use."
    )
