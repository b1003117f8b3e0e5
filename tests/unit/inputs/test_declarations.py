"""What a job declares is checked against its schema and noted beside its outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, SecretStr

from prefect_launch.errors import InputError, LaunchError
from prefect_launch.inputs import manage_config_file, manage_wandb_config
from prefect_launch.inputs.declare import parse_paths, select
from tests.unit.inputs.conftest import Launch

CONFIG = {"lr": 0.1, "a.b": 1, "model": {"depth": 2, "width": 3}}


class Trainer(BaseModel):
    kind: Literal["sgd", "adam"] = "sgd"
    steps: int


class Config(BaseModel):
    seed: int
    trainer: Trainer
    token: SecretStr | None = None


def noted(tmp_path: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tmp_path / "out/.launch/inputs" / name).read_text())
    return loaded


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (None, None, CONFIG),
        ([], [], CONFIG),
        (["lr"], None, {"lr": 0.1}),
        (["model.depth", "lr"], None, {"lr": 0.1, "model": {"depth": 2}}),
        (["model"], ["model.depth"], {"model": {"width": 3}}),
        (["model", "model.depth"], None, {"model": {"depth": 2, "width": 3}}),
        (["lr"], ["lr"], {}),
        (None, ["model"], {"lr": 0.1, "a.b": 1}),
        (["a\\.b"], None, {"a.b": 1}),
        (["a.b"], None, {}),
        (["lr.below", "nothing.there"], None, {}),
    ],
)
def test_include_and_exclude_choose_the_inputs(
    include: list[str] | None, exclude: list[str] | None, left: dict[str, Any]
) -> None:
    assert select(CONFIG, parse_paths("include", include), parse_paths("exclude", exclude)) == left


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ["a\\", "a\\b", "a\\\\b", "\\", "a..b", "", ".a", "a.", 7, None])
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_bad_path_of_a_key_is_refused_at_once(path: Any, argument: str) -> None:
    with pytest.raises(LaunchError, match=argument):
        manage_wandb_config(**{argument: [path]})


def test_one_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"list of paths"):
        manage_wandb_config(include="lr")


def test_declared_file_is_noted_beside_the_outputs(launched: Launch, tmp_path: Path, job_dir: Path) -> None:
    (job_dir / "conf").mkdir()
    (job_dir / "conf/c.yaml").write_text("lr: .nan\nwhen: 2024-01-02\nsecret_part: 1\n")
    launched()
    manage_config_file("conf/c.yaml", exclude=["secret_part"], schema={"type": "object"})

    assert noted(tmp_path, "conf%2Fc.yaml.json") == {
        "name": "conf/c.yaml",
        "values": {"lr": "nan", "when": "2024-01-02"},
        "schema": {"type": "object"},
    }


def test_long_and_foreign_names_of_files_are_noted_too(launched: Launch, tmp_path: Path, job_dir: Path) -> None:
    name = "/".join(["日本" * 20, "x" * 200, "c.json"])
    (job_dir / name).parent.mkdir(parents=True)
    (job_dir / name).write_text("{}")
    launched()
    manage_config_file(name)

    (file,) = os.listdir(tmp_path / "out/.launch/inputs")
    assert noted(tmp_path, file)["name"] == name


def test_declared_config_is_noted_and_returned(launched: Launch, tmp_path: Path) -> None:
    launched(config=CONFIG)

    assert manage_wandb_config(include=["lr"]) == CONFIG
    assert noted(tmp_path, "@wandb.config.json") == {"name": "@wandb.config", "values": {"lr": 0.1}, "schema": None}


def test_program_that_was_not_launched_notes_and_checks_nothing(job_dir: Path) -> None:
    assert manage_wandb_config(schema=Config) == {}
    assert os.listdir(job_dir) == []


@pytest.mark.parametrize("schema", [Config, Config(seed=1, trainer=Trainer(steps=1)), Config.model_json_schema()])
def test_config_that_keeps_to_its_schema_passes(launched: Launch, schema: object) -> None:
    launched(config={"seed": 1, "trainer": {"kind": "adam", "steps": 3}})

    manage_wandb_config(schema=schema)


def test_schema_may_be_a_file(launched: Launch, job_dir: Path) -> None:
    (job_dir / "schema.json").write_text(json.dumps(Config.model_json_schema()))
    launched(config={"seed": "x", "trainer": {"steps": 3}})

    with pytest.raises(InputError, match="'seed' is 'x'"):
        manage_wandb_config(schema="schema.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 1, "trainer": {"steps": "x"}}, r"'trainer\.steps' is 'x', which breaks the rule type: \"integer\""),
        ({"seed": 1, "trainer": {"steps": 1, "kind": "lbfgs"}}, r"'trainer\.kind' is 'lbfgs'.*\[\"sgd\", \"adam\"\]"),
        ({"seed": 1, "trainer": {}}, r"'steps' is a required property at 'trainer'"),
        ({"seed": 1}, "'trainer' is a required property"),
        ({"seed": True, "trainer": {"steps": 1}}, "'seed' is True"),
        ({"seed": 1, "trainer": [1]}, "'trainer' is a list of 1 item"),
        ({"seed": "y" * 500, "trainer": {"steps": 1}}, "'seed' is 'y{79}…"),
    ],
)
def test_input_that_breaks_its_schema_is_named(launched: Launch, config: dict[str, Any], message: str) -> None:
    launched(config=config)

    with pytest.raises(InputError, match=message):
        manage_wandb_config(schema=Config)


def test_required_marked_on_the_property_is_understood(launched: Launch) -> None:
    launched(config={})
    schema = {"type": "object", "properties": {"seed": {"type": "integer", "required": True}, "x": {"required": False}}}

    with pytest.raises(InputError, match="'seed' is a required property"):
        manage_wandb_config(schema=schema)


def test_property_named_required_is_no_mark(launched: Launch) -> None:
    launched(config={"required": 1})
    manage_wandb_config(schema={"properties": {"required": {"type": "integer"}}})


def test_required_property_that_was_excluded_is_not_missed(launched: Launch) -> None:
    launched(config={"seed": 1, "trainer": {"steps": 3}})

    manage_wandb_config(exclude=["trainer.steps", "seed"], schema=Config)
    manage_wandb_config(include=["seed"], schema=Config)


@pytest.mark.parametrize("schema", [7, "missing.json", ["x"], Path("missing.json"), int])
def test_schema_that_is_none_is_refused(schema: Any) -> None:
    with pytest.raises(LaunchError, match=r"schema"):
        manage_wandb_config(schema=schema)


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"properties": {"a": {"minimum": "x"}}}, {"required": True}])
def test_invalid_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(LaunchError, match="not a valid JSON schema"):
        manage_wandb_config(schema=schema)


@pytest.mark.parametrize("reference", ["#/$defs/missing", "http://127.0.0.1:9/schema.json"])
def test_schema_that_refers_to_nothing_is_refused(launched: Launch, reference: str) -> None:
    launched(config={"a": 1})

    with pytest.raises(LaunchError, match="refers to something that it does not hold"):
        manage_wandb_config(schema={"properties": {"a": {"$ref": reference}}})


def test_schema_that_refers_to_itself_without_end_is_refused(launched: Launch) -> None:
    launched(config={})

    with pytest.raises(LaunchError, match="itself without end"):
        manage_wandb_config(schema={"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}})


def test_secret_is_neither_noted_nor_shown(launched: Launch, tmp_path: Path) -> None:
    schema = {
        "properties": {
            "key": {"type": "string", "format": "secret", "maxLength": 20},
            "keys": {"type": "array", "items": {"$ref": "#/$defs/secret"}},
            "open": {"type": "string"},
        },
        "$defs": {"secret": {"anyOf": [{"format": "secret"}, {"$ref": "#/$defs/secret"}]}},
    }
    launched(config={"key": "hunter2", "keys": ["hunter3", None], "open": "x"})
    manage_wandb_config(schema=schema)
    assert noted(tmp_path, "@wandb.config.json")["values"] == {"key": "***", "keys": ["***", None], "open": "x"}

    launched(config={"key": "hunter2" * 10})
    with pytest.raises(InputError, match="'key' is a secret value") as caught:
        manage_wandb_config(schema=schema)
    assert "hunter2" not in str(caught.value)


def test_secret_of_a_pydantic_model_is_not_noted(launched: Launch, tmp_path: Path) -> None:
    launched(config={"seed": 1, "trainer": {"steps": 1}, "token": "hunter2"})
    manage_wandb_config(schema=Config)

    assert noted(tmp_path, "@wandb.config.json")["values"]["token"] == "***"
    assert noted(tmp_path, "@wandb.config.json")["values"]["trainer"] == {"steps": 1}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"kind": "sgd", "momentum": 1}, "'part.momentum' is 1, which breaks the rule exclusiveMaximum"),
        ({"kind": "sgd", "momentun": 0.5}, "Unknown property 'momentun' at 'part'. Did you mean 'momentum'?"),
        ({"kind": "lion"}, "'part.kind' is 'lion', which breaks the rule enum"),
    ],
)
def test_value_of_a_union_is_judged_by_the_branch_that_was_meant(
    launched: Launch, part: dict[str, Any], message: str
) -> None:
    launched(config={"part": part})
    momentum = {"type": "number", "exclusiveMaximum": 1}
    branches = [
        {"properties": {"kind": {"const": "adam"}, "beta": {}}, "additionalProperties": False},
        {"properties": {"kind": {"const": "sgd"}, "momentum": momentum}, "additionalProperties": False},
    ]

    with pytest.raises(InputError, match=message):
        manage_wandb_config(schema={"properties": {"part": {"oneOf": branches}}})


def test_secret_of_an_alternative_is_not_shown(launched: Launch) -> None:
    launched(config={"seed": 1, "trainer": {"steps": 1}, "token": {"deep": "hunter2"}})

    with pytest.raises(InputError) as caught:
        manage_wandb_config(schema=Config)
    assert "hunter2" not in str(caught.value)
