"""What the Prefect server can keep and send: refused before it is written, or written as text."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from prefect_launch.client.launch_add import launch_add
from prefect_launch.core.states import StateType
from prefect_launch.core.validation import check_body, clean_json, json_fault
from prefect_launch.direct.launch import launch_flow
from prefect_launch.errors import QueueError, SpecError
from prefect_launch.jobs.model import CONFIG_INPUTS, ImageJobSource, Job, JobDocument, SourceKind
from prefect_launch.jobs.schema import plain_schema, within_64_bits
from prefect_launch.queues.deployment import deploy_job, form_schema
from prefect_launch.server.values import ItemDraft, LogRecord, State
from prefect_launch.testing import InMemoryApi
from tests.support.queue_config import make_config

SENT: list[Any] = [
    2**64 - 1,
    -(2**63),
    0,
    True,
    None,
    1e300,
    -0.0,
    "",
    "\U0001f600",
    "\\u0000",
    [],
    {},
    {"a": [{"b": None}]},
]
NOT_SENT = [
    (2**64, "x is 18446744073709551616, which Prefect's server cannot send"),
    (-(2**63) - 1, "x is -9223372036854775809, which Prefect's server cannot send"),
    (10**999, "x is an integer of about 1,000 digits, which Prefect's server cannot send"),
    (math.nan, "x is nan, which JSON does not have"),
    (-math.inf, "x is -inf, which JSON does not have"),
    ("a\0", "x holds a NUL character, which PostgreSQL does not keep"),
    ("\udc80", "x holds half of a character (a lone surrogate); write it as whole UTF-8 text"),
    ({1: "a"}, "a name in x is 1, and must be a text: quote it"),
    ({"\0": 1}, "a name in x holds a NUL character, which PostgreSQL does not keep"),
    ({"a": [0, {"b": 2**64}]}, "x.a[1].b is 18446744073709551616, which Prefect's server cannot send"),
    (b"a", "x is of the type 'bytes', which JSON does not have"),
]


@pytest.mark.parametrize("value", SENT)
def test_value_that_the_server_s_json_has_is_no_fault(value: Any) -> None:
    assert json_fault(value, "x") is None
    assert clean_json(value) == value
    orjson.dumps(value)


@pytest.mark.parametrize(("value", "fault"), NOT_SENT)
def test_value_that_the_server_s_json_lacks_is_named_with_its_place(value: Any, fault: str) -> None:
    assert json_fault(value, "x") == fault


@pytest.mark.parametrize("value", [value for value, _ in NOT_SENT])
def test_what_cannot_be_kept_is_shown_as_text(value: Any) -> None:
    shown = clean_json({"x": value})
    assert json_fault(shown) is None
    orjson.dumps(shown)


def test_value_that_refers_to_itself_is_a_fault() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    assert json_fault(endless, "x") == "x is nested more than 200 levels deep"


def test_text_is_kept_but_for_what_is_no_character() -> None:
    message = State(type=StateType.FAILED, name="Failed", message="a\0b \ud83d\ude00 \udcff.").message
    assert message == "a\ufffdb \U0001f600 \ufffd."
    assert LogRecord(message="a\0b", timestamp=datetime.now(timezone.utc)).message == "a\ufffdb"


# --- the last look at a request ---


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "a\0", {"\0": 1}])
def test_request_with_what_the_server_cannot_send_does_not_leave(value: Any) -> None:
    with pytest.raises(SpecError, match=r"What is sent to the Prefect server cannot be kept by the server: .*seed"):
        check_body(json.dumps({"parameters": {"seed": value}}).encode())


@pytest.mark.parametrize("body", [b"", b'{"seed": 18446744073709551615}', b'{"text": "00000000000000000000"}'])
def test_other_requests_leave(body: bytes) -> None:
    check_body(body)


# --- everything that takes input ---


@pytest.mark.parametrize(
    "given",
    [
        {"config": {"memory": 2**64}},
        {"config": {"memory": math.nan}},
        {"template_variables": {"seed": {"type": "integer", "default": 2**64}}},
        {"template_variables": {"seed": {"type": "integer", "maximum": 2**64}}},
        {"template_variables": [{"name": "seed", "schema": {"type": "integer", "enum": [1, -(2**64)]}}]},
        {"template_variables": {"seed": {"schema": '{"type": "integer", "default": 18446744073709551616}'}}},
    ],
)
def test_queue_is_not_made_of_what_the_server_cannot_send(given: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match="cannot be kept by the server"):
        make_config("local-process", given.get("config"), given.get("template_variables"))


def test_schema_of_a_job_with_a_default_beyond_64_bits_is_refused() -> None:
    with pytest.raises(SpecError, match=r"properties\.seed\.default is 18446744073709551616, which Prefect's server"):
        plain_schema({"properties": {"seed": {"type": "integer", "default": 2**64}}})


def test_launch_is_refused_before_there_is_a_flow_run() -> None:
    config = {"overrides": {"run_config": {"seed": 2**64}}}
    with pytest.raises(SpecError, match=r"config\.overrides\.run_config\.seed is 18446744073709551616"):
        launch_flow.serialize_parameters({"job": "digits", "config": config})


def test_numbers_of_a_form_are_bounded_by_what_the_server_can_send() -> None:
    bounds = {"minimum": -(2**63), "maximum": 2**64 - 1}
    whole = {"type": "integer"}
    assert within_64_bits(whole) == {**whole, **bounds}
    assert within_64_bits({"type": ["integer", "null"], "minimum": 0}) == {
        "type": ["integer", "null"],
        **bounds,
        "minimum": 0,
    }
    closed = {"type": "object", "additionalProperties": False}
    nested = {**closed, "properties": {"a": {"type": "array", "items": whole}, "b": {"type": "number"}}}
    properties = {"a": {"type": "array", "items": {**whole, **bounds}}, "b": {"type": "number", **bounds}}
    assert within_64_bits(nested) == {**closed, "properties": properties}
    excluded = {"enum": [1, 2], "not": {"type": "integer"}}
    assert within_64_bits(excluded) == excluded
    either = {"anyOf": [{**whole, **bounds}, {"type": "null"}]}
    assert within_64_bits({"anyOf": [whole, {"type": "null"}]}) == either


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {"properties": {"x": {}}},
        {"properties": {"x": True}},
        {"properties": {"x": {"type": ["number", "array", "object"]}}},
        {"properties": {"x": {"anyOf": [{"type": "array"}, {"type": "object"}, {"type": "number"}]}}},
        {"properties": {}, "additionalProperties": True},
        {"properties": {"y": {"type": "string"}}, "unevaluatedProperties": True},
    ],
)
def test_form_takes_no_number_beyond_64_bits_where_the_job_says_nothing_of_it(schema: dict[str, Any] | None) -> None:
    schemas = {CONFIG_INPUTS: plain_schema(schema)} if schema is not None else None
    document = JobDocument(source_type=SourceKind.IMAGE, source=ImageJobSource(image="train:1"), input_schemas=schemas)
    job = Job(entity="acme", project="digits", name="train", version=0, digest="", document=document)
    check = Draft202012Validator(form_schema(job))

    def takes(number: int) -> list[bool]:
        values: list[Any] = [number, [number], {"a": number}, [[{"a": [{"b": number}]}]]]
        return [check.is_valid({"x": value}) for value in values]

    assert takes(2**64 - 1) == takes(-(2**63)) == [True] * 4
    assert takes(2**64) == takes(-(2**63) - 1) == [False] * 4


def test_queue_s_own_deployment_takes_no_number_beyond_64_bits_and_no_unknown_option(job_api: InMemoryApi) -> None:
    queue = job_api.call(lambda session: session.queue("cpu"))
    deployment = job_api.call(lambda session: session.server.find_deployment("queue-cpu"))
    assert deployment is not None
    assert deployment.id == queue.deployment_id
    check = Draft202012Validator(deployment.parameter_openapi_schema or {})
    for number in (2**64, -(2**63) - 1, 1e20):
        for given in (
            {"run_config": {"x": number}},
            {"run_config": {"x": [{"y": number}]}},
            {"artifacts": {"x": number}},
        ):
            assert not check.is_valid({"job": "train", "overrides": given})
        assert not check.is_valid({"job": "train", "resource_args": {"local-process": {"env": {"A": number}}}})
    goods: list[dict[str, Any]] = [
        {"overrides": {"run_config": {"x": 2**64 - 1}}},
        {"timeout": "2h"},
        {"retries": 3},
        {"docker": {}},
    ]
    for good in goods:
        assert check.is_valid({"job": "train", **good})
    assert not check.is_valid({"jobb": "train"})

    draft = ItemDraft(name="x", parameters={"overrides": {"run_config": {"x": 1e20}}}, idempotency_key="x")
    with pytest.raises(SpecError, match="greater than the maximum"):
        job_api.call(lambda session: session.server.create_item(queue.deployment_id, draft))


def test_large_fraction_is_queued_by_who_checks_it_himself(job_api: InMemoryApi) -> None:
    config = {"overrides": {"run_config": {"mole": 6.022e23}}}

    item = launch_add(job="box", config=config, queue_name="gpu")

    assert item.item.parameters["overrides"]["run_config"]["mole"] == 6.022e23


def test_form_of_a_job_bounds_its_integers_and_those_of_its_resource_arguments(job_api: InMemoryApi) -> None:
    job_api.call(lambda session: deploy_job(session, "train", "cpu"))
    form = job_api.call(lambda session: session.server.find_deployment("train"))
    assert form is not None
    check = Draft202012Validator(form.parameter_openapi_schema or {})

    def is_taken(value: int) -> tuple[bool, ...]:
        options: list[dict[str, Any]] = [{"memory": value}, {"gpus": [value]}, {"env": {"A": [{"B": value}]}}]
        asked: list[dict[str, Any]] = [
            {"epochs": value},
            *({"launch": {"resource_args": {"local-process": each}}} for each in options),
        ]
        return tuple(check.is_valid({"lr": 0.1, **each}) for each in asked)

    assert is_taken(2**64 - 1) == (True,) * 4
    assert is_taken(2**64) == (False,) * 4
