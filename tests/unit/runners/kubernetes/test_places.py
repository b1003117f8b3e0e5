"""Several places of runs: what is wrong in one namespace, context or kind costs only what is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import yaml

from prefect_launch.errors import LaunchError, UnreachableError
from prefect_launch.runners.base import Found, Labels, RunPlan, RunState
from prefect_launch.runners.remote.kubernetes import client
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JOBS, JobPods
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.unit.runners.kubernetes.scripted import LIMIT_SECONDS, plan_in

ALWAYS = 10**9
FORBIDDEN = 'jobs.batch is forbidden: User "agent" cannot list resource "jobs" in API group "batch"'


async def started(runner: KubernetesRunner, plan: RunPlan) -> str:
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


def forbid(server: KubernetesApi, namespace: str) -> None:
    server.answer(f"(GET|DELETE) .*/namespaces/{namespace}/jobs", 403, "Forbidden", FORBIDDEN, times=ALWAYS)


def remove_kind(server: KubernetesApi, namespace: str) -> None:
    said = "the server could not find the requested resource"
    server.answer(f"(GET|DELETE) .*/namespaces/{namespace}/jobs", 404, "NotFound", said, times=ALWAYS)


def by_item(found: list[Found]) -> dict[str, Found]:
    return {one.labels[Labels.ITEM]: one for one in found}


@pytest.mark.parametrize("happens", [forbid, remove_kind])
async def test_agent_finds_its_runs_again_where_one_place_of_them_cannot_be_seen(
    server: KubernetesApi,
    runner: KubernetesRunner,
    tmp_path: Path,
    happens: Callable[[KubernetesApi, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hidden, seen = plan_in(tmp_path, namespace="team-a"), plan_in(tmp_path, namespace="team-b")
    handles = [await started(runner, hidden), await started(runner, seen)]
    happens(server, "team-a")
    again = KubernetesRunner(tmp_path / "home")
    with caplog.at_level(logging.WARNING):
        found = by_item(await again.find({Labels.AGENT: "box"}))
        assert by_item(await again.find({Labels.AGENT: "box"})).keys() == found.keys()
    await again.aclose()
    assert found[seen.item_id].handle == handles[1]
    # Nothing says that it has ended: it goes on.
    assert (found[hidden.item_id].handle, found[hidden.item_id].state) == (handles[0], RunState.SUBMITTED)
    assert await again.find({Labels.ITEM: hidden.item_id, Labels.CLAIM: "another"}) == []
    assert sum("namespace team-a" in record.getMessage() for record in caplog.records) == 1


async def test_run_that_cannot_be_seen_is_followed_to_its_end_once_it_can_be_and_others_end_meanwhile(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plans = {name: plan_in(tmp_path, namespace=name) for name in ("team-a", "team-b")}
    handles = {name: await started(runner, plan) for name, plan in plans.items()}
    pods = {name: JobPods(server, name, plan.name) for name, plan in plans.items()}
    for one in pods.values():
        one.create()
        one.run()
    forbid(server, "team-a")
    again = KubernetesRunner(tmp_path / "home")
    watching = {name: asyncio.create_task(again.watch(handles[name], plans[name])) for name in plans}
    with pytest.raises(LaunchError, match="cannot list"):
        await again.stop(handles["team-a"], 1.0)
    pods["team-b"].finish(3)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching["team-b"]).exit_code == 3
    assert not watching["team-a"].done()
    server.heal()
    pods["team-a"].finish(4)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching["team-a"]).exit_code == 4
    await again.remove(handles["team-a"])
    forbid(server, "team-a")
    assert plans["team-a"].item_id not in by_item(await again.find({}))
    await again.aclose()


async def test_place_that_hangs_delays_no_other(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CALL_SECONDS", 600.0)
    plans = {name: plan_in(tmp_path, namespace=name) for name in ("team-a", "team-b")}
    handles = {name: await started(runner, plan) for name, plan in plans.items()}
    pods = JobPods(server, "team-b", plans["team-b"].name)
    pods.create()
    pods.run()
    again = KubernetesRunner(tmp_path / "home")
    server.hang("/namespaces/team-a/")
    watching = {name: asyncio.create_task(again.watch(handles[name], plans[name])) for name in plans}
    stopping = asyncio.create_task(again.stop(handles["team-a"], 1.0))
    await until(lambda: server.asked("GET .*/namespaces/team-a/jobs") > 0)
    with anyio.fail_after(LIMIT_SECONDS):
        await again.stop(handles["team-b"], 1.0)
        assert (await watching["team-b"]).stopped
    waiting = {watching["team-a"], stopping}
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    server.wake()
    await again.aclose()


async def test_context_that_a_queue_names_is_asked_for_itself(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    config = yaml.safe_load(kubeconfig.read_text())
    config["clusters"].append({"name": "away", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}})
    config["contexts"].append({"name": "away", "context": {"cluster": "away", "user": "user"}})
    kubeconfig.write_text(yaml.safe_dump({**config, "current-context": "away"}))
    with pytest.raises(UnreachableError, match="does not answer"):
        await runner.ping()
    await runner.ping_place(runner.place_of({"context": "scripted"}))
    with pytest.raises(LaunchError, match="has no context 'gone'"):
        await runner.ping_place(runner.place_of({"context": "gone"}))
    assert runner.place_of({"context": "{{cluster}}", "namespace": "a"}) == ""


async def test_cluster_that_does_not_answer_at_all_is_told(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    await started(runner, plan_in(tmp_path, namespace="team-a"))
    server.answer("GET .*/jobs", 503, "ServiceUnavailable", "away", times=ALWAYS)
    with pytest.raises(UnreachableError):
        await runner.find({})


async def test_run_of_a_context_that_was_renamed_goes_on(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path, context="scripted")
    handle = await started(runner, plan)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(kubeconfig.read_text().replace("scripted", "renamed"))
    again = KubernetesRunner(tmp_path / "home")
    [found] = [one for one in await again.find({}) if one.handle == handle]
    assert found.state is RunState.SUBMITTED
    watching = asyncio.create_task(again.watch(handle, plan))
    await until(plan.log_path.exists)
    kubeconfig.write_text(kubeconfig.read_text().replace("renamed", "scripted"))
    pods = JobPods(server, "default", plan.name)
    pods.create()
    pods.run()
    pods.finish(0)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).succeeded
    await again.aclose()


async def test_run_stays_in_its_cluster_though_another_context_is_the_current_one_when_its_agent_starts_again(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan, later = plan_in(tmp_path), plan_in(tmp_path)
    handle = await started(runner, plan)
    with scripted_api() as other:
        kubeconfig = tmp_path / "kubeconfig"
        config = yaml.safe_load(kubeconfig.read_text())
        config["clusters"].append({"name": "other", "cluster": {"server": other.url}})
        config["contexts"].append({"name": "other", "context": {"cluster": "other", "user": "user"}})
        kubeconfig.write_text(yaml.safe_dump({**config, "current-context": "other"}))
        again = KubernetesRunner(tmp_path / "home")
        await started(again, later)
        assert [one["metadata"]["name"] for one in other.store.list(JOBS)] == [later.name]
        assert by_item(await again.find({})).keys() == {plan.item_id, later.item_id}
        await again.stop(handle, 1.0)
        assert server.store.list(JOBS) == []
        await again.aclose()


@pytest.mark.parametrize("knows", ["handle", "plan"])
async def test_agent_with_a_new_home_finds_the_run_of_an_item_in_the_namespace_that_its_handle_or_plan_names(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, knows: str
) -> None:
    plan = plan_in(tmp_path, namespace="team-a")
    handle = await started(runner, plan)
    fresh = KubernetesRunner(tmp_path / "new-home")
    for unusable in (handle.replace("scripted", "gone"), handle.replace("team-a", ".."), "of-docker", ""):
        await fresh.seek(unusable)
    assert await fresh.find({}) == []
    await fresh.seek(handle if knows == "handle" else plan)
    assert [one.handle for one in await fresh.find({})] == [handle]
    await fresh.aclose()
