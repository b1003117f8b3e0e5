"""A scripted Kubernetes API server in this process, for what the tests' real one cannot answer.

It keeps objects as a server of today does, and it runs nothing: a test says what becomes of a Job's pods
(`tests/support/kubernetes_pods.py`), and what the server answers next (`answer`, `hang`, `cut`, `expire_watches`).
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.support.kubernetes_store import ApiError, Kind, Object, Store, now
from tests.support.ports import free_port

START_SECONDS = 30.0
#: As of a real one.
MAX_BODY_BYTES = 3 * 1024 * 1024
_PATH = re.compile(
    r"/(?P<group>api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<part>[^/]+))?)?"
)
_POLL = 0.02
#: Kinds of the core by their names in paths.
_CORE = {"pods": "Pod", "services": "Service", "secrets": "Secret", "configmaps": "ConfigMap"}


@dataclass
class Answer:
    """What the server says to the next requests that match, instead of doing them.

    Attributes:
        request: A regular expression for "METHOD path".
        code: HTTP status.
        reason: Of the Status object.
        message: Likewise.
        headers: Such as Retry-After.
        left: How many more requests get it.
        done_first: Whether the request is done all the same: the caller is told of a failure that was none.
    """

    request: str
    code: int
    reason: str
    message: str
    headers: Mapping[str, str]
    left: int
    done_first: bool


@dataclass(frozen=True)
class Line:
    """One line of a container's log, and when it was written (nanoseconds allowed)."""

    stamp: str
    text: str


