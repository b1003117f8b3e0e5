"""The tests' real cluster: what the scripted API server promises is true of its own."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.contract.kubernetes_api_contract import SECONDS, KubernetesApiContract

if TYPE_CHECKING:
    from tests.support.kubernetes_cluster import KubernetesCluster
    from tests.support.kubernetes_node import KubernetesNode

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def node(kubernetes_cluster: KubernetesCluster) -> KubernetesNode:
    """The tests' own node."""
    if kubernetes_cluster.node is None:
        pytest.skip("the cluster is the caller's: no image can be put there, and its audit log cannot be read")
    return kubernetes_cluster.node


class TestRealKubernetes(KubernetesApiContract):
    """What the scripted API promises is true of the real one."""

    @pytest.fixture
    def namespace(self, kubernetes_cluster: KubernetesCluster) -> Iterator[str]:
        name = kubernetes_cluster.create_namespace()
        yield name
        kubernetes_cluster.remove_namespace(name)

    @pytest.fixture
    def api(self, node: KubernetesNode) -> Iterator[httpx.Client]:
        trust = ssl.create_default_context(cafile=str(node.authority))
        login = {"Authorization": f"Bearer {node.token}"}
        with httpx.Client(base_url=f"https://{node.address}", headers=login, verify=trust, timeout=SECONDS) as client:
            yield client
