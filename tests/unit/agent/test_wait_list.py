"""The line of those who wait for devices: patience, order, and who is not bound by it."""

from __future__ import annotations

from uuid import UUID

from prefect_launch.agent.devices.allocations import DeviceRequest, read_device_request
from prefect_launch.agent.devices.wait_list import DeviceWaitList

BIG, SMALL, OTHER = (UUID(int=n) for n in range(1, 4))
HIGH, USUAL = 2, 3


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def always(_: DeviceRequest) -> bool:
    return True


def wants(gpus: int) -> DeviceRequest:
    return read_device_request({"gpus": gpus})


def line_of(clock: Clock, patience: float = 30) -> DeviceWaitList:
    return DeviceWaitList(patience, now=clock)


def test_nothing_is_kept_before_patience_has_run_out() -> None:
    clock = Clock()
    line = line_of(clock)
    assert line.wait(BIG, "gpu", wants(4), USUAL, "busy")
    clock.time = 29
    assert line.reserved_from(SMALL, USUAL, always) is None
    clock.time = 30
    assert line.reserved_from(SMALL, USUAL, always) == wants(4)


def test_patience_runs_from_the_first_time_it_did_not_fit() -> None:
    clock = Clock()
    line = line_of(clock)
    line.wait(BIG, "gpu", wants(4), USUAL, "busy")
    clock.time = 25
    assert not line.wait(BIG, "gpu", wants(4), USUAL, "still busy")
    clock.time = 31
    assert line.since(BIG) == 0


def test_head_of_the_line_and_more_urgent_items_are_not_bound() -> None:
    line = line_of(Clock(), patience=0)
    line.wait(BIG, "gpu", wants(4), USUAL, "busy")
    assert line.reserved_from(BIG, USUAL, always) is None
    assert line.reserved_from(SMALL, HIGH, always) is None
    assert line.reserved_from(SMALL, USUAL, always) == wants(4)


def test_most_urgent_then_longest_waiting_is_the_head() -> None:
    clock = Clock()
    line = line_of(clock, patience=0)
    line.wait(BIG, "gpu", wants(4), USUAL, "busy")
    clock.time = 1
    line.wait(OTHER, "gpu", wants(3), USUAL, "busy")
    assert line.reserved_from(SMALL, USUAL, always) == wants(4)
    line.wait(SMALL, "gpu", wants(2), HIGH, "busy")
    assert line.reserved_from(BIG, USUAL, always) == wants(2)


def test_nothing_is_kept_for_an_item_that_is_gone_or_waits_for_a_foreign_process() -> None:
    line = line_of(Clock(), patience=0)
    line.wait(BIG, "gpu", wants(4), USUAL, "busy")
    assert line.reserved_from(SMALL, USUAL, lambda request: False) is None
    line.sync_waiting("other", [])
    assert line.reserved_from(SMALL, USUAL, always) == wants(4)
    line.sync_waiting("gpu", [SMALL])
    assert line.reserved_from(SMALL, USUAL, always) is None
    assert line.waiting == []


def test_item_whose_queue_was_paused_keeps_its_place_for_a_while() -> None:
    clock = Clock()
    line = line_of(clock)
    line.wait(BIG, "gpu", wants(4), USUAL, "busy")
    line.sync_waiting("gpu", [])
    clock.time = 100
    line.sync_waiting("gpu", [BIG])
    assert line.since(BIG) == 0
    line.sync_waiting("gpu", [])
    clock.time = 1000
    line.sync_waiting("gpu", [])
    assert line.since(BIG) is None
