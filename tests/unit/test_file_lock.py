"""Locks between processes: whose they are, and that nobody waits who does not want to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
