"""A machine that has no identity in any cloud, and the clouds' services on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.clouds import FakeCloud, be_nobody


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_nobody(tmp_path, monkeypatch)


@pytest.fixture
async def cloud(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCloud]:
    async with FakeCloud() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
        cloud.trust(monkeypatch)
        yield cloud
