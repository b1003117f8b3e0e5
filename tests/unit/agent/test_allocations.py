"""Device allocations: counts, ids and "all"; what fits now, later, or never; what is reserved for the next in line."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.agent.devices.allocations import (
    Allocation,
    Allocations,
    Capacity,
    Denied,
    DeviceRequest,
    Gpu,
    read_device_request,
)
from prefect_launch.errors import SpecError
from prefect_launch.runners.option_values import GpuRequest, read_gpus

GIB = 1024**3
CAPACITY = Capacity(
    gpus=tuple(Gpu(index=str(n), uuid=f"GPU-{n:08x}") for n in range(4)),
    cpus=8,
    memory=64 * GIB,
)


def wants(gpus: Any = None, **more: Any) -> DeviceRequest:
    return read_device_request({"gpus": gpus, **more})


def granted(answer: Allocation | Denied) -> tuple[str, ...]:
    assert isinstance(answer, Allocation), answer
    return answer.gpus


def refused(answer: Allocation | Denied) -> Denied:
    assert isinstance(answer, Denied), answer
    return answer


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (2, GpuRequest(count=2)),
        ("2", GpuRequest(count=2)),
        ("all", GpuRequest(all=True)),
        (-1, GpuRequest(all=True)),
        ("0,2", GpuRequest(ids=("0", "2"))),
        (["0", "2"], GpuRequest(ids=("0", "2"))),
        ([3], GpuRequest(ids=("3",))),
        ("device=3", GpuRequest(ids=("3",))),
        ("GPU-00000001", GpuRequest(ids=("GPU-00000001",))),
        (0, GpuRequest()),
        ("none", GpuRequest()),
        ([], GpuRequest()),
    ],
)
def test_gpus_are_read_as_a_count_as_ids_or_as_all(written: Any, read: GpuRequest) -> None:
    assert read_gpus(written) == read


@pytest.mark.parametrize("written", ["two", True, 1.5, -2, "0,,1", ["0", "0"], {"count": 1}, [None], "0;rm"])
def test_gpus_that_cannot_be_read_are_refused(written: Any) -> None:
    with pytest.raises(SpecError):
        wants(written)


def test_count_gets_the_first_free_cards() -> None:
    allocations = Allocations(capacity=CAPACITY).holding("a", Allocation(gpus=("0", "2")))
    assert granted(allocations.allocate(wants(2))) == ("1", "3")


def test_ids_get_these_cards_and_wait_for_them_while_another_has_one() -> None:
    allocations = Allocations(capacity=CAPACITY)
    assert granted(allocations.allocate(wants("0,2"))) == ("0", "2")
    assert granted(allocations.allocate(wants(["GPU-00000003"]))) == ("3",)
    answer = refused(allocations.holding("a", Allocation(gpus=("2",))).allocate(wants("0,2")))
    assert not answer.never
    assert "in use by other items" in answer.reason


def test_all_gets_every_card_and_waits_until_none_is_held() -> None:
    allocations = Allocations(capacity=CAPACITY)
    assert granted(allocations.allocate(wants("all"))) == ("0", "1", "2", "3")
    assert not refused(allocations.holding("a", Allocation(gpus=("3",))).allocate(wants("all"))).never


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (wants(5), "asks for 5 GPUs, and this agent has GPUs 0,1,2,3"),
        (wants("7"), "asks for 7 GPUs"),
        (wants(["7"]), "asks for the GPU '7'"),
        (wants(cpus=9), "asks for 9 CPUs, and this agent has 8"),
        (wants(memory="65g"), "asks for 65 GiB of memory, and this agent has 64 GiB"),
    ],
)
def test_what_never_fits_is_told_from_what_does_not_fit_now(asked: DeviceRequest, words: str) -> None:
    answer = refused(Allocations(capacity=CAPACITY).allocate(asked))
    assert answer.never
    assert words in answer.reason


def test_agent_without_cards_says_why_it_has_none() -> None:
    answer = refused(Allocations(capacity=Capacity(note="no driver")).allocate(wants("all")))
    assert answer.never
    assert "this agent has no GPU (no driver)" in answer.reason


def test_cpus_and_memory_are_added_up_over_those_who_hold_them() -> None:
    allocations = Allocations(capacity=CAPACITY).holding("a", Allocation(cpus=6, memory=60 * GIB))
    assert isinstance(allocations.allocate(wants(cpus=2, memory="4g")), Allocation)
    assert "2 of 8 CPUs are free; it asks for 2.5" in refused(allocations.allocate(wants(cpus=2.5))).reason
    assert "4 GiB of memory is free" in refused(allocations.allocate(wants(memory="5g"))).reason
    assert isinstance(Allocations().allocate(wants(cpus=999, memory="9t")), Allocation)  # not counted


def test_card_of_a_foreign_process_is_passed_over_and_named() -> None:
    allocations = Allocations(capacity=CAPACITY)
    assert granted(allocations.allocate(wants(2), busy={"0": "is held"})) == ("1", "2")
    answer = refused(allocations.allocate(wants(4), busy={"1": "is held by process 77"}))
    assert not answer.never
    assert "GPU 1 is held by process 77" in answer.reason


def test_what_is_kept_for_who_comes_first_is_not_given_out() -> None:
    allocations = Allocations(capacity=CAPACITY).holding("a", Allocation(gpus=("0", "1")))
    assert "kept for" in refused(allocations.allocate(wants(1), reserved=wants(3))).reason
    assert granted(allocations.allocate(wants(1), reserved=wants("0,2"))) == ("3",)  # only what it named is kept
    assert isinstance(allocations.allocate(wants(cpus=8), reserved=wants(3)), Allocation)
    assert isinstance(allocations.allocate(wants(cpus=4), reserved=wants(3, cpus=5)), Denied)


def test_grant_comes_back_from_its_label_and_nonsense_does_not() -> None:
    allocation = Allocation(gpus=("0", "3"), cpus=1.5, memory=GIB)
    assert Allocation.from_label(allocation.as_label()) == allocation
    assert Allocation.from_label("rubbish") is None
