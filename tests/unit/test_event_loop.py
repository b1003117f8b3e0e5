"""A call on another thread's loop that is given up has ended what it began before its caller goes on."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from prefect_launch.core.event_loop import Background


class Worker:
    """Work that takes for ever, and some time to be put away."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.put_away = False

    async def work(self, resource: str) -> None:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            self.put_away = True


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a program in a terminal has it, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@asynccontextmanager
async def resource() -> AsyncIterator[str]:
    yield "resource"


@pytest.fixture
def background() -> Iterator[Background[str]]:
    made = Background(resource, name="of-a-test")
    yield made
    made.close()


async def upper(text: str) -> str:
    return text.upper()


async def fail(text: str) -> str:
    raise ValueError(text)


def test_call_returns_or_raises_what_the_function_does(background: Background[str]) -> None:
    assert background.call(upper) == "RESOURCE"
    with pytest.raises(ValueError, match="resource"):
        background.call(fail)


async def test_call_from_another_loop_returns_or_raises_what_the_function_does(background: Background[str]) -> None:
    assert await background.acall(upper) == "RESOURCE"
    with pytest.raises(ValueError, match="resource"):
        await background.acall(fail)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_call_has_ended_what_it_began(background: Background[str]) -> None:
    worker = Worker()

    def interrupt() -> None:
        worker.begun.wait()
        # It wakes this thread alone, as one that comes just before the main thread blocks wakes none.
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        background.call(worker.work)
    assert worker.put_away
    assert background.call(upper) == "RESOURCE"


async def test_cancelled_call_from_another_loop_has_ended_what_it_began(background: Background[str]) -> None:
    worker = Worker()
    call = asyncio.create_task(background.acall(worker.work))
    await asyncio.to_thread(worker.begun.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert worker.put_away
