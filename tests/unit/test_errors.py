"""Errors for names that do not exist, and errors that are told in other words."""

from __future__ import annotations

import pytest

from prefect_launch.errors import LaunchError, nearest_name, retold, unknown_name
from prefect_launch.runners.remote.kubernetes.errors import OverloadedError
from prefect_launch.spec.launch_spec import LaunchSpec


@pytest.mark.parametrize(
    ("seen", "known", "meant"),
    [
        ("gup", ["gpu", "cpu"], "gpu"),
        ("gpu", ["gpus", "cpus"], "gpus"),
        ("memroy", ["memory", "memory-swap"], "memory"),
        ("local-contaner", ["local-container", "local-process"], "local-container"),
        ("maximum", ["max", "on"], "max"),
        ("image", ["image_uri", "job"], "image_uri"),
        ("rat", ["rate", "epochs"], "rate"),
        ("max", ["minimize", "maximize"], "maximize"),
    ],
)
def test_name_that_a_slip_makes_wrong_is_reported_with_the_right_one(seen: str, known: list[str], meant: str) -> None:
    assert nearest_name(seen, known) == meant
    assert f"Did you mean {meant!r}?" in str(unknown_name("option", seen, known))


@pytest.mark.parametrize(
    ("seen", "known"),
    [
        ("version", list(LaunchSpec.model_fields)),
        ("python", ["entry_point", "timeout"]),
        ("swap", ["memory-swap"]),
        ("train", ["digits-training", "evaluate"]),
        ("x", ["lr"]),
        ("anything", []),
        ("mini", ["minimize-later", "minimize-now"]),
    ],
)
def test_name_that_is_like_no_other_is_reported_without_a_suggestion(seen: str, known: list[str]) -> None:
    assert nearest_name(seen, known) is None
    assert "Did you mean" not in str(unknown_name("option", seen, known))


def test_error_that_is_retold_keeps_its_kind_and_all_that_it_holds() -> None:
    error = OverloadedError("ask later, s3cret", 2.5)
    with pytest.raises(LaunchError) as told:
        raise retold(error, "ask later, ***")
    assert type(told.value) is OverloadedError
    assert told.value.retry_after == 2.5
    assert str(told.value) == "ask later, ***"
    assert "s3cret" not in repr(told.value)
