"""Work that races against events: what is left of it has ended with the block."""

from __future__ import annotations

import asyncio

import pytest

from prefect_launch.core.racing import racing


async def test_work_that_is_done_first_has_its_result_in_the_block() -> None:
    async with racing(asyncio.sleep(0, "done"), asyncio.Event()) as work:
        assert work.done()
        assert work.result() == "done"


async def test_work_that_is_left_when_an_event_is_set_has_ended_after_the_block() -> None:
    ends, event = list[str](), asyncio.Event()

    async def work_for_long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ends.append("cleaned up")

    asyncio.get_running_loop().call_later(0.01, event.set)
    async with racing(work_for_long(), asyncio.Event(), event) as work:
        assert not work.done()
    assert work.cancelled()
    assert ends == ["cleaned up"]


async def test_error_of_work_is_raised_where_its_result_is_asked_for() -> None:
    async def fails() -> None:
        raise ValueError("no")

    async with racing(fails()) as work:
        pass
    with pytest.raises(ValueError, match="no"):
        work.result()
