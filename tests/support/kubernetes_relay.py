"""The way to a Kubernetes API, which a test can cut, block, or make lose answers: an HTTP proxy on the loopback."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.support.ports import free_port

START_SECONDS = 30.0
_CHUNK_BYTES = 65_536
#: Headers that are of one connection only.
_OWN = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-encoding"})


class KubernetesRelay:
    """Passes requests to an API server, and answers back.

    Args:
        kubeconfig: of the server.
        folder: where its own kubeconfig is written.
        namespace: that its kubeconfig names.

    Attributes:
        kubeconfig: leads by this way.
        requests: what was asked, as "METHOD path?query", oldest first.
    """

    def __init__(self, kubeconfig: Path, folder: Path, namespace: str = "default") -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        current = config["current-context"]
        context = next(one for one in config["contexts"] if one["name"] == current)["context"]
        cluster = next(one for one in config["clusters"] if one["name"] == context["cluster"])["cluster"]
        user = next(one for one in config["users"] if one["name"] == context["user"])["user"]
        self._target, self._ssl = cluster["server"].rstrip("/"), _trust(cluster, user)
        self._port = free_port()
        own = {"server": f"http://127.0.0.1:{self._port}"}
        self.kubeconfig = folder / "kubeconfig-relay"
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    **{"apiVersion": "v1", "kind": "Config", "current-context": "relay"},
                    "clusters": [{"name": "relay", "cluster": own}],
                    "users": [{"name": "relay", "user": user}],
                    "contexts": [
                        {"name": "relay", "context": {"cluster": "relay", "user": "relay", "namespace": namespace}}
                    ],
                }
            )
        )
        self.requests: list[str] = []
        self._to_lose = 0
        self._is_away = False
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Transport] = set()
        self._stopping = asyncio.Event()

    def lose_answers(self, count: int) -> None:
        """Pass the next requests on, and break their connections in the place of an answer."""
        self._to_lose = count

    def cut(self) -> None:
        """Break every connection."""
        self._loop.call_soon_threadsafe(self._break_all)

    def go_away(self) -> None:
        """Break every connection, now and whenever one is made, until `come_back`."""
        self._is_away = True
        self.cut()

    def come_back(self) -> None:
        """Pass everything on again."""
        self._is_away = False

    def run(self, started: threading.Event) -> None:
        """Work until stopped; for a thread."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    def stop(self) -> None:
        """Break every connection, and end."""
        self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self, started: threading.Event) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        connector = aiohttp.TCPConnector(ssl=self._ssl, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._client:
            started.set()
            await self._stopping.wait()
            self._break_all()
            await runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _break_all(self) -> None:
        for transport in self._open:
            transport.abort()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        if self._is_away:
            transport.abort()
            return web.Response()
        self.requests.append(f"{request.method} {request.path_qs}")
        self._open.add(transport)
        try:
            return await self._answer(request, transport)
        except (aiohttp.ClientError, ConnectionError):
            transport.abort()
            return web.Response()
        finally:
            self._open.discard(transport)

    async def _answer(self, request: web.Request, transport: asyncio.Transport) -> web.StreamResponse:
        loses = self._to_lose > 0
        self._to_lose = max(0, self._to_lose - 1)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._client.request(
            request.method,
            self._target + request.path_qs,
            headers=headers,
            data=await request.read(),
            timeout=timeout,
        ) as answer:
            if loses:
                transport.abort()
                return web.Response()
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


def _trust(cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=_file(cluster, "certificate-authority"))
    if certificate := _file(user, "client-certificate"):
        trust.load_cert_chain(certificate, _file(user, "client-key"))
    return trust


def _file(part: dict[str, Any], name: str) -> str | None:
    if data := part.get(f"{name}-data"):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(base64.b64decode(data))
            return file.name
    found: str | None = part.get(name)
    return found


@contextmanager
def kubernetes_relay(kubeconfig: Path, folder: Path, namespace: str = "default") -> Iterator[KubernetesRelay]:
    """Run a relay for as long as the block lasts; the arguments are its own."""
    relay, started = KubernetesRelay(kubeconfig, folder, namespace), threading.Event()
    thread = threading.Thread(target=relay.run, args=(started,), name="kubernetes-relay", daemon=True)
    thread.start()
    if not started.wait(START_SECONDS):
        raise RuntimeError(f"the relay did not start within {START_SECONDS} s")
    try:
        yield relay
    finally:
        relay.stop()
        thread.join()
