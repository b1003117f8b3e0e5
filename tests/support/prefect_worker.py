"""A worker without Prefect: an in-memory server over HTTP, and a thread that starts runs as Prefect's workers do.

`PrefectApi` answers what the wrapper of a job asks, from an `InMemoryServer`; it can be away, busy, and lose answers.
`InMemoryWorker` takes runs from a pool and starts their commands as processes, as Prefect's process worker does.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect_launch.core.states import StateType
from prefect_launch.errors import ItemGoneError
from prefect_launch.server.values import Item, LogRecord, State
from prefect_launch.testing import InMemoryServer
from tests.support.processes import ChildProcess
from tests.support.requests import send

_LOOK_SECONDS = 0.02
_END_SECONDS = 30.0
#: One heartbeat is enough for a test.
_BEAT_SECONDS = 3600


def view_of(server: InMemoryServer) -> InMemoryServer:
    """Return another client of the same in-memory server, with hooks and counts of its own."""
    other = InMemoryServer()
    other._store = server._store
    return other


class PrefectApi:
    """An in-memory server's API over HTTP, as far as a wrapper asks for it.

    Args:
        server: the server.

    Attributes:
        secrets: what Secret blocks hold, by name.
        is_away: whether connections are closed without an answer, and without an effect.
        lose_answers: so many of the next requests of the paths that end with `lost_path` are done, and their answers
            lost.
        statuses: answers to give to the next requests in the place of doing them.
        refuses: answers a request (method, path, body) in the place of doing it, with a status and a content; or None.
        requests: what was asked: method and path.
    """

    def __init__(self, server: InMemoryServer) -> None:
        self.server = server
        self.secrets: dict[str, Any] = {}
        self.is_away = False
        self.lose_answers = 0
        self.lost_path = ""
        self.statuses: list[int] = []
        self.refuses: Callable[[str, str, bytes], tuple[int, bytes] | None] = lambda method, path, body: None
        self.requests: list[tuple[str, str]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(length) if length else b""
                path = self.path.removeprefix("/api")
                if api.is_away:
                    self.close_connection = True
                    return
                api.requests.append((self.command, path))
                refusal = (api.statuses.pop(0), b"{}") if api.statuses else api.refuses(self.command, path, content)
                body = json.loads(content) if content else None
                status, content = refusal or api.answer(self.command, path, body)
                if api.lose_answers > 0 and path.endswith(api.lost_path):
                    api.lose_answers -= 1
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_one

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/api"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """Do what a request asks; return the status and the content."""
        for pattern, call in self._routes().items():
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                found = call(body, *match.groups())
                if found is None:
                    return 404, b'{"detail": "Flow run not found"}'
                status, value = found
                return status, value if isinstance(value, bytes) else json.dumps(value).encode()
        return 422, json.dumps({"detail": f"not here: {method} {path}"}).encode()

    def _routes(self) -> dict[str, Callable[..., tuple[int, Any] | None]]:
        run = r"/flow_runs/([0-9a-f-]+)"
        return {
            rf"GET {run}": self._read,
            rf"POST {run}/set_state": self._set_state,
            rf"PATCH {run}/labels": lambda body, run: (204, self._do(self.server.label_item(UUID(run), body)) or b""),
            rf"POST {run}/input": self._put_input,
            rf"GET {run}/input/([a-z0-9-]+)": self._read_input,
            rf"DELETE {run}/input/([a-z0-9-]+)": lambda body, run, key: (
                204,
                self._do(self.server.delete_input(UUID(run), key)) or b"",
            ),
            r"POST /logs/": self._write_logs,
            r"POST /logs/filter": self._read_logs,
            r"GET /block_types/slug/secret/block_documents/name/([a-z0-9-]+)\?include_secrets=true": self._read_secret,
        }

    def _do(self, call: Any) -> Any:
        return asyncio.run(call)

    def _read(self, body: Any, run: str) -> tuple[int, Any] | None:
        item: Item | None = self._do(self.server.read_item(UUID(run)))
        return None if item is None else (200, item.model_dump(mode="json"))

    def _set_state(self, body: Any, run: str) -> tuple[int, Any] | None:
        state = State.model_validate(body["state"])
        token = state.transition_id
        try:
            verdict = self._do(self.server.propose(UUID(run), state, transition_id=UUID(token) if token else None))
        except ItemGoneError:
            return None
        return 201, verdict.model_dump(mode="json")

    def _put_input(self, body: Any, run: str) -> tuple[int, Any] | None:
        try:
            is_new = self._do(self.server.put_input(UUID(run), body["key"], body["value"]))
        except ItemGoneError:
            return None
        return (201, b"") if is_new else (409, {})

    def _read_input(self, body: Any, run: str, key: str) -> tuple[int, Any] | None:
        text = self._do(self.server.read_input(UUID(run), key))
        return None if text is None else (200, text.encode())

    def _read_secret(self, body: Any, name: str) -> tuple[int, Any] | None:
        return (200, {"data": {"value": self.secrets[name]}}) if name in self.secrets else None

    def _write_logs(self, body: Any) -> tuple[int, Any]:
        self._do(self.server.write_lines([(UUID(one["flow_run_id"]), LogRecord.model_validate(one)) for one in body]))
        return 201, b""

    def _read_logs(self, body: Any) -> tuple[int, Any]:
        wanted = body["logs"]
        since = datetime.fromisoformat(wanted["timestamp"]["after_"])
        [run] = wanted["flow_run_id"]["any_"]
        found = self._do(self.server.read_logs(UUID(run), limit=body["limit"], since=since))
        return 200, [record.model_dump(mode="json") for record in found]


class InMemoryWorker:
    """A worker of a pool, in a thread: starts the command of each run as a process, and tells what such workers tell.

    Args:
        server: that it takes runs from.
        pool: the work pool.
        api_url: what its runs are told.
        python: the interpreter that `python3` is for its runs.
    """

    def __init__(self, server: InMemoryServer, pool: str, api_url: str, folder: Path, python: str) -> None:
        self._server, self._pool, self._api_url, self._folder = server, pool, api_url, folder
        self.name = f"worker-{uuid4().hex[:8]}"
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python3").symlink_to(python)
        self.processes: dict[UUID, subprocess.Popen[bytes]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, with all that it runs."""
        self._ended.set()
        self._thread.join()
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_SECONDS)
                process.kill()
            process.wait()

    async def _run(self) -> None:
        waiting: dict[UUID, subprocess.Popen[bytes]] = {}
        await self._server.beat_worker(self._pool, self.name, _BEAT_SECONDS)
        while not self._ended.is_set():
            soon = datetime.now(timezone.utc) + timedelta(seconds=10)
            for run in await self._server.poll(self._pool, limit=10, before=soon):
                with suppress(ItemGoneError):
                    verdict = await self._server.propose(run.id, State(type=StateType.PENDING, name="Pending"))
                    if verdict.accepted:
                        waiting[run.id] = await self._start(run)
            for run_id, process in list(waiting.items()):
                if process.poll() is not None:
                    del waiting[run_id]
                    await self._end(run_id, process.returncode)
            await asyncio.sleep(_LOOK_SECONDS)
        await self._server.delete_worker(self._pool, self.name)

    async def _start(self, run: Item) -> subprocess.Popen[bytes]:
        await self._server.label_item(run.id, {"prefect.worker.name": self.name})
        await self._server.propose(run.id, State(type=StateType.PENDING, name="Submitting"))
        variables = {
            "PATH": f"{self._folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_API_URL": self._api_url,
            "PREFECT_API_KEY": "a-key",
            "PREFECT__FLOW_RUN_ID": str(run.id),
        }
        command = shlex.split((run.job_variables or {})["command"])
        with (self._folder / f"{run.id}.log").open("ab") as out:
            process = subprocess.Popen(  # noqa: ASYNC220 - on a loop of its own
                command, env={**os.environ, **variables}, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self.processes[run.id] = process
        return process

    async def _end(self, run_id: UUID, code: int) -> None:
        if code != 0:
            message = f"Process exited with status code: {code}."
            with suppress(ItemGoneError):
                await self._server.propose(run_id, State(type=StateType.CRASHED, name="Crashed", message=message))


# --- real workers ---

_ONLINE_SECONDS = 120.0


class PrefectWorkerProcess:
    """A work pool on a real server, and `prefect worker start` for it.

    Args:
        api_url: of the server.
        pool: the work pool's name; made when it is not there.
        kind: its type, such as "process".
        folder: for its log and Prefect's home.
    """

    def __init__(self, api_url: str, pool: str, kind: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pool, self._api_url, self._kind, self._folder = pool, api_url, kind, folder
        self._process: ChildProcess | None = None
        send("POST", f"{api_url}/work_pools/", json={"name": pool, "type": kind})

    def start(self) -> None:
        """Start the worker, and wait until the server knows it."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(self._folder / "home"),
            "PREFECT_API_URL": self._api_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
        }
        command = [sys.executable, "-m", "prefect", "worker", "start", "-p", self.pool, "-t", self._kind]
        self._process = ChildProcess(command, self._folder / "worker.log", environment=environment)
        self._process.wait_until(self._is_online, _ONLINE_SECONDS)

    def stop(self) -> None:
        """Let it end in order."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the worker alone, as a crash would; what it has started goes on."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(_END_SECONDS)
            self._process = None

    @property
    def is_online(self) -> bool:
        """Whether the server takes it to be online."""
        return self._is_online()

    def _is_online(self) -> bool:
        pool = send("GET", f"{self._api_url}/work_pools/{self.pool}").json()
        return bool(pool["status"] == "READY")
