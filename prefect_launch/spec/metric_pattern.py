"""Metric pattern: a metric that is read from a run's log by a regular expression, for code that nobody may edit."""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prefect_launch.inputs.metrics import MAX_NAME_CHARS, STEP

_MAX_PATTERN_CHARS: Final = 500


def check_pattern(pattern: str) -> str:
    """Return a metric's regular expression as it is.

    Raises:
        ValueError: when it is none, or has not one group.
    """
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    if groups != 1:
        raise ValueError(
            f"it has {groups} groups, and must have one, around the number, as in 'loss: ([0-9.e+-]+)'; (?:…)"
            " groups without counting"
        )
    return pattern


class MetricPattern(BaseModel):
    """A metric, and how its values stand in the log.

    The steps are counted, from 0: each line in which the expression is found is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description="The metric's name.")
    pattern: str = Field(
        min_length=1,
        max_length=_MAX_PATTERN_CHARS,
        description="A regular expression; its one group is the number, as in 'loss: ([0-9.e+-]+)'.",
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value.isprintable() or value == STEP:
            raise ValueError(f"it must be printable, and not {STEP!r}")
        return value

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        return check_pattern(value)
