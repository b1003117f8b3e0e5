"""The flow `launch-sweep` as a deployment: its form is made of the arguments of `sweep_config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid, validate

from prefect_launch.server.values import SCHEDULER_FLOW

sweep: Flow[..., Any] = load_flow_from_entrypoint(f"{Path(__file__).resolve().parents[3] / 'flows' / 'sweep.py'}:sweep")
FORM: dict[str, Any] = parameter_schema(sweep.fn).model_dump_for_openapi()
GIVEN = {"config": {"method": "grid", "parameters": {"lr": {"values": [1]}}}, "queue": "gpu", "num_workers": 4}


def test_form_of_a_sweep_describes_each_of_its_fields() -> None:
    assert sweep.name == SCHEDULER_FLOW
    assert {"config", "queue", "job", "docker_image", "num_workers", "run_cap"} <= set(FORM["properties"])
    assert [name for name, field in FORM["properties"].items() if not field.get("description")] == []
    assert FORM["required"] == ["config"]
    assert is_valid(GIVEN, FORM)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_workers": 0},
        {"num_workers": "many"},
        {"num_workers": 1e9},
        {"run_cap": 0},
        {"run_cap": 1.5},
        {"queue": 3},
        {"config": "sweep.yaml"},
    ],
)
def test_form_of_a_sweep_refuses_what_no_sweep_can_have(wrong: dict[str, Any]) -> None:
    (error,) = validate({**GIVEN, **wrong}, FORM)
    assert list(error.path) == list(wrong)
