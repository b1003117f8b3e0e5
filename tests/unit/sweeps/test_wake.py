"""When a sweep's scheduler reads its items again."""

from __future__ import annotations

import asyncio

from prefect_launch.sweeps.wake import Wake

LONG = 3600.0
PATIENCE_SECONDS = 120.0


async def waited(wake: Wake) -> bool:
    """Whether the next look comes by itself."""
    await asyncio.wait_for(wake.wait(), PATIENCE_SECONDS)
    return True


async def test_look_comes_by_the_clock_when_nothing_is_told() -> None:
    assert await waited(Wake(0.01))


async def test_end_that_the_look_does_not_show_yet_is_looked_for_again_until_it_does() -> None:
    wake = Wake(LONG)
    wake.at_end_of("a")
    assert await waited(wake)
    for _ in range(2):
        wake.begin_look()
        wake.note_ended({"b"})
        assert await waited(wake), "the server commits an end after its event"
    wake.begin_look()
    wake.note_ended({"a", "b"})
    waiting = asyncio.ensure_future(wake.wait())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    wake.now()
    await asyncio.wait_for(waiting, PATIENCE_SECONDS)


async def test_end_during_a_look_is_not_lost() -> None:
    wake = Wake(LONG)
    wake.begin_look()
    wake.at_end_of("a")
    wake.note_ended({"a"})
    assert await waited(wake)


async def test_other_changes_are_looked_at_together_in_a_moment() -> None:
    wake = Wake(LONG)
    wake.begin_look()
    wake.soon()
    wake.soon()
    assert await waited(wake)
    wake.begin_look()
    wake.soon()
    wake.begin_look()
    waiting = asyncio.ensure_future(wake.wait())
    await asyncio.sleep(1.3)
    assert not waiting.done(), "the look has seen that change"
    waiting.cancel()
