"""The tests' real cluster: what the scripted API server promises is true of it, and the example's agent works in it."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from prefect.blocks.system import Secret

from prefect_launch.core.states import StateType
from prefect_launch.runners.remote.kubernetes.objects import docker_config_secret
from tests.contract.kubernetes_api_contract import SECONDS, KubernetesApiContract
from tests.support.agent_image import ensure_agent_image
from tests.support.build_image import ensure_build_image
from tests.support.builds import BuildSite
from tests.support.docker_registry import PASSWORD, USER, DockerRegistry
from tests.support.images import SHELL_IMAGE
from tests.support.kubernetes_agent import AgentInCluster, granted
from tests.support.live import Site, until
from tests.support.relay import Relay, relay_to

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.kubernetes_cluster import KubernetesCluster
    from tests.support.kubernetes_node import KubernetesNode
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine

#: A pod starts with Python, Prefect and its client of Kubernetes not yet in the disk's cache.
START_SECONDS = 300.0


@pytest.fixture(scope="module")
def node(kubernetes_cluster: KubernetesCluster) -> KubernetesNode:
    """The tests' own node."""
    if kubernetes_cluster.node is None:
        pytest.skip("the cluster is the caller's: no image can be put there, and its audit log cannot be read")
    return kubernetes_cluster.node


@pytest.fixture(scope="module")
def agent_image(node: KubernetesNode) -> str:
    """The agent's image, put there with no registry."""
    with node.client() as client:
        return ensure_agent_image(client)


@pytest.fixture
def way(node: KubernetesNode, prefect_server: PrefectServerProcess) -> Iterator[Relay]:
    """The way of the pods to the Prefect server."""
    with relay_to(prefect_server.port, node.address) as relay:
        yield relay


@pytest.fixture
def agent(kubernetes_cluster: KubernetesCluster, tmp_path: Path) -> Iterator[AgentInCluster]:
    """An agent in a namespace of the test's own, not yet put there."""
    namespace = kubernetes_cluster.create_namespace()
    home, files = tmp_path / "home", tmp_path / "kustomization"
    home.mkdir()
    home.chmod(0o777)
    files.mkdir()
    yield AgentInCluster(kubernetes_cluster, namespace, files, home)
    kubernetes_cluster.remove_namespace(namespace)


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    """A queue of the test's own."""
    name = f"{unique}-token".lower()
    Secret(value="s3cret-value").save(name)
    config = {"env": {"TOKEN": f"{{{{ prefect.blocks.secret.{name} }}}}"}}
    return Site(prefect_server.api_url, tmp_path, unique.lower(), resource="kubernetes", config=config)


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


def container(image: str, script: str) -> dict[str, object]:
    return {"docker": {"docker_image": image}, "overrides": {"entry_point": ["sh", "-c", script]}}


def test_agent_in_a_pod_runs_and_stops_jobs_with_no_right_beyond_the_examples_role(
    agent: AgentInCluster, agent_image: str, node: KubernetesNode, way: Relay, site: Site
) -> None:
    image = agent.cluster.shell_image
    script = (
        'test -n "$TOKEN" && echo "hello from $(hostname)"; echo \'{"acc": 0.5}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"'
    )
    (run,) = site.add(container(image, script))
    agent.apply(image=agent_image, api_url=way.api_url, queue=site.name, PREFECT_API_KEY="")
    until(lambda: run.item.state_type in (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED), START_SECONDS)
    assert site.states(run)[-1] == "Completed", f"{run.message}\n{agent.log()}"
    assert site.log(run).startswith("hello from launch-")
    assert any("0.5" in str(artifact.data) for artifact in site.artifacts(run))

    (stopped,) = site.add(container(image, "trap 'exit 3' TERM; echo up; while true; do sleep 0.1; done"))
    until(lambda: "up" in site.log(stopped), START_SECONDS)
    stopped.cancel()
    until(lambda: stopped.item.state_type is StateType.CANCELLED, START_SECONDS)

    used = node.rights_used(agent.namespace, "prefect-launch-agent")
    assert {right for right, codes in used.items() if codes & {401, 403}} == set()
    asked = {right for right in used if not right.resource.startswith("selfsubject")}
    assert asked <= granted()


@pytest.mark.timeout(900)
def test_run_goes_on_while_its_agents_pod_is_replaced_and_the_next_one_adopts_it(
    agent: AgentInCluster,
    agent_image: str,
    way: Relay,
    prefect_server: PrefectServerProcess,
    tmp_path: Path,
    unique: str,
) -> None:
    config = {"volumes": f"{tmp_path}:{tmp_path}", "env": {"FOLDER": str(tmp_path)}}
    site = Site(prefect_server.api_url, tmp_path, unique.lower(), resource="kubernetes", config=config)
    script = 'echo begun; while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done; echo done; exit 4'
    (run,) = site.add(container(agent.cluster.shell_image, script), retries=0)
    agent.apply(image=agent_image, api_url=way.api_url, queue=site.name, PREFECT_API_KEY="")
    until(lambda: "begun" in site.log(run), START_SECONDS)

    first = agent.pod()
    agent.replace()
    until(lambda: agent.pods() and first not in agent.pods(), START_SECONDS)
    (tmp_path / "go").touch()
    until(lambda: run.item.is_terminal, START_SECONDS)

    assert "exit code 4" in run.message, agent.log()
    assert (site.flow_run(run).run_count, site.states(run).count("Running")) == (1, 1)
    assert site.log(run).splitlines() == ["begun", "done"]


