"""Locks between processes: whose they are, and that nobody waits who does not want to."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from prefect_launch.core.file_lock import locked, locked_if_free


async def test_lock_that_is_held_is_reported_at_once_and_is_free_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "made" / "one.lock"
    async with locked(file):
        with locked_if_free(file) as is_ours:
            assert not is_ours
    with locked_if_free(file) as is_ours:
        assert is_ours


async def test_lock_that_is_held_is_waited_for(tmp_path: Path) -> None:
    file, got = tmp_path / "one.lock", []

    async def wait() -> None:
        async with locked(file):
            got.append("lock")

    async with anyio.create_task_group() as group:
        with locked_if_free(file):
            group.start_soon(wait)
            await anyio.sleep(0.3)
            assert got == []
    assert got == ["lock"]


async def test_shared_lock_has_many_holders(tmp_path: Path) -> None:
    file = tmp_path / "one.lock"
    async with locked(file, shared=True), locked(file, shared=True):
        with locked_if_free(file) as is_ours:
            assert not is_ours


def test_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    file = tmp_path / "one.lock"
    code = "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(file)], check=False)

    with locked_if_free(file) as is_ours:
        assert is_ours


def test_error_of_the_block_is_not_taken_for_a_held_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="of the block"), locked_if_free(tmp_path / "one.lock"):
        raise BlockingIOError("of the block")


async def test_caller_who_is_cancelled_while_a_slow_disk_opens_the_lock_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens, may_go_on, waits = os.open, threading.Event(), asyncio.Event()
    loop, opened = asyncio.get_running_loop(), list[int]()

    def open_slowly(*arguments: Any) -> int:
        loop.call_soon_threadsafe(waits.set)
        may_go_on.wait(60)
        opened.append(opens(*arguments))
        return opened[0]

    async def hold() -> None:
        async with locked(tmp_path / "one.lock"):
            pass

    monkeypatch.setattr(os, "open", open_slowly)
    holding = asyncio.create_task(hold())
    await asyncio.wait_for(waits.wait(), 60)  # The event loop is free meanwhile.
    holding.cancel()
    loop.call_later(0.01, may_go_on.set)
    await asyncio.wait({holding})
    assert holding.cancelled()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
