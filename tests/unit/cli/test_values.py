"""What people write on a command line, and what it means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefect_launch.cli.options import nested, read_mapping, read_retries, split_assignment, typed
from prefect_launch.errors import SpecError


def test_mapping_is_read_from_json_yaml_and_files_alike(tmp_path: Path) -> None:
    wanted = {"job": "train", "overrides": {"run_config": {"lr": 0.1}}}
    json_file, yaml_file = tmp_path / "config.json", tmp_path / "config.yaml"
    json_file.write_text(json.dumps(wanted))
    yaml_file.write_text("job: train\noverrides:\n  run_config: {lr: 0.1}\n")

    for given in (json.dumps(wanted), yaml_file.read_text(), str(json_file), str(yaml_file)):
        assert read_mapping(given, "--config") == wanted


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ('{"lr": NaN}', "NaN"),
        ('{"lr": -Infinity}', "Infinity"),
        ("[1, 2]", "mapping"),
        ("17", "mapping"),
        ("nofile.json", "neither a file"),
        ('{"a": [1', "neither JSON nor YAML"),
        ("", "mapping"),
        ("x" * 5000, "neither a file"),
    ],
)
def test_config_that_is_no_mapping_is_refused_in_one_line(given: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as refused:
        read_mapping(given, "--config")

    assert "\n" not in str(refused.value)
    assert "--config" in str(refused.value)


def test_json_file_with_a_fault_is_not_taken_for_yaml(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("job: train\n")

    with pytest.raises(SpecError, match="is no JSON"):
        read_mapping(str(file), "--config")


def test_value_of_an_assignment_may_hold_equal_signs() -> None:
    assert split_assignment("query=a=1&b=2", "--set") == ("query", "a=1&b=2")
    assert split_assignment("empty=", "--set") == ("empty", "")


@pytest.mark.parametrize("text", ["lr", "=3", " =3", ""])
def test_assignment_without_name_or_equal_sign_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="NAME=VALUE"):
        split_assignment(text, "--set")


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("1.10", {"type": "string"}, "1.10"),
        ('"quoted"', {"type": "string"}, '"quoted"'),
        ("true", {"type": "string"}, "true"),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("5", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "5"),
        ("3", {"type": "integer"}, 3),
        ("1e-3", {"type": "number"}, 0.001),
        (".5", {"type": "number"}, 0.5),
        ("abc", {"type": "number"}, "abc"),
        ("NaN", {"type": "number"}, "NaN"),
        ("True", {"type": "boolean"}, True),
        ("1", {"type": "boolean"}, 1),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("2", {"enum": [1, 2]}, 2),
        ("2", {"type": ["integer", "string"]}, 2),
        ("two", {"type": ["integer", "string"]}, "two"),
        ("2", None, 2),
        ("two words", None, "two words"),
        ('"2"', None, "2"),
    ],
)
def test_schema_says_what_a_text_means(text: str, schema: dict[str, object] | None, value: object) -> None:
    found = typed(text, schema)

    assert found == value
    assert type(found) is type(value)


def test_dots_lead_into_groups_unless_an_input_has_them_in_its_name() -> None:
    schema = {
        "properties": {
            "optimizer": {"type": "object", "properties": {"name": {"type": "string"}, "lr": {"type": "number"}}},
            "data.path": {"type": "string"},
        }
    }

    inputs = nested([("optimizer.name", "1"), ("optimizer.lr", "1"), ("data.path", "1"), ("free.deep.x", "1")], schema)

    assert inputs == {"optimizer": {"name": "1", "lr": 1}, "data.path": "1", "free": {"deep": {"x": 1}}}


@pytest.mark.parametrize("name", ["a..b", ".a", "a."])
def test_input_with_an_empty_part_in_its_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"Invalid input name .* a part of it is empty"):
        nested([(name, "1")], None)


def test_input_that_is_both_value_and_group_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'a\.b' is set in 'a'"):
        nested([("a", "1"), ("a.b", "2")], None)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("3", {"max": 3}),
        ('{"max": 3, "on": ["failed"]}', {"max": 3, "on": ["failed"]}),
        ("{on: oom, delay: 5}", {"on": ["oom"], "delay": 5.0}),
    ],
)
def test_retries_are_a_number_or_a_mapping(given: str, rule: dict[str, object]) -> None:
    assert read_retries(given) == rule


@pytest.mark.parametrize("given", ["-1", "101", "often", "[3]", '{"max": "many"}'])
def test_retries_that_are_no_rule_are_refused(given: str) -> None:
    with pytest.raises(SpecError, match="--retries"):
        read_retries(given)
