"""The way into a cluster: an exec plugin of a kubeconfig, and the service account of a pod."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes_asyncio.config import incluster_config

from prefect_launch.errors import AgentConfigError
from prefect_launch.runners.remote.kubernetes import login
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient
from tests.support.kubernetes_api import KubernetesApi, scripted_api


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    """A scripted server."""
    with scripted_api() as api:
        yield api


async def test_token_of_an_exec_plugin_is_asked_for_again_when_it_has_expired(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig, token = api.write_kubeconfig(tmp_path / "kubeconfig"), tmp_path / "token"
    version = "client.authentication.k8s.io/v1beta1"
    answer = (
        f"{{'apiVersion': {version!r}, 'kind': 'ExecCredential', 'status': {{'token': open({str(token)!r}).read()}}}}"
    )
    program = f"import json; print(json.dumps({answer}))"
    config = yaml.safe_load(kubeconfig.read_text())
    plugin = {"apiVersion": version, "command": sys.executable, "args": ["-c", program]}
    config["users"][0]["user"] = {"exec": plugin}
    kubeconfig.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    client = KubernetesClient()
    token.write_text(api.token)
    assert await client.version() == (1, 34)
    api.token = "renewed"
    token.write_text(api.token)
    assert await client.version() == (1, 34)
    await client.aclose()


async def test_agent_in_a_pod_takes_the_account_and_namespace_of_its_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("token", "of the pod"), ("ca.crt", "an authority"), ("namespace", "ml\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(login, "_POD_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = await login.load_login()
    assert (found.host, found.namespace, found.authorization) == ("https://10.0.0.1:443", "ml", "Bearer of the pod")
    # Its runs name its cluster, whatever kubeconfig an agent of its home has later.
    (tmp_path / "none").write_text("clusters: []")
    assert (await login.load_login(found.context)).identity == found.identity


async def test_kubeconfig_that_is_no_kubeconfig_is_told_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text("clusters: 3")
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(AgentConfigError, match=f"The kubeconfig {file} cannot be used"):
        await login.load_login()
