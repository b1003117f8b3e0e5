"""A fake of Google Cloud as far as custom jobs need it: Vertex AI, Cloud Logging, Cloud Storage and access tokens.

It keeps the shapes of the public REST APIs, and a life cycle: a job waits for a machine, runs its command as a process
of this machine, is cancelled in its own time, and lists and logs are late. It answers as a function (of an httpx
transport), or as a server on the loopback (`served`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from prefect_launch.clouds.gcp import GcpAccount
from prefect_launch.clouds.settings import GcpSettings

PROJECT, NUMBER, REGION, BUCKET = "tests", "123456789", "europe-west4", "launch-tests"
TOKEN = "token-of-the-agent"
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")
Fault = Callable[[httpx.Request], httpx.Response | None]

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_TERM = re.compile(r'([\w.-]+)(!?=)"([^"]*)"')
_OF_JOB = re.compile(r'\(resource\.labels\.job_id="(\d+)" AND receiveTimestamp>="([^"]+)"\)')
_KNOWN = {
    "": {"displayName", "labels", "jobSpec", "encryptionSpec"},
    "jobSpec": {
        *("workerPoolSpecs", "baseOutputDirectory", "scheduling", "serviceAccount", "network", "reservedIpRanges"),
        *("enableWebAccess", "enableDashboardAccess", "tensorboard", "experiment", "experimentRun"),
        *("persistentResourceId", "pscInterfaceConfig"),
    },
    "pool": {"machineSpec", "replicaCount", "containerSpec", "diskSpec", "nfsMounts"},
    "container": {"imageUri", "command", "args", "env"},
    "scheduling": {"timeout", "restartJobOnWorkerRestart", "strategy", "disableRetries", "maxWaitDuration"},
}


class TestAccount(GcpAccount):
    """An account with a token that the fake takes."""

    __test__ = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(GcpSettings(project=PROJECT, region=REGION, **settings))

    async def token(self) -> str:
        return TOKEN

    async def identity(self) -> str:
        return "agent@tests"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def stamp(moment: datetime) -> str:
    """Write a moment as Google does."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"


def _error(code: int, status: str, message: str, *details: Mapping[str, Any]) -> httpx.Response:
    return httpx.Response(
        code, json={"error": {"code": code, "status": status, "message": message, "details": list(details)}}
    )


def throttled() -> httpx.Response:
    """Return the answer to one call too many."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"}
    return _error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Read requests'.", info)


def no_quota() -> httpx.Response:
    """Return the answer to a job that asks for more than the project's quota has."""
    metric = "aiplatform.googleapis.com/custom_model_training_nvidia_a100_gpus"
    return _error(429, "RESOURCE_EXHAUSTED", f"The following quota metrics exceed quota limits: {metric}")


