"""Options of `local-process`: each with values that it takes, and values that are none."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.runners.process.runner import OPTIONS, LocalProcessRunner
from prefect_launch.spec.option_names import normalise_option

VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "cpus": ([0.5, "64"], [0, -1, "inf", "nan", "x", True, [1]]),
    "env": ([{"A": "1"}, ["A=1"]], [["A"], {"": "1"}, {"A=": "1"}, {"A": None}, 3]),
    "gpus": (["all", 2, ["0"], "device=0,1", 0], ["0,,1", "two", True, 10**30, ["0", "0"], {"count": 1}]),
    "memory": (["1k", 0, "1.5g"], [-1, "much", "9" * 400 + "g", "16e", ["1g"], "1g\n;"]),
    "nice": ([0, 19, "5"], [-1, 20, "x", 1.5, True, "1; id"]),
}


def test_table_of_values_has_every_option() -> None:
    assert VALUES.keys() == {normalise_option(option) for option in OPTIONS}


@pytest.mark.parametrize(("option", "value"), [(option, one) for option, (good, _) in VALUES.items() for one in good])
def test_good_value_of_each_option_is_taken(option: str, value: Any) -> None:
    assert option in LocalProcessRunner.check_options({option: value})


@pytest.mark.parametrize(("option", "value"), [(option, one) for option, (_, bad) in VALUES.items() for one in bad])
def test_value_that_is_none_is_refused_at_the_queue(option: str, value: Any) -> None:
    with pytest.raises(SpecError):
        LocalProcessRunner.check_options({option: value})
