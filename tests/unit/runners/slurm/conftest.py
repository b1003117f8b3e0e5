"""A machine whose commands of Slurm are scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.runners.slurm.site import Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:/usr/bin:/bin")
    return made
