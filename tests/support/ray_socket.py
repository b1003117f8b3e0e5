"""Program in the Ray head's network: passes connections to a socket on to its dashboard. Standard library only."""

from __future__ import annotations

import asyncio
import sys

PORT = 8265


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there_reader, there = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, there), _copy(there_reader, writer))


async def _main(path: str) -> None:
    server = await asyncio.start_unix_server(_serve, path)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
