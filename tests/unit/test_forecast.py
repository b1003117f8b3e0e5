"""When a waiting item will about start: the line played through, slot by slot."""

from __future__ import annotations

import pytest

from prefect_launch.queues.wait_reason import Past, seconds_until_start


@pytest.mark.parametrize(
    ("ahead", "running", "slots", "seconds"),
    [
        (0, [], 1, 0.0),  # a free slot
        (0, [40.0], 1, 60.0),  # behind what runs
        (0, [40.0], 2, 0.0),
        (2, [40.0], 1, 260.0),  # two whole runs more
        (3, [40.0, 90.0], 2, 160.0),  # slots end at 10 and 60; the three before it take them at 10, 60 and 110
        (0, [10.0, 50.0, 90.0], 2, 50.0),  # the limit was lowered: the first end frees no slot
        (7, [1.0], None, 0.0),  # no limit
        (0, [500.0], 1, 10.0),  # over its time: soon
    ],
)
def test_item_starts_when_those_before_it_have_had_their_turns(
    ahead: int, running: list[float], slots: int | None, seconds: float
) -> None:
    assert seconds_until_start(ahead=ahead, running=running, slots=slots, typical=100.0) == pytest.approx(seconds)


def test_past_runs_say_how_many_they_are_and_of_what() -> None:
    assert Past(seconds=(1.0, 9.0, 2.0), job="train").describe() == "3 past runs of train"
    assert Past(seconds=(1.0, 9.0, 2.0)).typical_seconds == 2.0
    assert Past(seconds=(1.0,)).describe() == "1 past run of the queue"