@dataclass
class KubernetesApi:
    """The server.

    Attributes:
        port: Its port on the loopback.
        token: What it takes as `Authorization: Bearer`; any other gets a 401.
        version: What `/version` says.
        store: Its objects.
        logs: Lines by namespace, pod and container.
        denied: What SelfSubjectAccessReview refuses, as "verb resource" or "verb resource/subresource".
        custom: Custom resources by plural: group/version and kind.
        mute: The plurals whose watches tell nothing, their connections open, as when a firewall has forgotten them.
        requests: What was asked, as "METHOD path?query", oldest first.
    """

    port: int = field(default_factory=free_port)
    token: str = "good"  # the loopback's own
    version: str = "v1.34.1"
    store: Store = field(default_factory=Store)
    logs: dict[tuple[str, str, str], list[Line]] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    custom: dict[str, tuple[str, str]] = field(default_factory=dict)
    mute: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers: list[Answer] = []
        self._hanging: str | None = None
        self._awake = asyncio.Event()
        self._cuts = 0
        self._ended_logs: set[tuple[str, str, str]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def write_kubeconfig(self, file: Path, *, token: str | None = None, namespace: str = "default") -> Path:
        """Write a kubeconfig that leads to it.

        Args:
            file: Where to.
            token: Another token than the one that it takes.
            namespace: The context's.

        Returns:
            The file.
        """
        config = {
            **{"apiVersion": "v1", "kind": "Config", "current-context": "scripted"},
            "clusters": [{"name": "scripted", "cluster": {"server": self.url}}],
            "users": [{"name": "user", "user": {"token": token or self.token}}],
            "contexts": [
                {"name": "scripted", "context": {"cluster": "scripted", "user": "user", "namespace": namespace}}
            ],
        }
        file.write_text(yaml.safe_dump(config))
        return file

    def answer(
        self,
        request: str,
        code: int,
        reason: str = "",
        message: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        done_first: bool = False,
    ) -> None:
        """Answer the next requests that match with a failure; the arguments are those of `Answer`."""
        self._answers.append(Answer(request, code, reason, message, headers or {}, times, done_first))

    def heal(self) -> None:
        """Answer all requests as they are to be answered, from now on."""
        self._answers.clear()

    def hang(self, request: str) -> None:
        """Leave requests that match without an answer, the connection open, until `wake`."""
        self._awake = asyncio.Event()
        self._hanging = request

    def wake(self) -> None:
        """Answer again."""
        self._hanging = None
        self._loop.call_soon_threadsafe(self._awake.set)

    def cut(self) -> None:
        """Break every watch and every followed log, in the middle."""
        self._cuts += 1

    def expire_watches(self) -> None:
        """Break every watch, and answer the next from an older version with 410."""
        self.store.forget()
        self.cut()

    def log(self, namespace: str, pod: str, container: str, *texts: str, stamp: str | None = None) -> None:
        """Write lines to a container's log."""
        lines = self.logs.setdefault((namespace, pod, container), [])
        lines += [Line(stamp or now().replace("Z", f".{len(lines) + at:09d}Z"), text) for at, text in enumerate(texts)]

    def end_log(self, namespace: str, pod: str, container: str) -> None:
        """Let who follows a container's log come to its end."""
        self._ended_logs.add((namespace, pod, container))

    def asked(self, request: str) -> int:
        """How many requests matched a regular expression so far."""
        return sum(bool(re.search(request, each)) for each in self.requests)

    def run(self, started: threading.Event) -> None:
        """Work until stopped; for a thread."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    def stop(self) -> None:
        """Break every connection, and end."""
        self.wake()
        self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self, started: threading.Event) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        started.set()
        await self._stopping.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path_qs}"
        self.requests.append(asked)
        if self._hanging and re.search(self._hanging, asked):
            await self._awake.wait()
        try:
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                raise ApiError(401, "Unauthorized", "Unauthorized")
            scripted = self._scripted(asked)
            if scripted and not scripted.done_first:
                return _failure(scripted)
            done = await self._do(request)
            return _failure(scripted) if scripted else done
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)

    def _scripted(self, asked: str) -> Answer | None:
        for answer in self._answers:
            if answer.left and re.search(answer.request, asked):
                answer.left -= 1
                return answer
        return None

    async def _do(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            major, minor = self.version.lstrip("v").split(".")[:2]
            return web.json_response({"major": major, "minor": minor, "gitVersion": self.version})
        if request.path.endswith("/selfsubjectaccessreviews"):
            return web.json_response(self._review(await request.json()), status=201)
        found = _PATH.fullmatch(request.path)
        if found is None:
            if request.path == "/api/v1":
                return web.json_response(_listed("v1", _CORE))
            if request.path.startswith("/apis/"):
                return web.json_response(self._resources(request.path.removeprefix("/apis/")))
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        kind, namespace, name = (found["group"], found["plural"]), found["namespace"] or "", found["name"] or ""
        if kind[1] == "namespaces":
            namespace = ""
        if found["part"] == "log":
            return await self._log(request, (namespace, name, request.query.get("container", "")))
        if not name and request.method == "GET":
            is_watch = request.query.get("watch", "").lower() in ("true", "1")
            return await self._watch(request, kind, namespace) if is_watch else self._list(request, kind, namespace)
        body = await request.json() if request.can_read_body else {}
        return self._change(request, kind, namespace, name, body)

    def _change(self, request: web.Request, kind: Kind, namespace: str, name: str, body: Any) -> web.Response:
        if request.method == "POST":
            if request.query.get("dryRun"):
                return web.json_response(body, status=201)
            return web.json_response(self.store.create(kind, namespace, body), status=201)
        if request.method == "PATCH":
            return web.json_response(self.store.patch(kind, namespace, name, body))
        if request.method == "PUT":
            return web.json_response(self.store.patch(kind, namespace, name, body))
        if request.method == "DELETE":
            uid = ((body or {}).get("preconditions") or {}).get("uid", "")
            return web.json_response(self.store.delete(kind, namespace, name, uid))
        return web.json_response(self.store.get(kind, namespace, name))

    def _list(self, request: web.Request, kind: Kind, namespace: str) -> web.Response:
        query = request.query
        items = self.store.list(kind, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        version = {"resourceVersion": str(self.store.version)}
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": version, "items": items})

    async def _watch(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        query, store, cuts = request.query, self.store, self._cuts
        selectors = (query.get("labelSelector", ""), query.get("fieldSelector", ""))
        after = int(query.get("resourceVersion") or store.version)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if after < store.forgotten:
            error = ApiError(410, "Expired", f"too old resource version: {after} ({store.version})")
            await _send(response, "ERROR", error.status())
            return response
        ends = self._loop.time() + float(query.get("timeoutSeconds") or 3600)
        bookmarks, told = query.get("allowWatchBookmarks", "").lower() in ("true", "1"), after
        while self._loop.time() < ends and not self._stopping.is_set():
            if self._cuts > cuts:
                _break(request)
                return response
            if kind[1] in self.mute:
                await asyncio.sleep(_POLL)
                continue
            for change in store.changes(kind, namespace, *selectors, after):
                await _send(response, change.type, change.object)
                after = told = change.version
            if bookmarks and store.version > told:
                told = store.version
                await _send(response, "BOOKMARK", {"metadata": {"resourceVersion": str(told)}})
            await asyncio.sleep(_POLL)
        return response

    async def _log(self, request: web.Request, of: tuple[str, str, str]) -> web.StreamResponse:
        query, cuts, sent = request.query, self._cuts, 0
        self.store.get(("api/v1", "pods"), *of[:2])
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        since = _seconds(query["sinceTime"]) if query.get("sinceTime") else 0.0
        while True:
            has_ended = of in self._ended_logs or self._is_over(of)
            lines = [line for line in self.logs.get(of, []) if int(_seconds(line.stamp)) >= int(since)]
            for line in lines[sent:]:
                stamp = f"{line.stamp} " if query.get("timestamps", "").lower() == "true" else ""
                await response.write(f"{stamp}{line.text}\n".encode(errors="surrogateescape"))
            sent = len(lines)
            if self._cuts > cuts:
                _break(request)
                return response
            if query.get("follow", "").lower() != "true" or has_ended or self._stopping.is_set():
                return response
            await asyncio.sleep(_POLL)

    def _is_over(self, of: tuple[str, str, str]) -> bool:
        """Whether the pod of a log runs no more."""
        try:
            pod = self.store.get(("api/v1", "pods"), *of[:2])
        except ApiError:
            return True
        return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    def _review(self, body: Object) -> Object:
        attributes = body["spec"]["resourceAttributes"]
        part = f"/{attributes['subresource']}" if attributes.get("subresource") else ""
        allowed = f"{attributes['verb']} {attributes['resource']}{part}" not in self.denied
        return {**body, "status": {"allowed": allowed}}

    def _resources(self, group_version: str) -> Object:
        known = {plural: kind for plural, (group, kind) in self.custom.items() if group == group_version}
        if not known:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return _listed(group_version, known)


@contextmanager
def scripted_api(**attributes: Any) -> Iterator[KubernetesApi]:
    """Run a server for as long as the block lasts; the arguments are its attributes."""
    api, started = KubernetesApi(**attributes), threading.Event()
    thread = threading.Thread(target=api.run, args=(started,), name="kubernetes-api", daemon=True)
    thread.start()
    if not started.wait(START_SECONDS):
        raise RuntimeError(f"the scripted API server did not start within {START_SECONDS} s")
    try:
        yield api
    finally:
        api.stop()
        thread.join()


async def _send(response: web.StreamResponse, what: str, told: Object) -> None:
    await response.write(json.dumps({"type": what, "object": told}).encode() + b"\n")


def _listed(group_version: str, kinds: Mapping[str, str]) -> Object:
    verbs = ["create", "get", "list", "watch", "delete"]
    resources = [{"name": name, "kind": kind, "namespaced": True, "verbs": verbs} for name, kind in kinds.items()]
    return {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}


def _break(request: web.Request) -> None:
    if request.transport:
        request.transport.abort()


def _failure(answer: Answer) -> web.Response:
    error = ApiError(answer.code, answer.reason, answer.message)
    return web.json_response(error.status(), status=answer.code, headers=answer.headers)


def _seconds(stamp: str) -> float:
    whole, _, rest = stamp.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
