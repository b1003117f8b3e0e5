"""Virtual time: the event loop's clock, and the monotonic one, jump to the next timer when there is nothing to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let minutes pass at once, and each timer be in time however slow the machine is.

    The time that threads take does not count either, so nothing inside may wait for one against the clock. After the
    block the clock goes on from there.
    """
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select, clock = selector.select, time.monotonic
    now = clock()

    def jump(timeout: float | None = None) -> Any:
        nonlocal now
        found = select(None if timeout is None else 0)
        if not found:
            now += timeout or 0.0
        return found

    with monkeypatch.context() as patch:
        patch.setattr(selector, "select", jump)
        patch.setattr(time, "monotonic", lambda: now)
        yield
    ahead = now - clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead)
