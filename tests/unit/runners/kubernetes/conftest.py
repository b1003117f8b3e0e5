"""A scripted Kubernetes API, and a runner that speaks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi, scripted_api


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with scripted_api() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        yield server


@pytest.fixture
async def runner(server: KubernetesApi, tmp_path: Path) -> AsyncIterator[KubernetesRunner]:
    runner = KubernetesRunner(tmp_path / "home")
    yield runner
    await runner.aclose()
