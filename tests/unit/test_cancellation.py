"""Work goes to its end though its caller is cancelled, and a task that is ended has ended."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from prefect_launch.core.cancellation import ended, finished


class Work:
    """Work that waits to be hurried."""

    def __init__(self) -> None:
        self.hurried = asyncio.Event()
        self.told = list[str]()

    async def run(self) -> str:
        await self.hurried.wait()
        await asyncio.sleep(0)
        self.told.append("whole")
        return "done"


async def test_work_has_its_result_and_its_error_for_its_caller() -> None:
    async def fails() -> None:
        raise ValueError("no")

    assert await finished(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="no"):
        await finished(fails())


@pytest.mark.parametrize("by_scope", [True, False], ids=["scope", "task"])
async def test_caller_that_is_cancelled_hurries_the_work_and_leaves_when_it_is_done(by_scope: bool) -> None:
    work = Work()

    async def call() -> None:
        with anyio.move_on_after(0.01 if by_scope else None):
            await finished(work.run(), hurry=work.hurried.set)

    calling = asyncio.create_task(call())
    await asyncio.sleep(0.005)
    if not by_scope:
        calling.cancel()
    await asyncio.wait({calling})
    assert (work.told, calling.cancelled()) == (["whole"], not by_scope)


async def test_work_that_does_not_end_in_time_is_cancelled() -> None:
    work = Work()
    with anyio.move_on_after(0.01):
        await finished(work.run(), seconds=0.01)
    assert work.told == []
    assert len(asyncio.all_tasks()) == 1


async def test_task_that_is_ended_has_cleaned_up_also_when_its_time_is_up() -> None:
    told = list[str]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            told.append("cleaned up")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ended(task)
    assert (told, task.cancelled()) == (["cleaned up"], True)
    await ended(task)
