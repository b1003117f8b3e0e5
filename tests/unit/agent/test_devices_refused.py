"""Items that do not fit on this machine, or not while somebody else's process holds a card of it."""

from __future__ import annotations

import logging

import pytest

from prefect_launch.errors import AgentConfigError
from prefect_launch.states import StateType
from prefect_launch.testing import InMemoryCards, Script
from tests.support.bench import QUEUE, Bench, eventually
from tests.support.devices import agent_of, gpus_of, now_async, running, wants

# --- what never fits ---


async def test_item_that_never_fits_fails_with_the_reason_when_there_is_no_other_agent(bench: Bench) -> None:
    (item,) = await bench.add(**wants(3))
    (small,) = await bench.add(**wants(1))
    await agent_of(bench, 2, device_patience_seconds=0.1).loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert found.message.startswith("[agent] It asks for 3 GPUs, and this agent has GPUs 0,1.")
    assert (await bench.read(small.id)).state_type is StateType.COMPLETED


async def test_item_that_never_fits_here_is_left_to_an_agent_that_can(bench: Bench) -> None:
    (item,) = await bench.add(**wants(3))
    async with bench.running(agent_of(bench, 1, name="small", device_patience_seconds=0.2)) as small:
        await bench.server.beat_worker(QUEUE, "big", 15)
        await eventually(lambda: bench.log(item), lambda log: "The agent small cannot run this" in log)
        await eventually(now_async(lambda: small.shop.desk.line.is_out_of_patience(item.id)), bool)
        assert await bench.states(item) == ["Queued"]
        async with bench.running(agent_of(bench, 4, name="big")):
            found = await bench.until(item, StateType.COMPLETED)
    assert (await bench.log(item)).count("cannot run this") == 1
    assert "agent big" in ((await bench.server.read_states(found.id))[1].message or "")


async def test_agent_that_shows_no_card_but_must_have_some_does_not_start(bench: Bench) -> None:
    with pytest.raises(AgentConfigError, match="names the GPU '2'"):
        await agent_of(bench, 2, gpus=[0, 2]).loop(until_empty=True)


async def test_agent_gives_out_only_the_cards_that_it_is_told_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with agent_of(bench, 4, gpus=[1, "GPU-00000003"]).connected() as agent:
        assert [card.index for card in agent.shop.desk.book.stock.cards] == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    async with agent_of(bench, 4).connected() as agent:
        assert [card.index for card in agent.shop.desk.book.stock.cards] == ["0", "2"]


# --- other people's processes ---


async def test_card_of_a_foreign_process_is_skipped_and_the_status_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.plays(Script(seconds=60))
    cards = InMemoryCards(2)
    cards.users = {"0": (77,)}
    (item,) = await bench.add(**wants(1))
    with caplog.at_level(logging.INFO, logger="prefect_launch.agent"):
        async with bench.running(agent_of(bench, cards)) as agent:
            await running(bench, item)
            assert gpus_of(bench, item) == ["1"]
            agent.print_status()
    assert "GPU 0 is skipped while a foreign process 77 holds it" in caplog.text
    assert f"GPU 0 skipped: it is held by a foreign process 77; GPU 1 of {str(item.id)[-8:]}" in caplog.text


async def test_item_waits_for_a_foreign_process_and_keeps_nothing_from_others(bench: Bench) -> None:
    bench.plays(Script(seconds=0.01))
    cards = InMemoryCards(2)
    cards.users = {"0": (77,)}
    (big,) = await bench.add(**wants("all"))
    small = await bench.add(3, **wants(1))
    async with bench.running(agent_of(bench, cards, device_patience_seconds=0)):
        for item in small:
            await bench.until(item, StateType.COMPLETED)
        assert await bench.states(big) == ["Queued"]
        cards.users = {}
        await bench.until(big, StateType.COMPLETED)


async def test_own_process_on_a_card_is_not_foreign(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    cards = InMemoryCards(2)
    (first,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, cards)):
        await running(bench, first)
        cards.users = {"0": (77,)}
        (second,) = await bench.add(**wants(1))
        await running(bench, second)
        assert gpus_of(bench, second) == ["1"]
