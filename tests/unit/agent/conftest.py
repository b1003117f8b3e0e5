"""What the tests of the agent share: a queue on an in-memory server, and agents on an in-memory machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A queue `gpu` of containers, a machine, and agents on it."""
    return Bench(tmp_path)
