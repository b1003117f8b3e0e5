"""The retry rule of an item, as a value."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.spec.scheduling import DEFAULT_RETRIES, MAX_DELAY_SECONDS, Cause, Retries, parse_retries

IMAGE = {"docker": {"docker_image": "busybox:1"}}


def test_by_default_lost_and_preempted_work_comes_back_five_times_and_nothing_else_does() -> None:
    assert DEFAULT_RETRIES.max == 5
    assert {cause for cause in Cause if DEFAULT_RETRIES.covers(cause)} == {Cause.LOST, Cause.PREEMPTED}
    assert not DEFAULT_RETRIES.covers(None)


def test_crashed_covers_lost_and_not_out_of_memory() -> None:
    rule = Retries(on=(Cause.CRASHED,))
    assert rule.covers(Cause.LOST)
    assert not rule.covers(Cause.OOM)


def test_pause_grows_by_the_backoff_up_to_an_hour() -> None:
    rule = Retries(delay=30, backoff=2)
    assert [rule.delay_seconds(done) for done in range(4)] == [30, 60, 120, 240]
    assert rule.delay_seconds(50) == MAX_DELAY_SECONDS


def test_rule_is_kept_in_the_spec_and_read_back() -> None:
    given = {"max": 3, "on": ["crashed", "oom"], "delay": 30.0, "backoff": 3.0}
    spec = parse_spec({**IMAGE, "retries": given})
    assert spec.dump()["retries"] == given
    assert parse_spec(spec.dump()).retries == spec.retries


@pytest.mark.parametrize("number", [0, 3])
def test_number_alone_is_how_often(number: int) -> None:
    assert parse_spec({**IMAGE, "retries": number}).retries == Retries(max=number)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"maximum": 3}, "Unknown retry option 'maximum'.*max"),
        ({"on": ["crash"]}, "Unknown cause of a retry 'crash'.*crashed"),
        ({"on": [7]}, "Unknown cause of a retry '7'"),
        ({"max": -1}, "retries.max"),
        ({"max": 101}, "retries.max"),
        ({"delay": -1}, "retries.delay"),
        ({"delay": 3601}, "retries.delay"),
        ({"backoff": 0.5}, "retries.backoff"),
        ("often", "retries"),
        (True, "retries"),
    ],
)
def test_wrong_rule_is_refused_with_the_right_words(rule: Any, words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        parse_spec({**IMAGE, "retries": rule})


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1, r"Invalid --retries\.max -1: .*greater than or equal to 0.*whole number from 0 to 100, or a mapping"),
        ({"max": 500}, r"Invalid --retries\.max 500: .*less than or equal to 100"),
        ({"delay": "soon"}, r"Invalid --retries\.delay 'soon': "),
        ({"on": 3}, r"Invalid --retries\.on 3: "),
        ("often", r"Invalid --retries 'often': "),
    ],
)
def test_wrong_rule_is_refused_with_the_value_the_rule_and_an_example(value: object, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parse_retries(value, "--retries")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"maximum": 3}, "Unknown retry option 'maximum'. Did you mean 'max'?"),
        ({"on": ["fail"]}, "Unknown cause of a retry 'fail'. Did you mean 'failed'?"),
    ],
)
def test_unknown_word_in_a_rule_is_refused_with_the_nearest_one(value: object, told: str) -> None:
    with pytest.raises(NotFoundError, match=re.escape(told)):
        parse_retries(value)
