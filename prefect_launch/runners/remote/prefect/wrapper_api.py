"""Prefect server, as the wrapper of a job asks it: the standard library alone, patient for as long as it is away.

`Api` speaks for one flow run. A request is repeated until it is answered; one that must not take effect twice is looked
for first. What the server has lost for good, such as the flow run itself, raises `GoneError`.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Json = dict[str, Any]

#: What a server, or a proxy before it, says when it cannot answer now.
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_TIMEOUT_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 10.0
#: How long an answer is waited for once the job has ended; infrastructure that hangs for ever costs money.
_PATIENCE_SECONDS = 24 * 3600.0
#: What a server gets to commit a request whose answer was lost.
_SETTLE_SECONDS = 1.0


class GoneError(Exception):
    """The flow run is gone, or this run may not speak for it."""


class _LostError(Exception):
    """The answer was lost: whether the request has taken effect is not known."""


class Api:
    """The server, for one flow run.

    Args:
        environ: where the worker has put the server's address and key.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._url = environ["PREFECT_API_URL"].rstrip("/")
        self.run_id = environ["PREFECT__FLOW_RUN_ID"]
        self._run = "/flow_runs/" + self.run_id
        self._headers = {
            "Content-Type": "application/json",
            **json.loads(environ.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}"),
        }
        if environ.get("PREFECT_API_KEY"):
            self._headers["Authorization"] = "Bearer " + environ["PREFECT_API_KEY"]
        elif environ.get("PREFECT_API_AUTH_STRING"):
            self._headers["Authorization"] = (
                "Basic " + base64.b64encode(environ["PREFECT_API_AUTH_STRING"].encode()).decode()
            )
        self._tls = ssl.create_default_context(
            cafile=environ.get("PREFECT_API_SSL_CERT_FILE") or environ.get("SSL_CERT_FILE")
        )
        if environ.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true", "yes", "on"):
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        self._client = str(uuid.uuid4())
        self._has_token = False

    # --- the flow run ---

    def state(self) -> Json:
        """Return the state that the flow run is in."""
        found = self._ask("GET", self._run)
        return dict(found.get("state") or {})

    def set_running(self) -> bool:
        """Move the flow run to Running; false when it is asked to end, or has ended."""
        while True:
            if self.state().get("type") in ("CANCELLING", "CANCELLED", "COMPLETED", "FAILED", "CRASHED"):
                return False
            status = self._propose("RUNNING", "Running", None, None)[0]
            if status == "ACCEPT":
                return True
            if status != "WAIT":
                return False
            time.sleep(1.0)

    def finish(self, kind: str, data: Json) -> int:
        """Report the end; return the exit code of the wrapper.

        Args:
            kind: the type of the state.
            data: how it ended.
        """
        data = {**data, "prefect-launch": 1, "artifact_type": "result"}
        try:
            status, state = self._propose(kind, kind.capitalize(), _words(data), data)
            if status != "ACCEPT" and (state or {}).get("type") == "CANCELLING":
                self._propose("CANCELLED", "Cancelled", _words(data), {**data, "stopped": True})
        except GoneError as error:
            sys.stderr.write(f"prefect-launch: the end of the run could not be reported: {error}\n")
        return 0

    def _propose(self, kind: str, name: str, message: str | None, data: Any) -> tuple[str, Json | None]:
        transition = str(uuid.uuid4())
        state = {"type": kind, "name": name, "message": message, "data": data}
        details = {"transition_id": transition, "flow_run_id": self.run_id}
        answer = self._ask("POST", self._run + "/set_state", {"state": {**state, "state_details": details}})
        now = answer.get("state") or None
        # The answer to an earlier try was lost.
        is_ours = now is not None and (now.get("state_details") or {}).get("transition_id") == transition
        return ("ACCEPT" if is_ours else answer["status"]), now

    def label(self, labels: Json) -> None:
        """Add labels to the flow run."""
        self._ask("PATCH", self._run + "/labels", labels)

    # --- inputs ---

    def put_input(self, key: str, value: str) -> bool:
        """Give the flow run an input; false when it has one of that key."""
        return self._send("POST", self._run + "/input", {"key": key, "value": value}, known=(409,))[0] != 409

    def read_input(self, key: str) -> str | None:
        """Read an input; None when there is none."""
        status, content = self._send("GET", f"{self._run}/input/{key}", known=(404,))
        return None if status == 404 else content.decode()

    def delete_input(self, key: str) -> None:
        """Delete an input."""
        self._send("DELETE", f"{self._run}/input/{key}", known=(404,))

    # --- logs and secrets ---

    def log(self, records: list[Json]) -> None:
        """Add records to the flow run's log, each once."""
        body = [{**record, "flow_run_id": self.run_id} for record in records]
        while True:
            try:
                self._send("POST", "/logs/", body, once=True)
                return
            except _LostError:
                time.sleep(_SETTLE_SECONDS)
                if self._has_log(records[0]):
                    return

    def _has_log(self, record: Json) -> bool:
        wanted = {"flow_run_id": {"any_": [self.run_id]}, "timestamp": {"after_": record["timestamp"]}}
        body = {"logs": wanted, "sort": "TIMESTAMP_ASC", "limit": 50}
        found = self._ask("POST", "/logs/filter", body)
        return any((one["name"], one["message"]) == (record["name"], record["message"]) for one in found)

    def secret(self, name: str) -> str | None:
        """Return what a Secret block holds, text as it is and anything else as JSON; None when there is none."""
        path = f"/block_types/slug/secret/block_documents/name/{urllib.parse.quote(name)}"
        status, content = self._send("GET", f"{path}?include_secrets=true", known=(404,))
        if status == 404:
            return None
        held = json.loads(content)["data"]["value"]
        return held if isinstance(held, str) else json.dumps(held)

    # --- requests ---

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        content = self._send(method, path, body)[1]
        return json.loads(content) if content else {}

    def _send(
        self, method: str, path: str, body: Any = None, known: tuple[int, ...] = (), once: bool = False
    ) -> tuple[int, bytes]:
        """Send a request until it is answered; return the status, one below 300 or a known one, and the content."""
        pause, begun = 0.5, time.monotonic()
        while True:
            try:
                status, content = self._request(method, path, body)
                if status < 300 or status in known:
                    return status, content
                fault = f"{status} {content[:500].decode('utf-8', 'replace')}"
                if status == 403 and b"CSRF" in content.upper() and self._has_token:
                    self._has_token = False
                elif status not in _BUSY:
                    raise GoneError(f"the Prefect server answers {fault} to {method} {path}")
                elif once and status in (500, 502, 504):
                    raise _LostError
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                fault = str(error)
                if once and not isinstance(reason, ConnectionRefusedError):
                    raise _LostError from None
            if time.monotonic() - begun > _PATIENCE_SECONDS:
                raise GoneError(f"the Prefect server does not answer: {fault}")
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _request(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        if method != "GET" and not self._has_token:
            self._has_token = True
            self._take_token()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, headers=self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=self._tls) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _take_token(self) -> None:
        """Get the token that a server with protection against CSRF asks for; others answer that they have none."""
        status, content = self._request("GET", "/csrf-token?client=" + self._client, None)
        if status == 200:
            self._headers.update(
                {"Prefect-Csrf-Token": json.loads(content)["token"], "Prefect-Csrf-Client": self._client}
            )


def _words(data: Json) -> str:
    """Say how a run has ended, for the page of the flow run."""
    if data.get("error"):
        return str(data["error"])
    ended = f"exit code {data.get('exit_code')}" + (f" ({data['signal']})" if data.get("signal") else "")
    if data.get("terminated"):
        return f"The worker's infrastructure was told to end, and the job with it: {ended}."
    return f"The job ended with {ended}."
