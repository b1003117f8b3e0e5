"""Fixtures of the tests of SageMaker's runner: a fake account on the loopback, and runners that ask it often."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.sagemaker import aws_environment, fake_aws
from tests.unit.runners.sagemaker.world import SageMakerWorld


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SageMakerWorld]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    with fake_aws(tmp_path / "aws") as (aws, address):
        for name, value in aws_environment(address).items():
            monkeypatch.setenv(name, value)
        world = SageMakerWorld(tmp_path, aws)
        yield world
        for runner in world.runners:
            await runner.aclose()
