"""Retries of `launch`: which ends bring a run back, how often, and what is refused."""

from __future__ import annotations

import logging

import pytest

from prefect_launch.direct.ending import retries_here, with_retries
from prefect_launch.errors import ExecutionError, InfrastructureError, LaunchError, SpecError
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.scheduling import DEFAULT_RETRIES, Retries

LOG = logging.getLogger("test")


class Attempts:
    """Attempts that end with these errors, then well."""

    def __init__(self, *errors: LaunchError) -> None:
        self.errors = list(errors)
        self.numbers: list[int] = []

    async def __call__(self, number: int) -> int:
        self.numbers.append(number)
        if self.errors:
            raise self.errors.pop(0)
        return number


def failed(cause: str | None = "failed") -> ExecutionError:
    return ExecutionError("It failed.\n  the last line", cause=cause)


async def test_run_is_made_again_until_it_ends_well(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(failed(), failed("oom"))
    rule = Retries.model_validate({"max": 3, "on": ["failed", "oom"], "delay": 0})
    assert await with_retries(rule, attempts, first=1, logger=LOG) == 3
    assert attempts.numbers == [1, 2, 3]
    assert [record.message for record in caplog.records] == [
        "It failed. It is run again in 0 s (retry 1 of 3).",
        "It failed. It is run again in 0 s (retry 2 of 3).",
    ]


async def test_last_failure_is_raised_when_the_rule_gives_no_more() -> None:
    attempts = Attempts(*(failed() for _ in range(5)))
    with pytest.raises(ExecutionError, match="It failed"):
        await with_retries(
            Retries.model_validate({"max": 2, "on": "failed", "delay": 0}), attempts, first=4, logger=LOG
        )
    assert attempts.numbers == [4, 5, 6]


@pytest.mark.parametrize("error", [failed(), failed(None), SpecError("wrong")])
async def test_end_that_the_rule_does_not_cover_is_raised_at_once(error: LaunchError) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await with_retries(DEFAULT_RETRIES, attempts, first=1, logger=LOG)
    assert attempts.numbers == [1]


async def test_fault_of_the_machine_comes_back_where_the_rule_names_crashed() -> None:
    attempts = Attempts(InfrastructureError("The engine is away."))
    rule = Retries.model_validate({"max": 1, "on": ["crashed"], "delay": 0})
    assert await with_retries(rule, attempts, first=1, logger=LOG) == 2


def test_spec_wins_over_the_default_and_nobody_follows_means_no_retries() -> None:
    three = LaunchSpec.model_validate({"job": "a", "retries": 3})
    assert retries_here(three, None, followed=True).max == 3
    assert retries_here(LaunchSpec(job="a"), None, followed=True) is DEFAULT_RETRIES
    assert retries_here(LaunchSpec(job="a"), None, followed=False).max == 0
    with pytest.raises(SpecError, match=r"retries \(max 3\) need somebody who sees the run's end"):
        retries_here(three, None, followed=False)
