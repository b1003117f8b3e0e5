"""The table of extras names those of the package."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

INDEX = Path(__file__).parents[2] / "docs" / "index.md"


def test_table_of_extras_has_each_extra_of_the_package_once() -> None:
    section = INDEX.read_text().partition("## Extras")[2]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)

    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(metadata("prefect-launch").get_all("Provides-Extra") or ())
