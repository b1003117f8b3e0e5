"""Requests that a process sends to the Prefect server, counted by kind, and the CPU time that it takes meanwhile."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx

_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}|(?<=/work_pools/)[^/]+|(?<=/name/launch)_[^/]+")
#: Statuses of a busy server: what was asked is not done.
_BUSY: Final = frozenset({429, 503})
#: The server's answer to a claim, or another change of state, that it has taken.
_MADE: Final = 201
_EMPTY: Final = "2"  # bytes of an empty list


class Counted:
    """The requests that this process sends; at each signal, those since the last one go to a file, with the CPU time.

    Args:
        file: is written as a whole, and may be removed.
    """

    SIGNAL: Final = signal.SIGUSR1

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts: Counter[str] = Counter()
        self._cpu = time.process_time()
        sent = httpx.AsyncHTTPTransport.handle_async_request

        async def counting(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            response = await sent(transport, request)
            self._counts[_kind(request, response)] += 1
            return response

        httpx.AsyncHTTPTransport.handle_async_request = counting  # type: ignore[method-assign,assignment]
        signal.signal(self.SIGNAL, lambda *_: self._write())

    def _write(self) -> None:
        now = time.process_time()
        data = {"cpu_ms": (now - self._cpu) * 1000, "calls": dict(self._counts)}
        self._cpu = now
        self._counts.clear()
        whole = self._file.with_suffix(".new")
        whole.write_text(json.dumps(data))
        whole.rename(self._file)


def read_calls(file: Path) -> tuple[float, Counter[str]]:
    """Return the CPU time (ms) and the counts that a process has kept."""
    data: dict[str, Any] = json.loads(file.read_text())
    return data["cpu_ms"], Counter(data["calls"])


def _kind(request: httpx.Request, response: httpx.Response) -> str:
    what = _of(request)
    if response.status_code in _BUSY:
        return f"busy: {what}"
    if what == "poll" and response.headers.get("content-length") == _EMPTY:
        return "poll without an item"
    if what == "set state" and response.status_code != _MADE:
        return "set state, refused"
    return what


def _of(request: httpx.Request) -> str:
    path = request.url.path.removeprefix("/api")
    if path.endswith("/get_scheduled_flow_runs"):
        return "poll"
    if path.endswith("/set_state"):
        return "set state"
    return f"{request.method} {_UUID.sub('ID', path)}"
