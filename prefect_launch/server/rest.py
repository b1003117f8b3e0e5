"""One request to the Prefect server, and what its refusals mean to us."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from prefect_launch.core.validation import check_server_json
from prefect_launch.errors import InternalError, ServerFailedError, SpecError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

_GONE = 404
_TAKEN = 409
_REFUSED = frozenset({400, 403, 409, 422})


class Rest:
    """Sends requests through Prefect's own client, which knows about keys, headers and CSRF tokens.

    Args:
        client: an open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def call(
        self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Send a request and return its answer, whatever its status below 500.

        Raises:
            SpecError: when what is sent is nothing that the server can keep.
            ServerUnavailableError: when no answer came (from the transport).
            ServerFailedError: when the server failed.
        """
        try:
            response: httpx.Response = await self._client.request(method, path, json=json, params=params)  # type: ignore[arg-type]
        except httpx.HTTPStatusError as error:
            response = error.response
        except (TypeError, ValueError):  # Of httpx, which writes no NaN, no half of a character, and no set.
            check_server_json(json, "What is sent to the Prefect server")
            raise
        if response.status_code >= 500:
            raise ServerFailedError(
                f"The Prefect server failed with {response.status_code} on {method} {path}: {detail(response)[:500]}"
            )
        return response

    async def get(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send a request and return its JSON; `None` when the thing does not exist.

        Raises:
            SpecError: when the server refuses what was sent, with its reason.
        """
        response = await self.call(method, path, **kwargs)
        if response.status_code == _GONE:
            return None
        raise_refusal(response)
        return response.json() if response.content else {}


def is_taken(response: httpx.Response) -> bool:
    """Whether the server says that a thing of that name is there already."""
    return response.status_code == _TAKEN


def raise_refusal(response: httpx.Response) -> None:
    """Raise `SpecError` with the server's reason when it refused what was sent."""
    if response.status_code in _REFUSED:
        raise SpecError(f"The Prefect server refuses this: {detail(response)}")
    if response.status_code >= 400:
        raise InternalError(f"The Prefect server answered {response.status_code}: {detail(response)[:500]}")


def detail(response: httpx.Response) -> str:
    """Return the reason in the body of a refusal, as text."""
    try:
        body = response.json()
    except ValueError:
        return response.text
    if isinstance(body, dict):
        found = body.get("detail") or body.get("exception_detail") or body.get("exception_message") or body
        if isinstance(found, list):
            return "; ".join(_one_fault(fault) for fault in found)
        return str(found)
    return str(body)


def _one_fault(fault: Any) -> str:
    if isinstance(fault, dict) and "msg" in fault:
        return f"{'.'.join(str(part) for part in fault.get('loc', ()))}: {fault['msg']}"
    return str(fault)
