"""The transport under Prefect's client, on HTTP servers on the loopback: patient with a busy one, plain about none."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio
import httpx
import pytest
from anyio.abc import SocketStream
from prefect.settings import PREFECT_API_TLS_INSECURE_SKIP_VERIFY, temporary_settings

from prefect_launch.errors import AnswerLostError, OperatorError, ServerFailedError, ServerUnavailableError
from prefect_launch.server.client import _tls
from prefect_launch.server.http import Rest, ServerTransport
from tests.support.ports import free_port
from tests.support.virtual_time import virtual_time

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

#: Answers one request (its method and path) with a status, or by `None`: the connection is cut.
Answer = Callable[[str], Awaitable[int | None]]


@asynccontextmanager
async def http_server(answer: Answer) -> AsyncIterator[str]:
    """A server that does nothing but answer; gives its address."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive()
            status = await answer(request.split(b" HTTP/")[0].decode())
            if status is not None:
                head = f"HTTP/1.1 {status} Word\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                await stream.send(head.encode())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def client_of(address: str, patience_seconds: float = 5.0, **options: float) -> AsyncIterator[httpx.AsyncClient]:
    inner = httpx.AsyncHTTPTransport()
    transport = ServerTransport(inner, address=address, patience_seconds=patience_seconds, **options)
    async with httpx.AsyncClient(base_url=address, transport=transport, timeout=10) as client:
        yield client


@asynccontextmanager
async def client_at_once(answer: Answer, patience_seconds: float = 5.0) -> AsyncIterator[httpx.AsyncClient]:
    """A client that is answered without a network, for what is about time."""

    async def answered(request: httpx.Request) -> httpx.Response:
        status = await answer(f"{request.method} {request.url.path}")
        assert status is not None
        return httpx.Response(status, json={})

    address = "http://prefect.example"
    transport = ServerTransport(httpx.MockTransport(answered), address=address, patience_seconds=patience_seconds)
    async with httpx.AsyncClient(base_url=address, transport=transport) as client:
        yield client


def one_after_another(*statuses: int | None) -> Answer:
    """Answer with these statuses, then with 200."""
    left = list(statuses)

    async def answer(_: str) -> int | None:
        return left.pop(0) if left else 200

    return answer


@pytest.mark.parametrize(
    ("path", "status", "step"),
    [("/variables/filter", 401, "PREFECT_API_AUTH_STRING"), ("/health", 404, "PREFECT_API_URL")],
)
async def test_server_that_lets_nobody_in_and_address_without_a_server_are_told_with_what_to_set(
    path: str, status: int, step: str
) -> None:
    async with http_server(one_after_another(status)) as address, client_of(address) as client:
        with pytest.raises(OperatorError, match=step) as told:
            await client.get(path)
    assert address in str(told.value)


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_busy_server_is_asked_again_well_within_a_second(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_at_once(one_after_another(status)) as client:
        with virtual_time(monkeypatch):
            started = time.monotonic()
            response = await client.post("/flow_runs/", json={})
            assert response.status_code == 200
            assert 0.0 < time.monotonic() - started < 1.0


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500])
async def test_answer_that_is_no_busy_one_is_returned_as_it_is(status: int) -> None:
    async with http_server(one_after_another(status)) as address, client_of(address) as client:
        assert (await client.get("/flow_runs/")).status_code == status


async def test_answer_that_was_lost_is_asked_for_again() -> None:
    async with http_server(one_after_another(None, None)) as address, client_of(address) as client:
        assert (await client.post("/flow_runs/", json={})).status_code == 200


async def test_silence_of_the_server_is_logged_once_until_it_has_answered_all(caplog: pytest.LogCaptureFixture) -> None:
    may_answer = {name: anyio.Event() for name in ("/one", "/two")}
    came = {name: anyio.Event() for name in may_answer}

    async def answer(request: str) -> int:
        if (path := request.split()[1]) in may_answer:
            came[path].set()
            await may_answer[path].wait()
        return 200

    def logged() -> list[str]:
        return [record.message for record in caplog.records if record.name == "prefect_launch.server.http"]

    async with http_server(answer) as address, client_of(address, silent_seconds=0.05) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for path in may_answer:
                    tasks.start_soon(client.get, path)
                for event in came.values():
                    await event.wait()
                await anyio.sleep(0.1)  # From here on both have waited for longer than 0.05 s.
                (line,) = logged()
                assert f"server at {address} has not answered GET /" in line
                await client.get("/other")
                may_answer["/one"].set()
                await client.get("/other")
                assert logged() == [line]
                may_answer["/two"].set()
            assert [each.split()[0] for each in logged()] == ["server-silent", "server-answers"]


async def test_request_that_waits_for_its_turn_is_no_silence_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    may_answer = {name: anyio.Event() for name in ("/one", "/two")}
    came = {name: anyio.Event() for name in may_answer}

    async def answer(request: str) -> int:
        path = request.split()[1]
        came[path].set()
        await may_answer[path].wait()
        return 200

    async with http_server(answer) as address, client_of(address, silent_seconds=0.05) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(client.post, "/one", json={}))
                await came["/one"].wait()
                tasks.start_soon(partial(client.post, "/two", json={}))
                await anyio.sleep(0.2)  # Longer than 0.05 s: the first is overdue, the second waits for its turn.
                assert not came["/two"].is_set()
                may_answer["/one"].set()
                await came["/two"].wait()
                # All that had been sent is answered; what waited does not count as overdue.
                logged = [record.message.split()[0] for record in caplog.records if "server-" in record.message]
                assert logged[:2] == ["server-silent", "server-answers"]
                may_answer["/two"].set()


