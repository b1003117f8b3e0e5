"""What the unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_launch.api import use_api
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import make_api


@pytest.fixture
def job_api(tmp_path: Path) -> Iterator[InMemoryApi]:
    """A server in memory with two queues and two jobs, that `launch_add` uses inside the test."""
    with use_api(make_api(tmp_path)) as api:
        yield api
