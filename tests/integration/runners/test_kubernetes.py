"""Jobs on a real Kubernetes: the contract of runners, and what only a cluster does."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import pytest
import yaml

from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.masking import Mask
from prefect_launch.core.output_limits import OUTPUTS_FILE
from prefect_launch.errors import QueueError, UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan, RunState
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.kubernetes.holding import HOLD
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from prefect_launch.testing.runner_contract import MISSING, ExecContract, RemoteRunnerContract, run
from tests.support.engine_cases import EngineContract, EnginePlace
from tests.support.kubernetes_cluster import KubernetesCluster, wait_until
from tests.support.kubernetes_relay import KubernetesRelay, kubernetes_relay

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess
from tests.support.training_operator import TrainingOperator

pytestmark = pytest.mark.engine

#: For a hang: a busy machine may take most of it.
LIMIT_SECONDS = 120.0


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
        self,
        script: str,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        image: str = "",
        **more: Any,
    ) -> RunPlan:
        item = str(uuid4())
        run_dir = self._folder / item
        run_dir.mkdir()
        labels = {Labels.ITEM: item, Labels.ATTEMPT: "1", Labels.CLAIM: "first", Labels.AGENT: "box of a test"}
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            image=image or self.cluster.shell_image,
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

    def owned(self, kind: str, plan: RunPlan) -> list[Any]:
        """Objects of a kind that belong to a run."""
        found: list[Any] = self.cluster.get(kind, "-n", self.namespace, "-l", f"{Labels.ITEM}={plan.item_id}")["items"]
        return found

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


class TestKubernetesExec(ExecContract):
    """kubectl upgrades its connection, which the relay does not pass on."""

    @pytest.fixture
    def world(self, world: KubernetesWorld, monkeypatch: pytest.MonkeyPatch) -> KubernetesWorld:
        monkeypatch.setenv("KUBECONFIG", str(world.cluster.kubeconfig))
        return world


# --- what only a cluster does ---


async def test_job_that_needs_more_memory_than_its_limit_is_out_of_memory(world: KubernetesWorld) -> None:
    plan = world.plan("x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done", options={"memory": "20Mi"})
    end = await run(world.runner(), plan)
    assert (end.exit_code, end.oom_killed, end.signal) == (137, True, "SIGKILL")
    assert end.describe().startswith("out of memory")


async def test_job_with_cpus_and_memory_gets_them_as_its_own_and_runs(world: KubernetesWorld) -> None:
    plan = world.plan("echo up", options={"cpus": 1, "memory": "256m"})
    end = await run(world.runner(), plan)
    assert end.succeeded, end.describe()
    assert plan.log_path.read_bytes() == b"up\n"
    [pod] = world.owned("pods", plan)
    assert pod["status"]["qosClass"] == "Guaranteed"


async def test_image_that_is_not_there_is_told_while_the_run_waits(world: KubernetesWorld) -> None:
    runner, plan = world.runner(), world.plan("true", image="launch-test/none:1")
    reasons = await _reasons(runner, plan)
    assert any(one.startswith(("ErrImagePull: ", "ImagePullBackOff: ")) for one in reasons)


async def test_run_that_no_node_has_room_for_waits_as_unschedulable(world: KubernetesWorld) -> None:
    runner, plan = world.runner(), world.plan("true", options={"cpus": 64})
    assert any("Unschedulable: 0/1 nodes are available" in one for one in await _reasons(runner, plan))


async def test_run_starts_whose_queues_limits_are_more_than_any_node_has(world: KubernetesWorld) -> None:
    limits = {"cpus": 64, "memory": "4000g"}
    assert (await run(world.runner(), world.plan("true", options=limits, from_limits=limits))).exit_code == 0


async def test_named_results_of_a_failed_job_come_back(world: KubernetesWorld) -> None:
    plan = world.plan('echo \'{"loss": 0.5}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"; exit 3')
    assert (await run(world.runner(), plan)).exit_code == 3
    assert json.loads((plan.output_dir / OUTPUTS_FILE).read_text(encoding="utf-8")) == {"loss": 0.5}


@pytest.mark.parametrize(("containers", "most"), [(1, 4096), (4, 3072)])
async def test_named_results_are_kept_or_told_to_be_too_long_for_what_the_kubelet_hands_over(
    world: KubernetesWorld, containers: int, most: int
) -> None:
    helper = {"image": world.cluster.shell_image, "command": ["true"]}
    helpers = [{"name": f"helper-{number}", **helper} for number in range(containers - 1)]
    template = {"spec": {"containers": [{"name": "main"}, *helpers]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}
    for size in (most, most + 1):
        script = f"""printf '{{"loss": "%0{size - 12}d"}}' 1 > "$LAUNCH_OUTPUT_DIR/outputs.json\""""
        plan = world.plan(script, options=job)
        end = await run(world.runner(), plan)
        kept = plan.output_dir / OUTPUTS_FILE
        assert end.succeeded
        assert kept.exists() is (size == most)
        assert any(f"more than the {most:,} bytes" in one for one in end.warnings) is (size > most)


