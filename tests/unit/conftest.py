"""What the unit tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_launch.client.api import use_api
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import make_api


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command sets up for its process, or tests after it would find no log line."""
    loggers = [logging.getLogger(name) for name in ("prefect_launch", "prefect.launch", None)]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def job_api(tmp_path: Path) -> Iterator[InMemoryApi]:
    """A server in memory with two queues and two jobs, that `launch_add` uses inside the test."""
    with use_api(make_api(tmp_path)) as api:
        yield api
