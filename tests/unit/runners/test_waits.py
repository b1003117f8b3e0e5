"""Waits of runners: one that is cancelled in the moment in which it is woken ends."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from prefect_launch.runners.docker.client import Waiter
from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.poller import StatusPoller


async def test_wait_for_a_container_that_is_cancelled_as_it_is_woken_ends() -> None:
    waiter = Waiter(asyncio.get_running_loop())
    waiting = asyncio.create_task(waiter.wait(60))
    await asyncio.sleep(0.01)
    waiter.wake()
    asyncio.get_running_loop().call_soon(waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.timeout(60)
async def test_poller_that_is_closed_as_it_is_woken_ends_though_jobs_are_followed() -> None:
    polls = 0

    async def poll(handles: Collection[str]) -> Mapping[str, RemoteStatus]:
        nonlocal polls
        polls += 1
        return {handle: RemoteStatus(state=RemoteState.RUNNING) for handle in handles}

    poller = StatusPoller("cluster", poll, 60.0, 0.0, least_seconds=0.001)
    with poller.follow("job"):
        for _ in range(20):  # The moment must be that of the wait between two polls.
            before = polls
            poller.wake()
            while polls == before:  # noqa: ASYNC110 - the loop has no event of its own for that
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            poller.wake()
            await poller.aclose()
            with poller.follow("job"):
                pass
        await poller.aclose()
