"""A line to a server on the loopback that can be cut or held in the middle of what a client sends."""

from __future__ import annotations

import asyncio
from contextlib import suppress

_PIECE_BYTES = 16_384


class BadLine:
    """Passes bytes on, until told otherwise. Use it as an async context manager.

    Args:
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._sent = 0
        self._cut_after: int | None = None
        self._hold_after: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.reached = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self.host = ""

    def cut_after(self, count: int) -> None:
        """Cut the connection over which the client has sent so many bytes more, once."""
        self._cut_after = self._sent + count

    def hold_after(self, count: int) -> None:
        """Pass nothing on once the client has sent so many bytes more; `reached` is set then."""
        self._hold_after = self._sent + count

    def let_go(self) -> None:
        """Pass everything on again."""
        self._hold_after = None
        self._free.set()

    async def __aenter__(self) -> BadLine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._pass(far_reader, writer, counts=False))
        try:
            await self._pass(reader, far_writer, counts=True)
        finally:
            back.cancel()
            for end in (writer, far_writer):
                end.close()
            await asyncio.gather(back, return_exceptions=True)
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(_PIECE_BYTES):
                if counts and await self._is_cut(len(piece)):
                    return
                writer.write(piece)
                await writer.drain()

    async def _is_cut(self, size: int) -> bool:
        self._sent += size
        if self._hold_after is not None and self._sent > self._hold_after:
            self._free.clear()
            self.reached.set()
        await self._free.wait()
        if self._cut_after is not None and self._sent > self._cut_after:
            self._cut_after = None
            self.reached.set()
            return True
        return False
