"""The scripted Kubernetes API server of the tests: what it has in common with a real one, and what can be scripted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.kubernetes_api_contract import KubernetesApiContract, failure, held_job, watch
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JobPods

JOBS = "/apis/batch/v1/namespaces/default/jobs"
PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
def server() -> Iterator[KubernetesApi]:
    with scripted_api() as server:
        yield server


@pytest.fixture
def api(server: KubernetesApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        yield client


@pytest.fixture
def namespace() -> str:
    return "default"


class TestScriptedKubernetes(KubernetesApiContract):
    """It answers as a real server does."""


def test_scripted_answer_is_given_as_often_as_asked_and_the_request_is_done_first_on_demand(
    server: KubernetesApi, api: httpx.Client
) -> None:
    server.answer("POST .*/jobs", 429, "TooManyRequests", "slow down", headers={"Retry-After": "1"})
    first = api.post(JOBS, json=held_job())
    assert (failure(first), first.headers["Retry-After"]) == ((429, "TooManyRequests"), "1")
    server.answer("POST .*/jobs", 500, "InternalError", "etcd", done_first=True)
    job = held_job()
    assert failure(api.post(JOBS, json=job)) == (500, "InternalError")
    assert failure(api.post(JOBS, json=job)) == (409, "AlreadyExists")
    assert server.asked("POST .*/jobs") == 3


def test_watch_that_is_cut_breaks_and_one_from_a_forgotten_version_is_told_so(
    server: KubernetesApi, api: httpx.Client
) -> None:
    version = api.get(JOBS).json()["metadata"]["resourceVersion"]
    with watch(api, JOBS, resourceVersion=version) as told:
        api.post(JOBS, json=held_job())
        assert next(told)["type"] == "ADDED"
        server.cut()
        with pytest.raises(httpx.RemoteProtocolError):
            next(told)
    server.expire_watches()
    with watch(api, JOBS, resourceVersion=version) as told:
        error = next(told)
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_watch_tells_by_a_bookmark_how_far_it_is(server: KubernetesApi, api: httpx.Client) -> None:
    version = api.get(JOBS).json()["metadata"]["resourceVersion"]
    with watch(api, PODS, resourceVersion=version, allowWatchBookmarks="true") as told:
        api.post(JOBS, json=held_job())
        bookmark = next(told)
    assert bookmark["type"] == "BOOKMARK"
    assert int(bookmark["object"]["metadata"]["resourceVersion"]) > int(version)


def test_followed_log_goes_on_until_it_is_ended_or_cut(server: KubernetesApi, api: httpx.Client) -> None:
    name = api.post(JOBS, json=held_job()).json()["metadata"]["name"]
    pod = JobPods(server, "default", name).create()
    server.log("default", pod, "main", "one", "two")
    query = {"container": "main", "follow": "true", "timestamps": "true"}
    with api.stream("GET", f"{PODS}/{pod}/log", params=query) as answer:
        lines = answer.iter_lines()
        assert [next(lines).split(" ", 1)[1], next(lines).split(" ", 1)[1]] == ["one", "two"]
        server.log("default", pod, "main", "three")
        assert next(lines).endswith(" three")
        server.end_log("default", pod, "main")
        assert list(lines) == []


@pytest.mark.parametrize(
    ("happens", "seen"),
    [
        (lambda pods: pods.cannot_be_scheduled(), ("Pending", "Unschedulable")),
        (lambda pods: pods.wait("ImagePullBackOff", "no such image"), ("Pending", "ImagePullBackOff")),
        (lambda pods: pods.finish(137, reason="OOMKilled"), ("Failed", "OOMKilled")),
        (lambda pods: pods.finish(0), ("Succeeded", "Completed")),
        (lambda pods: pods.evict(), ("Failed", "Evicted")),
        (lambda pods: pods.disrupt("PreemptionByScheduler"), ("Failed", "PreemptionByScheduler")),
    ],
)
def test_pod_shows_what_became_of_it(server: KubernetesApi, api: httpx.Client, happens: Any, seen: object) -> None:
    name = api.post(JOBS, json=held_job()).json()["metadata"]["name"]
    pods = JobPods(server, "default", name)
    assert pods.is_held()
    pod = pods.create()
    happens(pods)
    status = api.get(f"{PODS}/{pod}").json()["status"]
    reasons = [status.get("reason"), *(each.get("reason") for each in status.get("conditions", ()))]
    reasons += [state.get("reason") for each in status.get("containerStatuses", ()) for state in each["state"].values()]
    assert (status["phase"], next(reason for reason in reasons if reason)) == seen


def test_request_that_hangs_is_answered_once_the_server_wakes(server: KubernetesApi, api: httpx.Client) -> None:
    server.hang("GET .*/jobs")
    with pytest.raises(httpx.ReadTimeout):
        api.get(JOBS, timeout=0.2)
    server.wake()
    assert api.get(JOBS).status_code == 200
