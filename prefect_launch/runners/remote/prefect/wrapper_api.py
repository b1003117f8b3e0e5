"""Prefect server, as the wrapper of a job asks it: the standard library alone, patient for as long as it is away.

`Api` works for one flow run. It repeats a request until it gets an answer; before it repeats one that must not take
effect twice, it checks whether the first took effect. A refusal is not an answer: a proxy, or a key that is being
changed, gives 401, 403 and 404 for a while. `GoneError` is raised only if the server itself says for a minute that the
flow run does not exist; `RefusedError` only for contents that it does not take.
"""

from __future__ import annotations

import base64
import contextlib
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

#: How long the server must say that it does not have what was asked for.
GONE_SECONDS = 60.0
#: What a server, or a proxy before it, says of contents that it takes at no time.
_NEVER_TAKEN = frozenset({400, 413, 414, 415, 422, 431})
#: How long contents are refused, in any other way, that are not taken while other requests are answered.
_REFUSED_SECONDS = 60.0
_TIMEOUT_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 10.0
#: How long an answer is waited for once the job has ended; infrastructure that hangs for ever costs money.
_PATIENCE_SECONDS = 24 * 3600.0
#: What a server gets to commit a request whose answer was lost.
_SETTLE_SECONDS = 1.0


class GoneError(Exception):
    """The flow run is gone, or this run may not speak for it."""


class RefusedError(Exception):
    """The server does not take what was sent to it."""


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
        self.gone_seconds = GONE_SECONDS
        self._give_up_at: float | None = None
        self.limit_patience()

    def limit_patience(self, seconds: float | None = _PATIENCE_SECONDS) -> None:
        """Give up requests that are not answered after a time from now; None: never, for as long as a job runs."""
        self._give_up_at = None if seconds is None else time.monotonic() + seconds

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
        """Give the flow run an input; false when it has one of that key.

        Raises:
            RefusedError: when the server does not take it.
        """
        body = {"key": key, "value": value}
        return self._send("POST", self._run + "/input", body, known=(409,), refusable=True)[0] != 409

    def read_input(self, key: str) -> str | None:
        """Read an input; None when there is none."""
        status, content = self._send("GET", f"{self._run}/input/{key}", known=(404,))
        return None if status == 404 else content.decode()

    def delete_input(self, key: str) -> None:
        """Delete an input."""
        self._send("DELETE", f"{self._run}/input/{key}", known=(404,))

    # --- logs and secrets ---

    def log(self, records: list[Json]) -> None:
        """Add records to the flow run's log, each once.

        Raises:
            RefusedError: when the server takes none of them.
        """
        body = [{**record, "flow_run_id": self.run_id} for record in records]
        while True:
            try:
                self._send("POST", "/logs/", body, once=True, refusable=True)
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
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        known: tuple[int, ...] = (),
        once: bool = False,
        refusable: bool = False,
    ) -> tuple[int, bytes]:
        """Send a request until it is answered; return the status, one below 300 or a known one, and the content."""
        pause, begun = 0.5, time.monotonic()
        gone_since: float | None = None
        while True:
            is_missing = False
            try:
                status, content = self._request(method, path, body)
                is_missing = status == 404 and _is_own(content)
                is_page = content.lstrip().startswith(b"<")  # Of a proxy that wants a login, say.
                if not is_page and (status < 300 or (status in known and (status != 404 or is_missing))):
                    return status, content
                fault = f"the Prefect server answers {status} {content[:500].decode('utf-8', 'replace')}"
                if status == 403 and b"CSRF" in content.upper() and self._has_token:
                    self._has_token = False
                elif once and status in (500, 502, 504):
                    raise _LostError
                elif refusable and (status in _NEVER_TAKEN or self._is_refused(status, begun)):
                    raise RefusedError(fault)
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                fault = f"the Prefect server does not answer: {error}"
                if once and not isinstance(reason, ConnectionRefusedError):
                    raise _LostError from None
            now = time.monotonic()
            gone_since = (now if gone_since is None else gone_since) if is_missing else None
            if gone_since is not None and now - gone_since >= self.gone_seconds:
                raise GoneError(f"{fault} to {method} {path}")
            if self._give_up_at is not None and now > self._give_up_at:
                raise GoneError(fault)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _is_refused(self, status: int, begun: float) -> bool:
        """Whether a refusal is of the contents alone: it has lasted, and another request is answered."""
        is_busy = status >= 500 or status in (404, 408, 425, 429)
        if is_busy or time.monotonic() - begun < _REFUSED_SECONDS:
            return False
        return self._request("GET", self._run, None)[0] == 200

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
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if status == 200:
                token = json.loads(content)["token"]
                self._headers.update({"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": self._client})


def _is_own(content: bytes) -> bool:
    """Whether the text of a 404 is the Prefect server's own, of a thing that it does not have."""
    try:
        said = json.loads(content)
    except ValueError:
        return False
    if not isinstance(said, dict):
        return False
    return isinstance(said.get("exception_message"), str) or said.get("detail") not in (None, "Not Found")


def _words(data: Json) -> str:
    """Say how a run has ended, for the page of the flow run."""
    if data.get("error"):
        return str(data["error"])
    ended = f"exit code {data.get('exit_code')}" + (f" ({data['signal']})" if data.get("signal") else "")
    if data.get("terminated"):
        return f"The worker's infrastructure was told to end, and the job with it: {ended}."
    return f"The job ended with {ended}."
