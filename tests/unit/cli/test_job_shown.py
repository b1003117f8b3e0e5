"""Jobs as the command line shows them."""

from __future__ import annotations

from prefect_launch.cli.job import input_rows


def test_input_is_shown_with_its_meaning_and_its_rules_in_words() -> None:
    rate = {"type": "number", "default": 0.1, "description": "Step size.", "exclusiveMinimum": 0, "maximum": 1}
    kind = {"type": "string", "enum": ["cosine", "linear"]}
    schema = {"properties": {"lr": rate, "schedule": {"properties": {"kind": kind}, "required": ["kind"]}, "free": {}}}

    assert list(input_rows(schema)) == [
        ("lr", "number", "0.1", "Step size; at most 1; above 0"),
        ("schedule.kind", "string", "required", "one of cosine, linear"),
        ("free", "any", "", ""),
    ]