class ClusterBuilds:
    """A queue of code, and what builds its images in the cluster and pushes them to a registry with a password.

    Pods and nodes reach the registry as this machine does: builds are in the node's own network.
    """

    def __init__(self, node: KubernetesNode, registry: DockerRegistry, namespace: str, site: BuildSite) -> None:
        self.registry, self.namespace, self.site = registry, namespace, site
        self.settings: dict[str, str] = {"pull_secret": "pull"}
        self.base = f"{registry.host}/base:1"
        login = {"username": USER, "password": PASSWORD}
        with node.client() as client:
            self.image = ensure_build_image(client)
            client.images.get(SHELL_IMAGE).tag(self.base)
            assert "errorDetail" not in client.images.push(self.base, auth_config=login)

    def job(self, *steps: str) -> str:
        dockerfile = "\n".join([f"FROM {self.base}", "COPY . /workspace", "WORKDIR /workspace", *steps])
        files = {"Dockerfile.wandb": dockerfile, "main.sh": "cat made\n"}
        return self.site.code_job(files, entrypoint="sh main.sh")

    def run(self, job: str) -> QueuedRun:
        """Queue a job, and let an agent work the queue off."""
        (run,) = self.site.add(job=job)
        pod = {"hostNetwork": True, "containers": [{"name": "build", "imagePullPolicy": "Never"}]}
        builder = {
            **{"type": "kubernetes", "destination": f"{self.registry.host}/team/built", "pip_config": "none"},
            "kubernetes": {
                **{"image": self.image, "namespace": self.namespace, "spec": {"template": {"spec": pod}}},
                **self.settings,
            },
        }
        self.site.work_off(builder=builder)
        return run


@pytest.fixture
def builds(
    node: KubernetesNode,
    kubernetes_cluster: KubernetesCluster,
    prefect_server: PrefectServerProcess,
    tmp_path: Path,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ClusterBuilds]:
    """Builds in the cluster, by an agent that reaches no Docker Engine."""
    registry = DockerRegistry(tmp_path / "registry", has_password=True)
    login = tmp_path / "docker"
    login.mkdir()
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (login / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(login))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    monkeypatch.setenv("KUBECONFIG", str(kubernetes_cluster.kubeconfig))
    namespace = kubernetes_cluster.create_namespace()
    config = {"namespace": namespace, "node-registries": [registry.host]}
    secret = docker_config_secret("pull", {registry.host: {"username": USER, "password": PASSWORD}})
    kubernetes_cluster.apply({**secret, "metadata": {"name": "pull", "namespace": namespace}})
    site = BuildSite(prefect_server.api_url, tmp_path, unique.lower(), resource="kubernetes", config=config)
    yield ClusterBuilds(node, registry, namespace, site)
    kubernetes_cluster.remove_namespace(namespace)
    registry.stop()


def test_code_of_an_item_is_built_in_the_cluster_pushed_and_run_by_its_digest(
    builds: ClusterBuilds, node: KubernetesNode, kubernetes_cluster: KubernetesCluster
) -> None:
    job = builds.job("RUN echo made in the cluster > made && echo step is done")
    first = builds.run(job)
    assert first.item.state_name == "Completed", first.message
    assert "Building" in builds.site.states(first)
    assert builds.site.log(first) == "made in the cluster"
    assert "step is done" in builds.site.notes(first)
    pushed = re.search(rf"Pushed ({builds.registry.host}/team/built@sha256:\w+)", builds.site.notes(first))
    assert pushed is not None
    with node.client() as client:
        assert pushed[1] in client.images.get(pushed[1]).attrs["RepoDigests"]

    second = builds.run(job)
    assert second.item.state_name == "Completed", second.message
    assert "Building" not in builds.site.states(second)
    for kind in ("jobs", "configmaps", "secrets"):
        names = [each["metadata"]["name"] for each in kubernetes_cluster.get(kind, "-n", builds.namespace)["items"]]
        assert [name for name in names if name.startswith("launch-")] == []


def test_steps_of_a_build_in_the_cluster_do_not_find_the_login_that_pushes(builds: ClusterBuilds) -> None:
    builds.settings = {}  # The one login of the registry is that which pushes, so the base image is out of reach.
    run = builds.run(builds.job("RUN echo never run"))
    assert run.item.state_name == "Failed", run.message
    assert "authentication required" in run.message


def test_build_in_the_cluster_that_fails_is_told_with_its_step_and_last_lines(builds: ClusterBuilds) -> None:
    run = builds.run(builds.job("RUN echo about to fail; false"))
    assert run.item.state_name == "Failed"
    assert "RUN echo about to fail; false" in run.message
    assert "about to fail" in builds.site.notes(run)


def test_job_whose_pod_waits_for_what_never_comes_ends_by_its_deadline(
    builds: ClusterBuilds, kubernetes_cluster: KubernetesCluster
) -> None:
    mounts = [{"name": "context", "mountPath": "/context"}]  # A kubelet waits for no volume that is not mounted.
    container = {"name": "build", "image": builds.image, "imagePullPolicy": "Never", "volumeMounts": mounts}
    volume = {"name": "context", "configMap": {"name": "not-there"}}
    spec = {
        **{"activeDeadlineSeconds": 1, "backoffLimit": 0},
        "template": {"spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume]}},
    }
    metadata = {"name": "left", "namespace": builds.namespace}
    kubernetes_cluster.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})

    def reasons() -> list[str]:
        status = kubernetes_cluster.get("jobs", "left", "-n", builds.namespace)["status"]
        return [one["reason"] for one in status.get("conditions", ())]

    until(lambda: reasons() == ["DeadlineExceeded"], START_SECONDS)
