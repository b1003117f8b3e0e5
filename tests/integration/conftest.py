"""Fixtures that only integration tests share; servers, engine and images are in `tests/conftest.py`."""

from __future__ import annotations

from uuid import uuid4

import pytest


@pytest.fixture
def unique() -> str:
    """A short name that no other test uses: tests share a server, so queues, jobs and containers need names apart."""
    return f"t-{uuid4().hex[:8]}"
