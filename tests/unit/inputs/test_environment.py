"""A job reads the config that it was launched with."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import LaunchError
from prefect_launch.inputs import load_config, load_wandb_config
from tests.unit.inputs.conftest import Launch

NASTY: dict[str, Any] = {
    "quotes": 'it\'s "so" `x` $HOME ${x} \\n \\',
    "lines": "a\nb\r\nc\t",
    "zero": "\0",
    "text": "naïve 日本語 🚀 \u2028",
    "": None,
    "numbers": [0, -1, 1e-300, 1.5, 10**30, True, False],
    "deep": {"a": {"b": [{"c": [[[]]]}]}},
}


def test_config_comes_back_as_it_was_launched(launched: Launch) -> None:
    launched(config=NASTY)

    assert load_config() == NASTY
    assert load_wandb_config() == NASTY


@pytest.mark.parametrize("chunk_bytes", [4, 7, 64, 100_000])
def test_config_in_chunks_comes_back_as_it_was_launched(launched: Launch, chunk_bytes: int) -> None:
    launched(config=NASTY, chunk_bytes=chunk_bytes)

    assert load_config() == NASTY
    assert load_wandb_config() == NASTY


def test_more_than_ten_chunks_are_joined_by_number_and_not_by_name(launched: Launch) -> None:
    config = {"x": list(range(200))}
    launched(config=config, chunk_bytes=8)

    assert load_config() == config


def test_run_without_config_has_an_empty_one(launched: Launch) -> None:
    launched()

    assert load_config() == {}


def test_our_name_wins_over_the_wandb_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONFIG", '{"from": "wandb"}')
    assert load_config() == {"from": "wandb"}

    monkeypatch.setenv("LAUNCH_CONFIG_0", '{"from": "chu')
    monkeypatch.setenv("LAUNCH_CONFIG_1", 'nks"}')
    assert load_config() == {"from": "chunks"}

    monkeypatch.setenv("LAUNCH_CONFIG", '{"from": "launch"}')
    assert load_config() == {"from": "launch"}
    assert load_wandb_config() == {"from": "wandb"}


def test_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CONFIG", "")
    monkeypatch.setenv("WANDB_CONFIG", "{}")

    assert load_config() == {}


def test_other_variables_with_the_same_beginning_are_no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", "/somewhere")
    monkeypatch.setenv("WANDB_CONFIG_0", "{}")

    assert load_wandb_config() == {}


def test_program_that_was_not_launched_is_told_what_to_set() -> None:
    with pytest.raises(LaunchError, match=r"No WANDB_CONFIG or WANDB_CONFIG_\[0-9\]\+ environment variables found"):
        load_wandb_config()
    with pytest.raises(LaunchError, match=r"set LAUNCH_CONFIG='\{\}'"):
        load_config()


def test_missing_chunk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CONFIG_0", "{")
    monkeypatch.setenv("LAUNCH_CONFIG_2", "}")

    with pytest.raises(LaunchError, match="LAUNCH_CONFIG_1 is missing"):
        load_config()


@pytest.mark.parametrize("text", ["{", "not json", "[1]", '"x"', '{"x": NaN}', '{"x": -Infinity}', "[" * 100_000])
def test_config_that_is_no_json_object_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WANDB_CONFIG", text)

    with pytest.raises(LaunchError, match="Failed to parse WANDB_CONFIG: "):
        load_wandb_config()


def test_changing_the_config_changes_no_later_one(launched: Launch) -> None:
    launched(config={"a": {"b": 1}})
    load_config()["a"]["b"] = 2

    assert load_config() == {"a": {"b": 1}}
