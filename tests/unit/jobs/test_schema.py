"""Input schemas: where they come from, what is refused, and how inputs are held against them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from prefect_launch.errors import InputError, SpecError
from prefect_launch.jobs.schema import check_inputs, load_schema

MODULE = """
print("imported")
from pydantic import BaseModel, Field

class Inputs(BaseModel):
    rate: float = Field(0.1, gt=0, le=1)
    epochs: int

SCHEMA = {"type": "object", "properties": {"rate": {"type": "number", "default": 0.5}}}
number = 3
"""


class Optimizer(BaseModel):
    name: Literal["sgd", "adam"] = "adam"
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Inputs(BaseModel):
    rate: float = Field(default=0.1, gt=0, le=1)
    epochs: int = Field(ge=1, le=100)
    optimizer: Optimizer = Optimizer()
    note: str | None = None


async def _schema(raw: Any) -> dict[str, Any]:
    return await load_schema(raw)


async def test_pydantic_class_and_instance_give_a_schema_without_references() -> None:
    for source in (Inputs, Inputs(epochs=3)):
        schema = await load_schema(source)

        assert "$ref" not in json.dumps(schema)
        assert schema["properties"]["optimizer"]["properties"]["name"]["enum"] == ["sgd", "adam"]
        assert schema["required"] == ["epochs"]


async def test_class_in_the_code_folder_is_imported_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(MODULE)
    before = list(sys.path)

    schema = await load_schema("train:Inputs", folder=tmp_path)
    plain = await load_schema("train:SCHEMA", folder=tmp_path)

    assert schema["properties"]["rate"]["exclusiveMinimum"] == 0
    assert plain["properties"]["rate"]["default"] == 0.5
    assert sys.path == before
    assert "train" not in sys.modules
    assert os.listdir(tmp_path) == ["train.py"]


async def test_class_that_takes_too_long_to_import_has_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "import sys, time; print('waiting for the data', file=sys.stderr, flush=True); time.sleep(300)"
    (tmp_path / "slow.py").write_text(words)
    monkeypatch.setattr("prefect_launch.jobs.schema_class._TIMEOUT_SECONDS", 3.0)
    with pytest.raises(SpecError, match=r"took more than 3 s: waiting for the data\."):
        await load_schema("slow:Inputs", folder=tmp_path)


async def test_class_that_cannot_be_imported_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")

    for source, reason in (
        ("missing:Inputs", "No module named 'missing'"),
        ("broken:Inputs", "nothing_of_that_name"),
        ("train:Input", "no attribute 'Input'"),
        ("train:number", "neither a pydantic class nor a dict"),
        ("train.py", "neither a file"),
        ("train:", "neither a file"),
        ("a b:c", "neither a file"),
    ):
        with pytest.raises(SpecError, match=reason):
            await load_schema(source, folder=tmp_path)


async def test_schema_file_is_found_here_or_in_the_code_folder(tmp_path: Path) -> None:
    schema = {"properties": {"rate": {"type": "number"}}}
    (tmp_path / "inputs.json").write_text(json.dumps(schema))
    (tmp_path / "inputs.yaml").write_text("properties: {rate: {type: number}}")

    for source in (tmp_path / "inputs.json", "inputs.json", "inputs.yaml"):
        assert (await load_schema(source, folder=tmp_path))["properties"] == schema["properties"]
    with pytest.raises(SpecError, match=r"'other.json' does not exist"):
        await load_schema("other.json", folder=tmp_path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"type": "array"}, "must describe an object"),
        ({"properties": {"a": {"type": "float"}}}, "no valid JSON schema: at properties/a/type"),
        ({"properties": {"a": {"type": "integer", "default": "x"}}}, "the default of 'a', 'x', breaks its own rule"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "which is not in it"),
        ({"properties": {"a": {"$ref": "#/$defs/Missing"}}}, "which is not in it"),
        (
            {"$defs": {"T": {"properties": {"t": {"$ref": "#/$defs/T"}}}}, "properties": {"t": {"$ref": "#/$defs/T"}}},
            "refers to itself",
        ),
        (
            {"properties": {"a": {"type": "number", "default": [float("nan")]}}},
            r"default\[0\] is nan, which JSON does not",
        ),
        ({"properties": {"a": {"enum": {1, 2}}}}, "enum is of the type 'set', which JSON does not"),
        (3, "must be a JSON schema"),
        ([1], "must be a JSON schema"),
    ],
)
async def test_schema_that_cannot_be_used_is_refused_with_its_place(raw: Any, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        await load_schema(raw)


async def test_reference_systems_required_flag_becomes_the_standards_list() -> None:
    schema = await _schema({"properties": {"a": {"type": "integer", "required": True}, "b": {"required": False}}})

    assert schema["required"] == ["a"]
    with pytest.raises(InputError, match="'a' is required"):
        check_inputs(schema, {})


async def test_given_schema_is_not_changed() -> None:
    raw = {"properties": {"a": {"allOf": [{"$ref": "#/$defs/A"}]}}, "$defs": {"A": {"properties": {}}}}
    before = json.dumps(raw)

    schema = await load_schema(raw)

    assert json.dumps(raw) == before
    assert schema["properties"]["a"] == {"properties": {}, "additionalProperties": False}


async def test_defaults_are_filled_in_at_every_depth() -> None:
    schema = await load_schema(Inputs)

    assert check_inputs(schema, {"epochs": 3}) == {
        "epochs": 3,
        "rate": 0.1,
        "optimizer": {"name": "adam", "momentum": 0.9},
        "note": None,
    }
    assert check_inputs(schema, {"epochs": 3, "optimizer": {"name": "sgd"}})["optimizer"]["momentum"] == 0.9


async def test_group_that_nobody_gave_is_not_made_up_when_something_in_it_is_required() -> None:
    group = {"properties": {"a": {"default": 1}, "b": {}}, "required": ["b"]}
    schema = await _schema({"properties": {"group": group}})

    assert check_inputs(schema, {}) == {}


async def test_inputs_given_are_not_changed() -> None:
    schema, inputs = await load_schema(Inputs), {"epochs": 3, "optimizer": {}}

    check_inputs(schema, inputs)

    assert inputs == {"epochs": 3, "optimizer": {}}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "The input 'epochs' is required and has no default"),
        ({"epochs": "3"}, "The input 'epochs' is '3': it must be of type integer"),
        ({"epochs": True}, "The input 'epochs' is True: it must be of type integer"),
        ({"epochs": 0}, "The input 'epochs' is 0: it must be at least 1"),
        ({"epochs": 1000}, "it must be at most 100"),
        ({"epochs": 3, "rate": 0}, "The input 'rate' is 0: it must be greater than 0"),
        (
            {"epochs": 3, "optimizer": {"name": "lion"}},
            r"is 'lion': it must be one of \['sgd', 'adam'\]",
        ),
        ({"epochs": 3, "optimizer": 5}, "The input 'optimizer' is 5: it must be of type object"),
        ({"epochs": 3, "rat": 1}, "Unknown input 'rat'. Did you mean 'rate'"),
        (
            {"epochs": 3, "optimizer": {"momentun": 1}},
            "'optimizer.momentun'. Did you mean 'optimizer.momentum'",
        ),
    ],
)
async def test_wrong_input_is_named_with_its_value_and_its_rule(inputs: dict[str, Any], message: str) -> None:
    schema = await load_schema(Inputs)

    with pytest.raises(InputError, match=message):
        check_inputs(schema, inputs)


class Adam(BaseModel):
    kind: Literal["adam"] = "adam"
    beta: float = 0.9


class Sgd(BaseModel):
    kind: Literal["sgd", "asgd"]
    momentum: float = Field(default=0.0, ge=0, lt=1)


class Tree(BaseModel):
    depth: int = Field(ge=1)


class Forest(BaseModel):
    trees: int
    leaves: int | None = None


class Unions(BaseModel):
    tagged: Adam | Sgd = Field(default=Adam(), discriminator="kind")
    told_apart: Adam | Sgd | None = None
    untagged: Tree | Forest | None = None
    several: list[Tree | Forest] = []
    named: dict[str, Adam | Sgd] = {}
    ratio: int | list[float] = 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"tagged": {"kind": "sgd", "momentum": 1}}, "'tagged.momentum' is 1: it must be less than 1"),
        ({"tagged": {"kind": "sgd", "momentun": 0.5}}, "'tagged.momentun'. Did you mean 'tagged.momentum'?"),
        ({"tagged": {"kind": "lion"}}, r"'tagged.kind' is 'lion': it must be one of \['adam', 'sgd', 'asgd'\]"),
        ({"tagged": {"momentum": 0.5}}, "'tagged.kind' is required"),
        ({"tagged": "sgd"}, "'tagged' is 'sgd': it must be of type object"),
        ({"told_apart": {"kind": "asgd", "momentum": -1}}, "'told_apart.momentum' is -1: it must be at least 0"),
        ({"untagged": {"depth": 0}}, "'untagged.depth' is 0: it must be at least 1"),
        ({"untagged": {"trees": 1, "leafs": 2}}, "'untagged.leafs'. Did you mean 'untagged.leaves'?"),
        ({"untagged": 3}, "'untagged' is 3: it must be of type object or null"),
        ({"several": [{"depth": 1}, {"trees": "x"}]}, r"'several\[1\].trees' is 'x': it must be of type integer"),
        ({"named": {"a": {"kind": "sgd", "momentum": "x"}}}, "'named.a.momentum' is 'x': it must be of type number"),
        ({"ratio": [1, "x"]}, r"'ratio\[1\]' is 'x': it must be of type number"),
        ({"ratio": "x"}, "'ratio' is 'x': it must be of type integer or array"),
    ],
)
async def test_wrong_input_of_a_union_is_judged_by_the_branch_that_was_meant(
    inputs: dict[str, Any], message: str
) -> None:
    schema = await load_schema(Unions)

    with pytest.raises(InputError, match=message):
        check_inputs(schema, inputs)
    assert check_inputs(schema, {"tagged": {"kind": "sgd", "momentum": 0.5}})["tagged"]["momentum"] == 0.5


async def test_open_schema_takes_any_input_and_a_job_without_schema_too() -> None:
    schema = await _schema({"properties": {"a": {}}, "additionalProperties": True})

    assert check_inputs(schema, {"b": 1}) == {"b": 1}
    assert check_inputs(None, {"b": 1}) == {"b": 1}


async def test_object_without_listed_properties_stays_open() -> None:
    schema = await _schema({"properties": {"extra": {"type": "object"}}})

    assert check_inputs(schema, {"extra": {"anything": [1]}}) == {"extra": {"anything": [1]}}


async def test_object_described_in_parts_is_not_closed() -> None:
    parts: dict[str, Any] = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    schema = await _schema({"properties": {"both": parts}})

    assert check_inputs(schema, {"both": {"a": 1, "b": 2}}) == {"both": {"a": 1, "b": 2}}
