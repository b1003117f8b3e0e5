"""The streams of the `docker` package, log and events, with our errors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from docker.types.daemon import CancellableStream

from prefect_launch.runners.docker.engine import LogPiece, LogStream

#: Before each piece of a log: of which stream it is, and how long.
_HEADER: Final = struct.Struct(">BxxxL")
_ERROR: Final = 2


def open_log(client: Any, container_id: str, since: int, *, follow: bool) -> CancellableStream:
    """Open a container's log, as the package's `logs` does, but with the stream that each piece is of.

    Args:
        client: the package's.
        container_id: of the container.
        since: seconds since 1970; 0 is the whole log.
        follow: go on until the container ends.
    """
    wanted = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow), "tail": "all", "since": since}
    address = client._url("/containers/{0}/logs", container_id)
    response = client._get(address, params={name: value for name, value in wanted.items() if value}, stream=True)
    client._raise_for_status(response)
    return CancellableStream(_pieces(client, response), response)


def _pieces(client: Any, response: Any) -> Iterator[LogPiece]:
    client._disable_socket_timeout(client._get_raw_response_socket(response))
    while header := response.raw.read(_HEADER.size):
        stream, length = _HEADER.unpack(header)
        content = response.raw.read(length) if length else b""
        if content:
            yield LogPiece(content, stream == _ERROR)


class EngineLogStream(LogStream):
    """The package's stream, with our errors. None stands for a container that is gone."""

    def __init__(self, stream: Any, errors: Callable[[], Any]) -> None:
        self._stream = stream
        self._errors = errors

    def __iter__(self) -> Iterator[LogPiece]:
        if self._stream is not None:
            with self._errors():
                yield from self._stream

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class EngineEventStream:
    """The package's event stream, with our errors."""

    def __init__(self, stream: Any, errors: Callable[[], Any]) -> None:
        self._stream = stream
        self._errors = errors

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        with self._errors():
            yield from self._stream

    def close(self) -> None:
        """End the stream from another thread."""
        self._stream.close()
