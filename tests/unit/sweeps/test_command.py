"""The command of a trial: macros where they stand, and parameters as arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_launch.errors import LaunchError, SpecError
from prefect_launch.sweeps.command import ArgsStyle, trial_arguments
from prefect_launch.sweeps.config import SweepConfig, parse_sweep

PARAMS: dict[str, Any] = {"amp": True, "cache": False, "lr": 1e-05, "name": "a b", "none": None, "o": {"k": [1, 2]}}


def sweep(*command: str, **more: Any) -> SweepConfig:
    given = {"method": "random", "parameters": {"x": {"value": 1}}, **more}
    return parse_sweep({**given, "command": list(command)} if command else given)


def words(*command: str, params: dict[str, Any] | None = None, **variables: str) -> list[str]:
    config = sweep(*command, program="src/train.py")
    found: list[str] = config.trial_overrides(params or {"lr": 0.1, "n": 3}, variables)["entry_point"]
    return found


def test_every_macro_is_filled_in_where_it_stands_and_every_word_around_is_kept() -> None:
    filled = words("${env}", "${interpreter}", "-u", "${program}", "train", "${args}", "--seed", "1", "${args_json}")

    assert filled == [
        *("/usr/bin/env", "python", "-u", "src/train.py", "train", "--lr=0.1", "--n=3", "--seed", "1"),
        '{"lr": 0.1, "n": 3}',
    ]


def test_two_macros_for_arguments_are_both_filled_in() -> None:
    assert words("a", "${args_no_hyphens}", "--", "${args_no_equals}") == [
        *("a", "lr=0.1", "n=3", "--", "--lr", "0.1", "--n", "3"),
    ]


@pytest.mark.parametrize(
    ("macro", "expected"),
    [
        ("args", ["--amp=True", "--cache=False", "--lr=1e-05", "--name=a b", "--none=None", "--o={'k': [1, 2]}"]),
        ("args_no_hyphens", ["amp=True", "cache=False", "lr=1e-05", "name=a b", "none=None", "o={'k': [1, 2]}"]),
        ("args_no_boolean_flags", ["--amp", "--lr=1e-05", "--name=a b", "--none=None", "--o={'k': [1, 2]}"]),
        (
            "args_append_hydra",
            ["+amp=True", "+cache=False", "+lr=1e-05", "+name=a b", "+none=None", "+o={'k': [1, 2]}"],
        ),
        (
            "args_override_hydra",
            ["++amp=True", "++cache=False", "++lr=1e-05", "++name=a b", "++none=None", "++o={'k': [1, 2]}"],
        ),
    ],
)
def test_arguments_are_written_as_wandb_writes_them(macro: str, expected: list[str]) -> None:
    assert words(f"${{{macro}}}", params=PARAMS) == expected


def test_variable_is_filled_in_inside_a_word_and_its_value_is_no_macro() -> None:
    assert words("--data=${envvar:DATA}/${program}", DATA="${args}") == ["--data=${args}/src/train.py"]


def test_variable_that_the_command_may_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")

    with pytest.raises(SpecError, match=r"'SECRET', which it may not read\. Allowed: DATA\.") as refusal:
        words("${envvar:SECRET}", DATA="d")
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("${arg}", "Unknown macro 'arg'.*Did you mean 'args'"),
        ("${lr}", r"Unknown macro 'lr'.*by \$\{args\}"),
        ("${}", "Unknown macro ''"),
        ("--x=${args}", "make it a word of its own"),
        ("${args_json_file}", r"Use \$\{args_json\}"),
        ("${envvar:}", "name a variable"),
        ("${envvar:A B}", "name a variable"),
        ("${program}", "there is no program"),
    ],
)
def test_macro_without_a_meaning_is_refused_when_the_file_is_read(word: str, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        sweep("python", word)


def test_words_that_only_look_like_macros_are_kept() -> None:
    assert words("$HOME", "{lr}", "$", "${", "}", "$(date)", "$$") == ["$HOME", "{lr}", "$", "${", "}", "$(date)", "$$"]


def test_job_without_command_gets_inputs_and_arguments_when_it_asks_for_them() -> None:
    assert sweep().trial_overrides({"x": 1}, {}) == {"run_config": {"x": 1}}
    assert sweep(args="hyphens").trial_overrides({"x": 1}, {}) == {"run_config": {"x": 1}, "args": ["--x=1"]}
    assert sweep("python").trial_overrides({"x": 1}, {}) == {"run_config": {"x": 1}, "entry_point": ["python"]}


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("hyphens", ["--amp=True", "--cache=False", "--lr=1e-05", "--name=a b", "--none=None", "--o={'k': [1, 2]}"]),
        ("no_hyphens", ["amp=True", "cache=False", "lr=1e-05", "name=a b", "none=None", "o={'k': [1, 2]}"]),
        ("json", [json.dumps(PARAMS)]),
        ("hydra", ["amp=true", "cache=false", "lr=1e-05", "name='a b'", "none=null", "o.k=[1,2]"]),
    ],
)
def test_styles_of_arguments_are_those_of_argparse_json_and_hydra(style: ArgsStyle, expected: list[str]) -> None:
    assert trial_arguments(PARAMS, style) == expected
