"""Backoff: pauses that grow, differ a little, and begin anew after a success."""

from __future__ import annotations

from prefect_launch.core.backoff import Backoff


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    pauses = Backoff(1.0, 5.0)
    turns = [1.0, 2.0, 4.0, 5.0, 5.0]

    assert all(0.75 * turn <= pauses.next() <= turn for turn in turns)
    pauses.reset()
    assert pauses.next() <= 1.0


def test_callers_that_failed_together_do_not_come_back_together() -> None:
    assert len({Backoff(1.0, 5.0).next() for _ in range(20)}) > 10