async def test_server_that_is_not_there_is_reported_within_the_patience() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    async with client_of(address, patience_seconds=0.5) as client:
        started = time.monotonic()
        with pytest.raises(
            ServerUnavailableError, match=f"server at {address} does not answer .*'prefect server start'"
        ):
            await client.get("/health")
        assert time.monotonic() - started < 20


async def test_server_that_comes_back_within_the_patience_is_reached() -> None:
    with anyio.fail_after(20):
        async with http_server(one_after_another()) as address:
            pass
        port = int(address.rsplit(":", 1)[1])
        async with client_of(address, patience_seconds=15) as client, anyio.create_task_group() as tasks:
            answers: list[int] = []
            answered = anyio.Event()

            async def ask() -> None:
                answers.append((await client.get("/health")).status_code)
                answered.set()

            tasks.start_soon(ask)
            await anyio.sleep(0.2)
            assert answers == []
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
            async with listener, anyio.create_task_group() as serving:
                serving.start_soon(listener.serve, _say_yes)
                await answered.wait()
                serving.cancel_scope.cancel()
    assert answers == [200]


async def test_server_that_stays_busy_is_given_up_after_more_than_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(_: str) -> int:
        return 503

    async with client_at_once(busy, patience_seconds=10) as client:
        with virtual_time(monkeypatch):
            started = time.monotonic()
            with pytest.raises(ServerUnavailableError, match=r"\(busy: 503\)\. It is overloaded, .*: ask again"):
                await client.post("/flow_runs/", json={})
            assert 60 <= time.monotonic() - started < 61


async def test_writes_go_one_at_a_time_and_reads_beside_them() -> None:
    writing, most_writes, reads = 0, 0, 0
    first_write, both_reads = anyio.Event(), anyio.Event()

    async def answer(request: str) -> int:
        nonlocal writing, most_writes, reads
        if request.startswith("GET") or request.endswith("/filter"):
            reads += writing > 0
            if reads == 2:
                both_reads.set()
            return 200
        writing += 1
        most_writes = max(most_writes, writing)
        first_write.set()
        with anyio.move_on_after(5):
            await both_reads.wait()
        await anyio.sleep(0.02)
        writing -= 1
        return 200

    async with http_server(answer) as address, client_of(address) as client, anyio.create_task_group() as callers:
        for _ in range(4):
            callers.start_soon(client.post, "/flow_runs/")
            callers.start_soon(client.patch, "/flow_runs/1")
        await first_write.wait()
        callers.start_soon(client.get, "/flow_runs/1")
        callers.start_soon(client.post, "/flow_runs/filter")
    assert most_writes == 1
    assert reads == 2


async def test_write_that_waits_for_a_busy_server_lets_the_next_one_through() -> None:
    async def answer(request: str) -> int:
        return 503 if request.endswith("/stuck") else 200

    async with http_server(answer) as address, client_of(address) as client, anyio.create_task_group() as callers:
        callers.start_soon(client.post, "/stuck")
        await anyio.sleep(0.1)
        with anyio.fail_after(3):
            assert (await client.post("/other")).status_code == 200
        callers.cancel_scope.cancel()


async def _say_yes(stream: SocketStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


@pytest.mark.parametrize("path", ["/flow_runs/x/set_state", "/logs/", "/artifacts/"])
@pytest.mark.parametrize("answer", [None, 502])
async def test_request_that_would_take_effect_twice_is_not_sent_again_when_its_answer_was_lost(
    path: str, answer: int | None
) -> None:
    async with http_server(one_after_another(answer)) as address, client_of(address) as client:
        with pytest.raises(AnswerLostError, match="was lost"):
            await client.post(path, json={})


async def test_request_that_would_take_effect_twice_is_sent_again_to_a_busy_server() -> None:
    async with http_server(one_after_another(503)) as address, client_of(address) as client:
        assert (await client.post("/logs/", json=[])).status_code == 200


def test_certificates_are_loaded_once_for_all_connections_of_a_process() -> None:
    assert _tls() is _tls()
    with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
        assert _tls().verify_mode is ssl.CERT_NONE
    assert _tls().verify_mode is ssl.CERT_REQUIRED


async def test_page_of_a_proxy_in_the_place_of_an_answer_is_a_failure_that_shows_it() -> None:
    page = httpx.MockTransport(lambda request: httpx.Response(200, html="<html>Sign in</html>"))
    async with httpx.AsyncClient(base_url="http://prefect.example", transport=page) as client:
        with pytest.raises(ServerFailedError, match=r"PATCH /flow_runs/1 is no JSON .* begins with '<html>Sign in<"):
            await Rest(cast("PrefectClient", client)).get("PATCH", "/flow_runs/1", json={})
