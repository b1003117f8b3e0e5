"""Macros in resource arguments are filled from a fixed list of names."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import AgentConfigError
from prefect_launch.policy.template import BUILT_IN, fill_macros, macro_values


def test_macros_are_filled_in_text_at_every_depth_and_not_in_keys() -> None:
    args = {
        "${run_id}": "x-${run_id}-${run_id}",
        "deep": [{"env": ["A=${author}"]}, ("${run_id}",)],
        "n": 3,
        "none": None,
    }

    assert fill_macros(args, {"run_id": "r1", "author": "me"}) == {
        "${run_id}": "x-r1-r1",
        "deep": [{"env": ["A=me"]}, ["r1"]],
        "n": 3,
        "none": None,
    }


def test_arguments_that_were_given_stay_as_they_are() -> None:
    args = {"a": ["${run_id}"]}
    fill_macros(args, {"run_id": "r1"})

    assert args == {"a": ["${run_id}"]}


@pytest.mark.parametrize("text", ["${nothing}", "$run_id", "${run-id}", "${ run_id }", "${}", "${run_id", "{{run_id}}"])
def test_unknown_macro_stays_as_it_is_written(text: str) -> None:
    assert fill_macros(text, {"run_id": "r1"}) == text


def test_macro_in_a_value_is_not_filled_again() -> None:
    assert fill_macros("${author}", {"author": "${run_id}", "run_id": "r1"}) == "${run_id}"


def test_agents_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("run_id", "forged")
    values = macro_values(run_id="r1", item_id="i1", attempt=1)

    assert fill_macros("${SECRET} ${run_id} ${HOME}", values) == "${SECRET} r1 ${HOME}"


def test_every_built_in_macro_has_its_value() -> None:
    values = macro_values(
        run_id="r1",
        item_id="i1",
        attempt=2,
        project_name="p",
        entity_name="e",
        run_name="n",
        image_uri="img:1",
        author="me",
        queue_name="q",
    )

    assert set(values) == set(BUILT_IN)
    assert all(values.values())
    assert fill_macros("${project_name}/${entity_name}/${attempt}/${queue_name}", values) == "p/e/2/q"


def test_macro_without_a_value_is_not_the_word_none() -> None:
    values = macro_values(run_id="r1", item_id="i1", attempt=1, run_name=None, author="")

    assert fill_macros("${run_name}${author}", values) == "${run_name}${author}"


def test_operators_own_macros_are_filled() -> None:
    values = macro_values(run_id="r1", item_id="i1", attempt=1, named={"data_dir": "/data"})

    assert fill_macros("${data_dir}/${run_id}", values) == "/data/r1"


@pytest.mark.parametrize(
    "named", [{"run_id": "x"}, {"author": "x"}, {"a b": "x"}, {"": "x"}, {"a": 1}, {"a": None}, {1: "x"}]
)
def test_operators_bad_macro_is_refused(named: dict[Any, Any]) -> None:
    with pytest.raises(AgentConfigError, match=r"[Mm]acro"):
        macro_values(run_id="r1", item_id="i1", attempt=1, named=named)
