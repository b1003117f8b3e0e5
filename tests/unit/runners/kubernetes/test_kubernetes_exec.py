"""How a command gets inside a pod: kubectl, with the place, the pod and the container of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.errors import AgentConfigError, InfrastructureError
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.kubernetes.login import POD_CONTEXT
from prefect_launch.runners.remote.kubernetes.pods import first_running_container
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JobPods
from tests.unit.runners.kubernetes.scripted import plan_in

COMMAND = ["nvidia-smi", "-L"]


@pytest.fixture(autouse=True)
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, which nothing calls here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin" / "kubectl"


async def started(server: KubernetesApi, runner: KubernetesRunner, folder: Path) -> tuple[RunHandle, JobPods]:
    """Start a run in the namespace `team`; its pod waits."""
    plan = plan_in(folder, namespace="team")
    handle = await runner.create(plan)
    await runner.start(handle)
    pods = JobPods(server, "team", plan.name)
    pods.create()
    return RunHandle.parse(handle), pods


@pytest.mark.parametrize(("has_terminal", "more"), [(True, ["--tty"]), (False, [])])
async def test_command_names_the_context_the_namespace_the_pod_and_the_container_of_the_run(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, has_terminal: bool, more: list[str]
) -> None:
    handle, pods = await started(server, runner, tmp_path)
    with pytest.raises(InfrastructureError, match=r"No container .* runs in the namespace team of scripted"):
        await runner.exec_plan(str(handle), COMMAND, has_terminal=has_terminal)
    pods.run()
    [pod] = pods.pods

    inside = await runner.exec_plan(str(handle), COMMAND, has_terminal=has_terminal)

    assert list(inside.argv) == [
        *("kubectl", "exec", "--context=scripted", "--namespace=team", "--stdin", *more, pod["metadata"]["name"]),
        *(f"--container={pod['spec']['containers'][0]['name']}", "--", *COMMAND),
    ]
    assert (inside.env, inside.cwd) == (None, None)


@pytest.mark.parametrize("context", ["as-the-agent-calls-it", POD_CONTEXT])
async def test_cluster_that_has_another_context_here_than_where_the_agent_is_is_recognised_by_the_run(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    handle, pods = await started(server, runner, tmp_path)
    pods.run()
    elsewhere = handle._replace(job=handle.job.replace("scripted", context.replace("(", "%28").replace(" ", "%20")))

    inside = await runner.exec_plan(str(elsewhere), COMMAND, has_terminal=False)

    assert "--context=scripted" in inside.argv
    with scripted_api() as other:
        monkeypatch.setenv("KUBECONFIG", str(other.write_kubeconfig(tmp_path / "other")))
        elsewhere_runner = KubernetesRunner(tmp_path / "home of another")
        with pytest.raises(InfrastructureError, match="it has ended, or is in another cluster"):
            await elsewhere_runner.exec_plan(str(elsewhere), COMMAND, has_terminal=False)
        await elsewhere_runner.aclose()


async def test_machine_without_kubectl_is_told_to_get_it(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, kubectl: Path
) -> None:
    handle, pods = await started(server, runner, tmp_path)
    pods.run()
    kubectl.unlink()

    with pytest.raises(AgentConfigError, match="no kubectl"):
        await runner.exec_plan(str(handle), COMMAND, has_terminal=False)


def test_first_container_that_runs_is_taken_and_not_one_that_has_ended() -> None:
    def pod(name: str, **states: str) -> dict[str, object]:
        statuses = [{"name": one, "state": {state: {}}} for one, state in states.items()]
        spec = {"containers": [{"name": one} for one in sorted(states, reverse=True)]}
        return {"metadata": {"name": name}, "spec": spec, "status": {"containerStatuses": statuses}}

    ended, waits = pod("a", main="terminated"), {"metadata": {"name": "b"}, "spec": {}}
    runs = pod("c", sidecar="running", main="running", worker="terminated")
    assert first_running_container([ended, waits, runs]) == ("c", "sidecar")
    assert first_running_container([ended, waits]) is None
