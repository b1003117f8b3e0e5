"""Connections of the client to the server: a burst of requests leaves few of them open."""

from __future__ import annotations

import asyncio

from prefect_launch.server.client import connect
from tests.support.bench import eventually

_BURST = 12


async def test_burst_of_requests_leaves_few_connections_open() -> None:
    open_now: set[asyncio.StreamWriter] = set()
    most, all_are_in = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        open_now.add(writer)
        most = max(most, len(open_now))
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"/variables/" in head:
                    if len(open_now) == _BURST:
                        all_are_in.set()
                    await all_are_in.wait()
                body = b'{"value": 1}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n" + body)
        except asyncio.IncompleteReadError:  # It was closed.
            pass
        finally:
            open_now.discard(writer)
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connect(f"http://127.0.0.1:{port}/api") as client:
        found = await asyncio.gather(*[client.read_variable(f"v{number}") for number in range(_BURST)])
        assert found == [1] * _BURST

        async def count() -> int:
            return len(open_now)

        assert await eventually(count, lambda left: left <= 4) > 0
    assert most == _BURST
