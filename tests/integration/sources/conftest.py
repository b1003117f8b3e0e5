"""Git hosts on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.git_server import GitServer

PASSWORD = "s3cret-token-0123456789"


@pytest.fixture
def git_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    """A host that asks for a password; git here trusts its certificate, and has no other settings."""
    host = GitServer(tmp_path / "host", password=PASSWORD)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(host.certificate))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    yield host
    host.stop()
