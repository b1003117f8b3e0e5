"""Jobs on a real Kubernetes: the contract of runners, and what only a cluster does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from prefect_launch.testing.runner_contract import MISSING, RemoteRunnerContract
from tests.support.kubernetes_cluster import KubernetesCluster
from tests.support.kubernetes_relay import KubernetesRelay, kubernetes_relay

pytestmark = pytest.mark.engine


class KubernetesWorld:
    """One namespace of a cluster, by a way that can break.

    Args:
        cluster: that it is of.
        relay: the way.
        namespace: its own.
        folder: for homes and runs.
    """

    def __init__(self, cluster: KubernetesCluster, relay: KubernetesRelay, namespace: str, folder: Path) -> None:
        self.cluster, self.relay, self.namespace, self._folder = cluster, relay, namespace, folder
        self._runners: list[KubernetesRunner] = []

    def runner(self) -> KubernetesRunner:
        runner = KubernetesRunner(self._folder / "home")
        self._runners.append(runner)
        return runner

    def plan(
        self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None, **more: Any
    ) -> RunPlan:
        item = str(uuid4())
        run_dir = self._folder / item
        run_dir.mkdir()
        labels = {Labels.ITEM: item, Labels.ATTEMPT: "1", Labels.CLAIM: "first", Labels.AGENT: "box of a test"}
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            image=self.cluster.shell_image,
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            labels=labels,
            **more,
        )

    def fill(self) -> None:
        self.cluster.cordon()

    def free(self) -> None:
        self.cluster.uncordon()

    def lose_answers(self, count: int) -> None:
        self.relay.lose_answers(count)

    async def clear(self) -> None:
        """End what still runs."""
        for runner in self._runners:
            await runner.aclose()
        self.cluster.kubectl("delete", "jobs", "--all", "--wait=false", "-n", self.namespace)


@pytest.fixture(scope="module")
def namespace(kubernetes_cluster: KubernetesCluster) -> Iterator[str]:
    """A namespace of these tests."""
    name = kubernetes_cluster.create_namespace()
    yield name
    kubernetes_cluster.remove_namespace(name)


@pytest.fixture
async def world(
    kubernetes_cluster: KubernetesCluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesWorld]:
    """The namespace, as agents reach it."""
    with kubernetes_relay(kubernetes_cluster.kubeconfig, tmp_path, namespace) as relay:
        monkeypatch.setenv("KUBECONFIG", str(relay.kubeconfig))
        world = KubernetesWorld(kubernetes_cluster, relay, namespace, tmp_path)
        yield world
        kubernetes_cluster.uncordon()
        await world.clear()


class TestKubernetesContract(RemoteRunnerContract):
    """A run is a batch Job."""

    limit_seconds: ClassVar[float] = 120.0
    stop_margin_seconds: ClassVar[float] = 60.0
    short_seconds: ClassVar[int] = 3
    starts_at_once: ClassVar[bool] = False