@dataclass
class VertexCloud:
    """What Google knows.

    Args:
        folder: for the buckets, and what the jobs write.

    Attributes:
        jobs: by their ids.
        entries: of all logs.
        machines: how many jobs run at a time; set it with `resize`.
        runs: whether jobs run by themselves; else a test sets their states.
        list_lag: how long a new job is not in lists, in seconds.
        log_lag: how long an entry cannot be found.
        cancel_seconds: how long a job takes to be cancelled.
        grace: what its processes get between TERM and KILL then.
        faults: asked first; one that returns an answer is used up by it.
        lost_answers: so many of the next calls do their work, and their answers are lost.
        away: whether nobody answers.
        calls: how often each call was made.
        made: the display name of each job that was ever made.
    """

    folder: Path
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    machines: int = 1_000
    runs: bool = True
    list_lag: float = 0.0
    log_lag: float = 0.0
    cancel_seconds: float = 0.0
    grace: float = 0.5
    faults: list[Fault] = field(default_factory=list)
    lost_answers: int = 0
    away: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._ids = 7_000_000_000_000_000_000
        self._page_tokens: dict[str, Any] = {}
        (self.folder / "gcs" / BUCKET).mkdir(parents=True)

    # --- for tests ---

    def job(self, name: str) -> dict[str, Any]:
        """Return the newest job of a display name."""
        return [job for job in self.jobs.values() if job["displayName"] == name][-1]

    def set(self, job: dict[str, Any], state: str, **more: Any) -> None:
        """Let a job be in a state."""
        now = stamp(_now())
        times = {"startTime": now} if state == "JOB_STATE_RUNNING" else {"endTime": now} if state in ENDED else {}
        with self._lock:
            job |= {"state": state, "updateTime": now, **times, **more}

    def write(self, job: Mapping[str, Any], *lines: str, worker: str = "workerpool0-0", late: float = 0.0) -> None:
        """Let a job write lines; they are received so many seconds after their own time."""
        for line in lines:
            payload = {"jsonPayload": {"message": line, "levelname": "INFO", "attrs": {"tag": worker}}}
            self.put(job, payload, worker=worker, late=late)

    def put(self, job: Mapping[str, Any], payload: Mapping[str, Any], *, worker: str, late: float = 0.0) -> None:
        """Keep a log entry."""
        with self._lock:
            received = _now()
            self.entries.append(
                {
                    **payload,
                    "insertId": f"id{len(self.entries)}",
                    "logName": f"projects/{PROJECT}/logs/{worker}",
                    "timestamp": stamp(received - timedelta(seconds=late)),
                    "receiveTimestamp": stamp(received),
                    "severity": "INFO",
                    "resource": {"type": "ml_job", "labels": {"job_id": _id(job), "task_name": worker}},
                    "_found": time.monotonic() + self.log_lag,
                }
            )

    def resize(self, machines: int) -> None:
        """Change how many jobs run at a time."""
        self.machines = machines
        self._schedule()

    def close(self) -> None:
        """Kill what runs."""
        self.runs = False
        for processes in list(self._processes.values()):
            for process in processes:
                _kill(process, signal.SIGKILL)

    def lose_next_create(self) -> None:
        """Make the next job that is asked for, and lose the answer."""

        def lose(request: httpx.Request) -> httpx.Response | None:
            if request.method == "POST" and request.url.path.endswith("/customJobs"):
                self.faults.remove(lose)
                self.answer(request)
                raise httpx.ReadError("lost", request=request)
            return None

        self.faults.append(lose)

    # --- answers ---

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        if self.away:
            raise httpx.ConnectError("nobody listens", request=request)
        with self._lock:
            self.calls[f"{request.method} {_kind(request.url.path)}"] += 1
            for fault in list(self.faults):
                if (refused := fault(request)) is not None:
                    self.faults.remove(fault)
                    return refused
            answer = self._answer(request)
            if self.lost_answers > 0:
                self.lost_answers -= 1
                raise httpx.ReadError("lost", request=request)
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path, method = unquote(request.url.path), request.method
        if path == "/token":
            return httpx.Response(200, json={"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if path == "/v2/entries:list":
            return self._log(json.loads(request.content))
        if path.startswith(("/storage/", "/upload/")):
            return self._storage(request)
        jobs = f"/v1/projects/{PROJECT}/locations/{REGION}/customJobs"
        if path == jobs:
            return self._create(json.loads(request.content)) if method == "POST" else self._list(request.url.params)
        match = re.fullmatch(rf"/v1/projects/{NUMBER}/locations/{REGION}/customJobs/(\d+)(:cancel)?", path)
        if match is None:
            return httpx.Response(404, text="<html>not there</html>")
        job = self.jobs.get(match[1])
        if job is None:
            return _error(404, "NOT_FOUND", f"The CustomJob {match[1]} does not exist.")
        if match[2]:
            return self._cancel(job)
        if method == "GET":
            return httpx.Response(200, json=job)
        if job["state"] not in ENDED:
            return _error(400, "FAILED_PRECONDITION", "The CustomJob is not in a final state. Cancel it first.")
        del self.jobs[match[1]]
        return httpx.Response(200, json={"name": f"{job['name']}/operations/1", "done": True, "response": {}})

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        if wrong := _wrong(body):
            return _error(400, "INVALID_ARGUMENT", wrong)
        self._ids += 1
        now = stamp(_now())
        job = {
            **body,
            "name": f"projects/{NUMBER}/locations/{REGION}/customJobs/{self._ids}",
            "state": "JOB_STATE_PENDING",
            "createTime": now,
            "updateTime": now,
            "_shown": time.monotonic() + self.list_lag,
        }
        self.jobs[str(self._ids)] = job
        self.made.append(job["displayName"])
        answer = httpx.Response(200, json=job)
        self._schedule()
        return answer

    def _list(self, params: Mapping[str, str]) -> httpx.Response:
        found = [
            job
            for job in sorted(self.jobs.values(), key=lambda job: job["createTime"], reverse=True)
            if job["_shown"] <= time.monotonic() and _matches(job, params.get("filter", ""))
        ]
        return self._page("customJobs", found, int(params.get("pageSize", 100)), params.get("pageToken", ""))

    def _page(self, key: str, found: list[Any], size: int, token: str) -> httpx.Response:
        start = int(token or 0)
        more = {"nextPageToken": str(start + size)} if start + size < len(found) else {}
        return httpx.Response(200, json={key: found[start : start + size], **more})

    def _cancel(self, job: dict[str, Any]) -> httpx.Response:
        if job["state"] in ENDED:
            return _error(400, "FAILED_PRECONDITION", "The CustomJob is in a final state.")
        if job["state"] != "JOB_STATE_CANCELLING":
            self.set(job, "JOB_STATE_CANCELLING")
            threading.Thread(target=self._end_cancelled, args=(job,), daemon=True).start()
        return httpx.Response(200, json={})

    def _end_cancelled(self, job: dict[str, Any]) -> None:
        processes = self._processes.get(_id(job), [])
        for process in processes:
            _kill(process, signal.SIGTERM)
        due = time.monotonic() + self.grace
        while any(process.poll() is None for process in processes) and time.monotonic() < due:
            time.sleep(0.02)
        for process in processes:
            _kill(process, signal.SIGKILL)
        time.sleep(self.cancel_seconds)
        self.set(job, "JOB_STATE_CANCELLED", error={"code": 1, "message": "CANCELED"})
        self._schedule()

    # --- jobs that run ---

    def _schedule(self) -> None:
        with self._lock:
            if not self.runs:
                return
            free = self.machines - sum(job["state"] == "JOB_STATE_RUNNING" for job in self.jobs.values())
            for job in list(self.jobs.values()):
                if free > 0 and job["state"] == "JOB_STATE_PENDING":
                    free -= 1
                    self._start(job)

    def _start(self, job: dict[str, Any]) -> None:
        readers, processes = [], self._processes.setdefault(_id(job), [])
        self.set(job, "JOB_STATE_RUNNING")
        for index, pool in enumerate(job["jobSpec"]["workerPoolSpecs"]):
            for replica in range(int(pool.get("replicaCount", 1))):
                try:
                    process = self._process(job, pool["containerSpec"])
                except FileNotFoundError as error:
                    self.set(
                        job,
                        "JOB_STATE_FAILED",
                        error={"code": 3, "message": f"runc: exec: {error.filename!r}: not found"},
                    )
                    return
                processes.append(process)
                reader = threading.Thread(target=self._read, args=(job, process, f"workerpool{index}-{replica}"))
                reader.daemon = True
                reader.start()
                readers.append(reader)
        threading.Thread(target=self._await, args=(job, processes, readers), daemon=True).start()

    def _process(self, job: Mapping[str, Any], container: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        work = self.folder / "work" / _id(job)
        work.mkdir(parents=True, exist_ok=True)
        mount, uri = f"{self.folder}/gcs/", job["jobSpec"]["baseOutputDirectory"]["outputUriPrefix"]
        env = {"PATH": os.environ["PATH"], "AIP_MODEL_DIR": f"{uri}model/", "CLOUD_ML_JOB_ID": _id(job)}
        for one in container.get("env", ()):
            value = re.sub(r"(?<!\$)\$\((\w+)\)", lambda found: env.get(found[1], found[0]), one["value"])
            env[one["name"]] = re.sub(r"^/gcs/", lambda _: mount, value.replace("$$(", "$("))
        command = [*container.get("command", ()), *container.get("args", ())] or ["true"]
        return subprocess.Popen(
            command,
            env=env,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _read(self, job: Mapping[str, Any], process: subprocess.Popen[bytes], worker: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.write(job, line.decode("utf-8", "replace").removesuffix("\n"), worker=worker)

    def _await(self, job: dict[str, Any], processes: list[subprocess.Popen[bytes]], readers: list[Any]) -> None:
        code = processes[0].wait()
        for process in processes[1:]:
            _kill(process, signal.SIGTERM)
        for reader in readers:
            reader.join(5.0)
        with self._lock:
            if job["state"] == "JOB_STATE_RUNNING":
                if code == 0:
                    self.set(job, "JOB_STATE_SUCCEEDED")
                else:
                    shown = f"{-code}({signal.Signals(-code).name})" if code < 0 else code
                    words = f"The replica workerpool0-0 exited with a non-zero status of {shown}."
                    self.set(job, "JOB_STATE_FAILED", error={"code": 3, "message": words})
        self._schedule()

    # --- logs and buckets ---

    def _log(self, body: Mapping[str, Any]) -> httpx.Response:
        wanted = dict(_OF_JOB.findall(body["filter"]))
        least = re.search(r' timestamp>="([^"]+)"', body["filter"])
        found = [
            {key: value for key, value in entry.items() if key != "_found"}
            for entry in sorted(self.entries, key=lambda entry: entry["timestamp"])
            if entry["_found"] <= time.monotonic()
            and (since := wanted.get(entry["resource"]["labels"]["job_id"])) is not None
            and entry["receiveTimestamp"] >= since
            and (least is not None and entry["timestamp"] >= least[1])
        ]
        return self._page("entries", found, body["pageSize"], body.get("pageToken", ""))

    def _storage(self, request: httpx.Request) -> httpx.Response:
        path, params = unquote(request.url.path), request.url.params
        match = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", path)
        assert match is not None, path
        bucket, name = self.folder / "gcs" / match[1], match[2]
        if not bucket.is_dir():
            return _error(404, "NOT_FOUND", "The specified bucket does not exist.")
        if request.method == "POST":
            target = bucket / params["name"]
            if params["name"].endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(request.content)
            return httpx.Response(200, json={"name": params["name"]})
        if request.method == "DELETE":
            (bucket / name).rmdir()
            return httpx.Response(204)
        if name is not None:
            file = bucket / name
            return httpx.Response(200, content=file.read_bytes()) if file.is_file() else _error(404, "NOT_FOUND", name)
        every = [one for one in bucket.rglob("*") if one.is_dir() or one.is_file()]
        names = sorted(f"{one.relative_to(bucket).as_posix()}{'/' if one.is_dir() else ''}" for one in every)
        found = [
            {"name": one, "size": str(0 if one.endswith("/") else (bucket / one).stat().st_size)}
            for one in names
            if one.startswith(params.get("prefix", ""))
        ]
        return self._page("items", found, int(params.get("maxResults", 1_000)), params.get("pageToken", ""))

    # --- as a server ---

    @contextmanager
    def served(self) -> Iterator[str]:
        """Answer on the loopback; gives the address."""
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length") or 0))
                url = f"http://{self.headers['host']}{self.path}"
                request = httpx.Request(self.command, url, headers=dict(self.headers), content=content)
                try:
                    answer = cloud.answer(request)
                except httpx.TransportError:
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                for key, value in answer.headers.items():
                    if key.lower() not in ("content-length", "transfer-encoding"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_DELETE = _do

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _id(job: Mapping[str, Any]) -> str:
    return str(job["name"]).rpartition("/")[2]


def _kind(path: str) -> str:
    return re.sub(r"/(\d{15,}|o/.+)", "/ID", path).rpartition("/")[2] if "/o/" not in path else "o/ID"


def _kill(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _matches(job: Mapping[str, Any], wanted: str) -> bool:
    fields = {
        "display_name": job["displayName"],
        "state": job["state"],
        **{f"labels.{key}": value for key, value in job.get("labels", {}).items()},
    }
    terms = [one for one in wanted.split(" AND ") if one]
    for term in terms:
        match = _TERM.fullmatch(term)
        assert match is not None, f"a filter that Vertex AI does not know: {term!r}"
        if (fields.get(match[1]) == match[3]) is (match[2] == "!="):
            return False
    return True


def _wrong(body: Mapping[str, Any]) -> str:
    """Say what Vertex AI refuses of a job; empty when it takes it."""
    spec = body.get("jobSpec", {})
    pools = spec.get("workerPoolSpecs", [])
    parts = [("", body), ("jobSpec", spec), ("scheduling", spec.get("scheduling", {}))]
    parts += [("pool", pool) for pool in pools] + [("container", pool.get("containerSpec", {})) for pool in pools]
    for kind, part in parts:
        for name in part.keys() - _KNOWN[kind]:
            return f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    for key, value in body.get("labels", {}).items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            return f"Invalid label {key!r}: {value!r}."
    if not pools or not all(pool.get("containerSpec", {}).get("imageUri") for pool in pools):
        return "Each worker pool needs an image."
    if int(pools[0].get("replicaCount", 1)) != 1:
        return "The replica count of the first worker pool must be 1."
    return ""
