"""What the tests of sources share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.git_repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one commit."""
    made = Repository(tmp_path / "remote")
    made.commit(main="print('one')")
    return made
