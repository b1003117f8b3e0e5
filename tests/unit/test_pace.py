"""The pace of what an agent does again and again for each of many runs."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from prefect_launch.core.pace import Pace


@pytest.mark.parametrize(("runs", "seconds"), [(1, 0.5), (50, 0.5), (100, 1.0), (500, 5.0)])
def test_runs_have_their_turn_less_often_the_more_there_are(runs: int, seconds: float) -> None:
    pace = Pace(100.0)
    with ExitStack() as stack:
        for _ in range(runs):
            stack.enter_context(pace)
        assert pace.pause(0.5) == seconds
    assert pace.pause(0.5) == 0.5
