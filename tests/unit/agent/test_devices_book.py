"""The book of devices: counts, ids and "all"; what fits now, later, or never; what is kept for who comes first."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.agent.devices.allocations import Book, Card, Grant, Refusal, Stock
from prefect_launch.agent.devices.request import Ask, read_ask
from prefect_launch.errors import SpecError
from prefect_launch.runners.gpu_option import GpuAsk, read_gpus

GIB = 1024**3
STOCK = Stock(
    cards=tuple(Card(index=str(n), uuid=f"GPU-{n:08x}") for n in range(4)),
    cpus=8,
    memory=64 * GIB,
)


def wants(gpus: Any = None, **more: Any) -> Ask:
    return read_ask({"gpus": gpus, **more})


def granted(answer: Grant | Refusal) -> tuple[str, ...]:
    assert isinstance(answer, Grant), answer
    return answer.gpus


def refused(answer: Grant | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (2, GpuAsk(count=2)),
        ("2", GpuAsk(count=2)),
        ("all", GpuAsk(all=True)),
        (-1, GpuAsk(all=True)),
        ("0,2", GpuAsk(ids=("0", "2"))),
        (["0", "2"], GpuAsk(ids=("0", "2"))),
        ([3], GpuAsk(ids=("3",))),
        ("device=3", GpuAsk(ids=("3",))),
        ("GPU-00000001", GpuAsk(ids=("GPU-00000001",))),
        (0, GpuAsk()),
        ("none", GpuAsk()),
        ([], GpuAsk()),
    ],
)
def test_gpus_are_read_as_a_count_as_ids_or_as_all(written: Any, read: GpuAsk) -> None:
    assert read_gpus(written) == read


@pytest.mark.parametrize("written", ["two", True, 1.5, -2, "0,,1", ["0", "0"], {"count": 1}, [None], "0;rm"])
def test_gpus_that_cannot_be_read_are_refused(written: Any) -> None:
    with pytest.raises(SpecError):
        wants(written)


def test_count_gets_the_first_free_cards() -> None:
    book = Book(stock=STOCK).holding("a", Grant(gpus=("0", "2")))
    assert granted(book.ask(wants(2))) == ("1", "3")


def test_ids_get_these_cards_and_wait_for_them_while_another_has_one() -> None:
    book = Book(stock=STOCK)
    assert granted(book.ask(wants("0,2"))) == ("0", "2")
    assert granted(book.ask(wants(["GPU-00000003"]))) == ("3",)
    answer = refused(book.holding("a", Grant(gpus=("2",))).ask(wants("0,2")))
    assert not answer.never
    assert "in use by other items" in answer.reason


def test_all_gets_every_card_and_waits_until_none_is_held() -> None:
    book = Book(stock=STOCK)
    assert granted(book.ask(wants("all"))) == ("0", "1", "2", "3")
    assert not refused(book.holding("a", Grant(gpus=("3",))).ask(wants("all"))).never


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (wants(5), "asks for 5 GPUs, and this agent has GPUs 0,1,2,3"),
        (wants("7"), "asks for 7 GPUs"),
        (wants(["7"]), "asks for the GPU '7'"),
        (wants(cpus=9), "asks for 9 CPUs, and this agent has 8"),
        (wants(memory="65g"), "asks for 65 GiB of memory, and this agent has 64 GiB"),
    ],
)
def test_what_never_fits_is_told_from_what_does_not_fit_now(ask: Ask, words: str) -> None:
    answer = refused(Book(stock=STOCK).ask(ask))
    assert answer.never
    assert words in answer.reason


def test_agent_without_cards_says_why_it_has_none() -> None:
    answer = refused(Book(stock=Stock(note="no driver")).ask(wants("all")))
    assert answer.never
    assert "this agent has no GPU (no driver)" in answer.reason


def test_cpus_and_memory_are_added_up_over_those_who_hold_them() -> None:
    book = Book(stock=STOCK).holding("a", Grant(cpus=6, memory=60 * GIB))
    assert isinstance(book.ask(wants(cpus=2, memory="4g")), Grant)
    assert "2 of 8 CPUs are free; it asks for 2.5" in refused(book.ask(wants(cpus=2.5))).reason
    assert "4 GiB of memory is free" in refused(book.ask(wants(memory="5g"))).reason
    assert isinstance(Book().ask(wants(cpus=999, memory="9t")), Grant)  # not counted


def test_card_of_a_foreign_process_is_passed_over_and_named() -> None:
    book = Book(stock=STOCK)
    assert granted(book.ask(wants(2), busy={"0": "is held"})) == ("1", "2")
    answer = refused(book.ask(wants(4), busy={"1": "is held by process 77"}))
    assert not answer.never
    assert "GPU 1 is held by process 77" in answer.reason


def test_what_is_kept_for_who_comes_first_is_not_given_out() -> None:
    book = Book(stock=STOCK).holding("a", Grant(gpus=("0", "1")))
    assert "kept for" in refused(book.ask(wants(1), reserved=wants(3))).reason
    assert granted(book.ask(wants(1), reserved=wants("0,2"))) == ("3",)  # only what it named is kept
    assert isinstance(book.ask(wants(cpus=8), reserved=wants(3)), Grant)
    assert isinstance(book.ask(wants(cpus=4), reserved=wants(3, cpus=5)), Refusal)


def test_grant_comes_back_from_its_label_and_nonsense_does_not() -> None:
    grant = Grant(gpus=("0", "3"), cpus=1.5, memory=GIB)
    assert Grant.from_label(grant.as_label()) == grant
    assert Grant.from_label("rubbish") is None