async def test_init_container_that_fails_says_the_end_of_its_log(world: KubernetesWorld) -> None:
    fetch = {
        "name": "fetch",
        "image": world.cluster.shell_image,
        "command": ["sh", "-c", 'echo \'{"no": "data"}\'; exit 4'],
    }
    template = {"spec": {"initContainers": [fetch], "containers": [{"name": "main"}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}
    plan = world.plan("true", options=job, stop_seconds=33.5)
    runner = world.runner()
    handle = await runner.create(plan)
    await runner.start(handle)
    end = await runner.watch(handle, plan)
    assert end.exit_code == 4
    assert '{"no": "data"}' in str(end.error)
    assert not (plan.output_dir / OUTPUTS_FILE).exists()
    made = world.owned("jobs", plan)[0]
    assert made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 34
    assert HOLD not in made["metadata"]["annotations"]


async def test_secret_is_in_no_manifest_and_goes_with_its_run(world: KubernetesWorld) -> None:
    secret = f"hunter2-{uuid4().hex}"
    runner, plan = world.runner(), world.plan('echo "$PASSWORD"', env={"PASSWORD": secret}, mask=Mask([secret]))
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    assert (await runner.watch(handle, plan)).succeeded
    assert plan.log_path.read_text(encoding="utf-8") == f"{secret}\n"
    for kind in ("jobs", "pods"):
        assert secret not in json.dumps(world.cluster.get(kind, "-n", world.namespace))
    assert [one["metadata"]["name"] for one in world.owned("secrets", plan)]
    await runner.remove(handle)
    wait_until(lambda: not world.owned("secrets", plan), "the end of the Secret")


async def test_job_that_somebody_deletes_by_hand_is_reported_as_such(world: KubernetesWorld) -> None:
    runner, plan = world.runner(), world.plan("echo here; sleep 600")
    watching = await _logging(runner, plan, b"here\n")
    world.cluster.kubectl("delete", "job", plan.name, "--wait=false", "-n", world.namespace)
    end = await asyncio.wait_for(watching, LIMIT_SECONDS)
    assert (end.stopped, end.succeeded) == (False, False)
    assert f"somebody else deleted the Job {plan.name!r}" in end.describe()
    # The node may have removed the container before it was asked for the rest, and says so.
    gone = rb"\[prefect-launch\] the node says of this log: .*No such container.*\n"
    assert re.fullmatch(rb"here\n(%s)?" % gone, plan.log_path.read_bytes())


async def test_job_that_has_the_name_of_another_is_left_alone(world: KubernetesWorld) -> None:
    runner, plan = world.runner(), world.plan("true")
    job = RunHandle.parse(await runner.create(plan)).job
    [made] = world.owned("jobs", plan)
    of_another = job.replace(made["metadata"]["uid"], str(uuid4()))
    assert await runner.annotate(of_another, {"mark": "mine"}) is None
    await runner.cancel(of_another, 1.0)
    [there] = world.owned("jobs", plan)
    assert "mark" not in there["metadata"]["annotations"]
    assert "deletionTimestamp" not in there["metadata"]


async def test_pod_that_a_deleted_job_has_left_is_found_and_stopped_by_an_agent_that_starts_again(
    world: KubernetesWorld,
) -> None:
    runner, plan = world.runner(), world.plan("echo here; sleep 600")
    watching = await _logging(runner, plan, b"here\n")
    watching.cancel()
    await asyncio.wait({watching})
    world.cluster.kubectl("delete", "job", plan.name, "--cascade=orphan", "-n", world.namespace)
    again = world.runner()
    [found] = await again.find({Labels.ITEM: plan.item_id})
    assert found.state is RunState.RUNNING
    await again.stop(found.handle, 1.0)
    await again.remove(found.handle)
    assert world.owned("pods", plan) == []


async def test_run_goes_on_while_the_cluster_is_away_and_its_log_has_no_gap(world: KubernetesWorld) -> None:
    runner = world.runner()
    plan = world.plan("i=0; while [ $i -lt 80 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 4")
    watching = await _logging(runner, plan, b"0\n1\n")
    world.relay.go_away()
    await asyncio.sleep(3)
    world.relay.come_back()
    end = await asyncio.wait_for(watching, LIMIT_SECONDS)
    assert (end.exit_code, end.log_complete) == (4, True)
    assert plan.log_path.read_text().split() == [str(number) for number in range(80)]


async def test_submission_that_the_cluster_goes_away_in_is_made_once(world: KubernetesWorld) -> None:
    runner, plan = world.runner(), world.plan("echo once")
    await runner.prepare(plan)
    world.relay.go_away()
    with pytest.raises(UnreachableError):
        await runner.create(plan)
    world.relay.come_back()
    assert (await run(runner, plan)).succeeded
    assert plan.log_path.read_bytes() == b"once\n"
    assert len(await runner.find({Labels.ITEM: plan.item_id})) == 1


async def test_log_of_two_hundred_thousand_lines_is_whole(world: KubernetesWorld) -> None:
    plan = world.plan("seq 200000")
    end = await run(world.runner(), plan)
    assert (end.exit_code, end.log_complete) == (0, True)
    assert plan.log_path.read_text().split() == [str(number) for number in range(1, 200_001)]


async def test_job_of_two_pods_ends_once_and_its_log_names_them(world: KubernetesWorld) -> None:
    template = {"spec": {"containers": [{"name": "main"}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"completions": 2, "parallelism": 2, "template": template}}
    plan = world.plan('echo "I am $(hostname)"', options=job)
    assert (await run(world.runner(), plan)).succeeded
    lines = plan.log_path.read_text().splitlines()
    assert len(lines) == 2
    assert all(line == f"[{line.split()[-1]} main] I am {line.split()[-1]}" for line in lines)


async def test_job_that_has_failed_ends_once_the_pod_beside_the_failed_one_has(
    world: KubernetesWorld, tmp_path: Path
) -> None:
    if world.cluster.node is None:
        pytest.skip("needs a folder that its node shares with this machine")
    folder = tmp_path / "shared"
    container = {"name": "main", "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    volume = {"name": "shared", "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"}}
    pod = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 4}
    spec = {"completions": 2, "parallelism": 2, "template": {"spec": pod}}
    fails = "while [ ! -e /shared/second ]; do sleep 0.1; done; exit 5"
    goes_on = "trap '' TERM; touch /shared/second; while true; do date +%s > /shared/alive; sleep 0.1; done"
    script = f"if mkdir /shared/first; then {fails}; else {goes_on}; fi"
    plan = world.plan(script, options={"apiVersion": "batch/v1", "kind": "Job", "spec": spec})
    runner = world.runner()
    handle = await runner.create(plan)
    await runner.start(handle)
    assert (await asyncio.wait_for(runner.watch(handle, plan), LIMIT_SECONDS)).exit_code == 5
    (folder / "alive").unlink()
    await asyncio.sleep(1)
    assert not (folder / "alive").exists()
    await runner.remove(handle)
    assert world.owned("pods", plan) == []


async def test_additional_service_is_waited_for_and_goes_with_the_run(world: KubernetesWorld) -> None:
    name = f"database-{uuid4().hex[:6]}"
    container = {"name": "main", "image": world.cluster.shell_image, "command": ["sleep", "600"]}
    pod = {"containers": [container], "terminationGracePeriodSeconds": 1}
    service = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
    runner, plan = world.runner(), world.plan("exit 0", options={"additional_services": [service]})
    handle = await runner.create(plan)
    assert world.cluster.get("pod", name, "-n", world.namespace)["status"]["phase"] == "Running"
    await runner.start(handle)
    assert (await runner.watch(handle, plan)).succeeded
    assert plan.log_path.read_bytes() == b""
    await runner.remove(handle)
    gone = ("pods", "-n", world.namespace, f"--field-selector=metadata.name={name}")
    wait_until(lambda: not world.cluster.get(*gone)["items"], "the end of the service")


async def test_namespace_that_is_not_there_is_told_to_the_owner(world: KubernetesWorld) -> None:
    plan = world.plan("true", options={"namespace": "nobody-has-made-it"})
    with pytest.raises(QueueError, match="Create the namespace, or correct the queue's config"):
        await world.runner().create(plan)


async def test_namespace_that_is_being_deleted_is_told_to_the_owner(world: KubernetesWorld) -> None:
    name = world.cluster.create_namespace()
    metadata = {"name": "keeps", "namespace": name, "finalizers": ["tests.example.com/keeps"]}
    world.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    world.cluster.kubectl("delete", "namespace", name, "--wait=false")
    try:
        with pytest.raises(QueueError, match="the namespace is being deleted"):
            await world.runner().create(world.plan("true", options={"namespace": name}))
    finally:
        free = json.dumps({"metadata": {"finalizers": None}})
        world.cluster.kubectl("patch", "configmap", "keeps", "-n", name, "--type=merge", "-p", free)


@pytest.fixture(scope="module")
def training_jobs(kubernetes_cluster: KubernetesCluster) -> Iterator[None]:
    """A kind of custom resource, whose operator is the test."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "trainingjobs", "singular": "trainingjob", "kind": "TrainingJob", "listKind": "TrainingJobList"}
    name = "trainingjobs.tests.example.com"
    kubernetes_cluster.apply(
        {
            **{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name}},
            "spec": {"group": "tests.example.com", "scope": "Namespaced", "names": names, "versions": [version]},
        }
    )
    kubernetes_cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")
    yield
    kubernetes_cluster.kubectl("delete", "crd", name, "--wait=false")


@pytest.mark.usefixtures("training_jobs")
async def test_custom_resource_runs_by_its_operator_and_every_worker_is_in_its_log(
    world: KubernetesWorld,
) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]}}
    options = {
        "apiVersion": "tests.example.com/v1",
        "kind": "TrainingJob",
        "spec": {"workers": {"replicas": 2, "template": template}},
        "custom": {"pods": [{"template": "spec.workers.template", "counts": ["spec.workers.replicas"]}]},
    }
    runner, plan = world.runner(), world.plan('echo "worker $HOSTNAME"', options=options)
    handle = await runner.create(plan)
    await runner.start(handle)
    watching = asyncio.create_task(runner.watch(handle, plan))
    name = ("trainingjobs.tests.example.com", plan.name, "-n", world.namespace)
    made = world.cluster.get(*name)
    owner = {key: made[key] for key in ("apiVersion", "kind")} | {key: made["metadata"][key] for key in ("name", "uid")}
    for number in range(2):
        pod = made["spec"]["workers"]["template"]
        metadata = {**pod["metadata"], "name": f"{plan.name}-{number}", "ownerReferences": [owner]}
        world.cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {**metadata, "namespace": world.namespace}}
        )
    pods = ("pods", "-n", world.namespace, "-l", f"{Labels.ITEM}={plan.item_id}")
    await asyncio.to_thread(
        wait_until,
        lambda: all(pod["status"]["phase"] == "Succeeded" for pod in world.cluster.get(*pods)["items"]),
        "the end of the workers",
    )
    assert not watching.done()
    world.cluster.kubectl("patch", *name, "--type=merge", "-p", json.dumps({"status": {"phase": "Succeeded"}}))
    assert (await asyncio.wait_for(watching, LIMIT_SECONDS)).succeeded
    workers = [f"[{plan.name}-{number} main] worker {plan.name}-{number}" for number in range(2)]
    assert sorted(plan.log_path.read_text().splitlines()) == workers
    await runner.remove(handle)
    wait_until(lambda: not world.cluster.get(*pods)["items"], "the end of the workers' pods")


async def test_certificate_that_is_not_trusted_is_told_with_what_to_do(
    world: KubernetesWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(world.cluster.kubectl("config", "view", "--raw", "--minify"))
    for cluster in config["clusters"]:
        cluster["cluster"].pop("certificate-authority-data", None)
        cluster["cluster"].pop("certificate-authority", None)
    file = tmp_path / "kubeconfig-of-a-stranger"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UnreachableError, match=r"is not trusted: .*certificate-authority-data"):
        await world.runner().ping()


# --- an agent ---


@pytest.fixture
def engine_place(
    prefect_server: PrefectServerProcess,
    kubernetes_cluster: KubernetesCluster,
    namespace: str,
    tmp_path: Path,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> EnginePlace:
    if kubernetes_cluster.node is None:
        pytest.skip("the cluster is the caller's: its pods do not see a folder of this machine")
    monkeypatch.setenv("KUBECONFIG", str(kubernetes_cluster.kubeconfig))
    config = {
        "namespace": namespace,
        "volumes": f"{tmp_path}:{tmp_path}",
        "env": {"FOLDER": str(tmp_path), "COUNT": str(tmp_path)},
    }
    node = kubernetes_cluster.node

    def delete(run: QueuedRun) -> None:
        kubernetes_cluster.kubectl("delete", "job", f"launch-{run.id}-1", "--wait=false", "-n", namespace)

    return EnginePlace(
        prefect_server,
        tmp_path,
        unique,
        "kubernetes",
        config,
        node.kill_api_server,
        node.start_api_server,
        image=kubernetes_cluster.shell_image,
        delete=delete,
        deleted="somebody else deleted the Job",
    )


class TestEngine(EngineContract):
    """An agent's promises, kept on a real cluster."""


async def _reasons(runner: KubernetesRunner, plan: RunPlan) -> list[str]:
    """Return why a run waits, up to the first reason; then stop it."""
    reasons: list[str] = []
    is_told = asyncio.Event()

    async def note(reason: str) -> None:
        reasons.append(reason)
        if reason:
            is_told.set()

    handle = await runner.create(plan)
    await runner.start(handle)
    waiting = asyncio.create_task(runner.wait_running(handle, note))
    await asyncio.wait_for(is_told.wait(), LIMIT_SECONDS)
    await runner.stop(handle, 1.0)
    await asyncio.wait_for(waiting, LIMIT_SECONDS)
    await runner.remove(handle)
    return reasons


async def _logging(runner: KubernetesRunner, plan: RunPlan, text: bytes) -> asyncio.Task[ExitStatus]:
    """Start a run and follow it, until its log begins with a text."""
    handle = await runner.create(plan)
    await runner.start(handle)
    watching = asyncio.create_task(runner.watch(handle, plan))
    due = time.monotonic() + LIMIT_SECONDS
    while not (plan.log_path.exists() and plan.log_path.read_bytes().startswith(text)):
        assert time.monotonic() < due
        await asyncio.sleep(0.05)
    return watching


# --- what a manifest, code and a custom resource become ---


async def run_to_its_end(world: KubernetesWorld, plan: RunPlan, operator: TrainingOperator | None = None) -> ExitStatus:
    """Run a plan until it has ended, and remove it; an operator works on it meanwhile."""
    runner = world.runner()
    handle = await runner.create(plan)
    await runner.start(handle)
    operating = asyncio.to_thread(operator.run, plan.name) if operator else asyncio.sleep(0)
    end, _ = await asyncio.gather(runner.watch(handle, plan), operating)
    await runner.remove(handle)
    return end


async def test_code_runs_on_a_base_image_with_secrets_and_named_results(world: KubernetesWorld, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.sh").write_text(
        'pwd; [ "$TOKEN" = the-secret-token ] && echo \'{"loss": 2}\' > $LAUNCH_OUTPUT_DIR/outputs.json'
    )
    plan = world.plan("sh train.sh", code_dir=code, env={"TOKEN": "the-secret-token"}, mask=Mask(["the-secret-token"]))

    end = await run_to_its_end(world, plan)

    assert end.exit_code == 0
    assert plan.log_path.read_text() == "/workspace\n"
    assert json.loads((plan.output_dir / "outputs.json").read_text()) == {"loss": 2}


@pytest.mark.parametrize(("failing", "expected"), [("none", 0), ("worker-1", 5)])
async def test_custom_resource_of_three_pods_is_one_run_with_every_pods_log(
    world: KubernetesWorld, failing: str, expected: int
) -> None:
    operator = TrainingOperator(world.cluster, world.namespace)
    template = {"spec": {"containers": [{"name": "pytorch", "image": "replaced"}]}}
    replicas = {"Master": {"replicas": 1, "template": template}, "Worker": {"replicas": 2, "template": template}}
    options = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {"pytorchReplicaSpecs": replicas}}
    script = f"echo I am $HOSTNAME; case $HOSTNAME in *{failing}) sleep 1; exit 5;; *) sleep 3;; esac"
    plan = world.plan(script, options=options)

    end = await run_to_its_end(world, plan, operator)

    log = plan.log_path.read_text()
    assert end.exit_code == expected
    assert all(f"I am {plan.name}-{pod}" in log for pod in ("master-0", "worker-0", "worker-1"))
    if expected:
        assert f"the container 'pytorch' of the pod '{plan.name}-worker-1' failed first" in " ".join(end.warnings)
