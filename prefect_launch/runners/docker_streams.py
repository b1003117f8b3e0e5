"""The streams of the `docker` package, log and events, with our errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefect_launch.runners.engine import LogStream


class EngineLogStream(LogStream):
    """The package's stream, with our errors. None stands for a container that is gone."""

    def __init__(self, stream: Any, errors: Callable[[], Any]) -> None:
        self._stream = stream
        self._errors = errors

    def __iter__(self) -> Iterator[bytes]:
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
