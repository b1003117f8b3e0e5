"""The way to a server, which a test can cut, block, or make lose answers: a TCP relay on a port of its own."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.ports import free_port

_REQUEST = re.compile(rb"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/1\.1\r\n")
_CHUNK_BYTES = 65_536


@dataclass
class Relay:
    """Passes bytes to a server and back.

    Attributes:
        target: port of the server on the loopback, or the path of its socket.
        port: its own.
        host: address of this machine that it listens on.
        lost: the requests whose answers it has lost, as "METHOD path", oldest first.
        refused: those that a busy server has answered with 503, likewise.
        passed: how many requests it has passed on.
    """

    target: int | str
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    passed: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._to_lose: dict[str, int] = {}

    @property
    def api_url(self) -> str:
        """Address of the server's API by this way."""
        return f"http://{self.host}:{self.port}/api"

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._refusing = True
        self._loop.call_soon_threadsafe(self._break_all)

    def block(self) -> None:
        """Pass nothing on, and let every connection stand."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """Pass everything on again."""
        self._refusing = False
        self._loop.call_soon_threadsafe(self._open.set)

    def lose_answers(self, path_end: str, count: int) -> None:
        """Break the connection, once the server has answered it, of each of the next requests that change something.

        Args:
            path_end: end of their paths.
            count: how many.
        """
        self._to_lose[path_end] = count

    def run(self) -> None:
        """Work until stopped; for a thread."""
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, self.host, self.port))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def stop(self) -> None:
        """Break every connection, and end."""
        self._loop.call_soon_threadsafe(self._break_all)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self._refusing:
                await self._relay(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self.target, str):
            there_reader, there = await asyncio.open_unix_connection(self.target)
        else:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(there)
        asked = [""]
        ways = [
            asyncio.ensure_future(self._pass_requests(reader, there, asked)),
            asyncio.ensure_future(self._pass_answers(there_reader, writer, asked)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            there.transport.abort()
            self._writers.discard(there)

    async def _pass_requests(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if request := _REQUEST.match(data):
                asked[0] = f"{request['method'].decode()} {request['path'].decode()}"
                self.passed += 1
            await self._open.wait()
            there.write(data)
            await there.drain()

    async def _pass_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self._is_to_lose(asked[0]):
                self.lost.append(asked[0])
                return
            if data.startswith(b"HTTP/1.1 503"):
                self.refused.append(asked[0])
            await self._open.wait()
            writer.write(data)
            await writer.drain()

    def _is_to_lose(self, request: str) -> bool:
        for path_end, left in self._to_lose.items():
            if left and not request.startswith("GET ") and request.endswith(path_end):
                self._to_lose[path_end] -= 1
                return True
        return False


@contextmanager
def relay_to(target: int | str, host: str = "127.0.0.1") -> Iterator[Relay]:
    """Run a relay to a server for as long as the block lasts."""
    relay = Relay(target, host=host)
    thread = threading.Thread(target=relay.run, name="relay", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.mend()
        relay.stop()
        thread.join()
