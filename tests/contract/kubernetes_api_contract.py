"""What a client of Kubernetes relies on in an API server: tests that the real one and the scripted one both pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

MERGE = {"Content-Type": "application/merge-patch+json"}
SECONDS = 60.0
Object = dict[str, Any]


class KubernetesApiContract:
    """Tests of an API server; a subclass gives the fixtures `api` (a client that is logged in) and `namespace`."""

    @pytest.fixture
    def maps(self, namespace: str) -> str:
        """Path of the namespace's ConfigMaps."""
        return f"/api/v1/namespaces/{namespace}/configmaps"

    @pytest.fixture
    def jobs(self, namespace: str) -> str:
        """Path of its Jobs."""
        return f"/apis/batch/v1/namespaces/{namespace}/jobs"

    def test_object_is_created_once_and_then_its_name_is_taken(self, api: httpx.Client, maps: str) -> None:
        wanted = config_map()
        made = api.post(maps, json=wanted)
        assert made.status_code == 201
        metadata = made.json()["metadata"]
        assert metadata["uid"]
        assert int(metadata["resourceVersion"]) > 0
        assert metadata["creationTimestamp"].endswith("Z")
        assert failure(api.post(maps, json=wanted)) == (409, "AlreadyExists")
        assert api.get(f"{maps}/{metadata['name']}").json()["metadata"]["uid"] == metadata["uid"]

    def test_object_that_is_not_there_is_not_found(self, api: httpx.Client, maps: str, namespace: str) -> None:
        assert failure(api.get(f"{maps}/nobody")) == (404, "NotFound")
        assert failure(api.delete(f"{maps}/nobody")) == (404, "NotFound")
        assert failure(api.get(f"/api/v1/namespaces/{namespace}/pods/nobody/log")) == (404, "NotFound")

    def test_request_with_an_unknown_token_is_refused(self, api: httpx.Client, maps: str) -> None:
        assert failure(api.get(maps, headers={"Authorization": "Bearer nobody"})) == (401, "Unauthorized")

    def test_name_out_of_the_alphabet_and_a_job_that_would_run_for_ever_are_invalid(
        self, api: httpx.Client, maps: str, jobs: str
    ) -> None:
        assert failure(api.post(maps, json=config_map("BAD_name"))) == (422, "Invalid")
        restarting = held_job()
        restarting["spec"]["template"]["spec"]["restartPolicy"] = "Always"
        answer = api.post(jobs, json=restarting)
        assert failure(answer) == (422, "Invalid")
        assert "restartPolicy" in answer.json()["message"]

    def test_list_holds_what_its_selector_matches_and_a_version(self, api: httpx.Client, maps: str) -> None:
        mark = f"m{uuid4().hex[:8]}"
        for value in ("a", "b", "c"):
            assert api.post(maps, json=config_map(labels={mark: value})).status_code == 201

        def found(selector: str) -> list[str]:
            answer = api.get(maps, params={"labelSelector": selector}).json()
            assert int(answer["metadata"]["resourceVersion"]) > 0
            return sorted(each["metadata"]["labels"][mark] for each in answer["items"])

        assert found(mark) == ["a", "b", "c"]
        assert found(f"{mark}=b") == ["b"]
        assert found(f"{mark} in (a,c)") == ["a", "c"]
        assert found(f"{mark} in (a,c),{mark}!=a") == ["c"]
        assert found(f"{mark},{mark} notin (b)") == ["a", "c"]

    def test_watch_tells_each_change_since_a_version_in_order(self, api: httpx.Client, maps: str) -> None:
        version = api.get(maps).json()["metadata"]["resourceVersion"]
        made = api.post(maps, json=config_map(labels={"watched": "yes"})).json()
        path = f"{maps}/{made['metadata']['name']}"
        api.patch(path, json={"data": {"k": "2"}}, headers=MERGE)
        with watch(api, maps, resourceVersion=version, labelSelector="watched=yes") as told:
            first, second = next(told), next(told)
            api.delete(path)
            third = next(told)
        assert [each["type"] for each in (first, second, third)] == ["ADDED", "MODIFIED", "DELETED"]
        assert (first["object"]["data"]["k"], second["object"]["data"]["k"]) == ("1", "2")
        versions = [int(each["object"]["metadata"]["resourceVersion"]) for each in (first, second, third)]
        assert versions == sorted(versions)
        assert versions[0] > int(version)

    def test_patch_merges_and_removes_and_needs_the_uid_and_version_that_it_names(
        self, api: httpx.Client, maps: str
    ) -> None:
        made = api.post(maps, json={**config_map(), "data": {"k": "1", "gone": "x"}}).json()
        path = f"{maps}/{made['metadata']['name']}"
        merged = api.patch(path, json={"data": {"gone": None, "new": "y"}}, headers=MERGE).json()
        assert merged["data"] == {"k": "1", "new": "y"}
        old, other = {"resourceVersion": made["metadata"]["resourceVersion"]}, {"uid": str(uuid4())}
        for metadata, why in ((old, (409, "Conflict")), (other, (422, "Invalid"))):
            assert failure(api.patch(path, json={"metadata": metadata}, headers=MERGE)) == why
        right = {"metadata": {"uid": made["metadata"]["uid"]}, "data": {"k": "4"}}
        assert api.patch(path, json=right, headers=MERGE).json()["data"]["k"] == "4"

    def test_delete_needs_the_uid_that_it_names(self, api: httpx.Client, maps: str) -> None:
        made = api.post(maps, json=config_map()).json()
        path = f"{maps}/{made['metadata']['name']}"
        wrong = api.request("DELETE", path, json={"preconditions": {"uid": str(uuid4())}})
        assert failure(wrong) == (409, "Conflict")
        assert api.request("DELETE", path, json={"preconditions": {"uid": made["metadata"]["uid"]}}).status_code == 200
        assert failure(api.get(path)) == (404, "NotFound")

    def test_owned_object_goes_with_its_owner(self, api: httpx.Client, maps: str, jobs: str) -> None:
        job = api.post(jobs, json=held_job()).json()
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        owned = config_map()
        owned["metadata"]["ownerReferences"] = [owner]
        assert api.post(maps, json=owned).status_code == 201
        path = f"{maps}/{owned['metadata']['name']}"
        version = api.get(maps).json()["metadata"]["resourceVersion"]
        selector = f"metadata.name={owned['metadata']['name']}"
        with watch(api, maps, resourceVersion=version, fieldSelector=selector) as told:
            api.request("DELETE", f"{jobs}/{owner['name']}", json={"propagationPolicy": "Background"})
            assert next(each for each in told if each["type"] == "DELETED")
        assert failure(api.get(path)) == (404, "NotFound")


def config_map(name: str = "", labels: dict[str, str] | None = None) -> Object:
    """A ConfigMap of a name that nobody has."""
    metadata: Object = {"name": name or f"map-{uuid4().hex[:8]}", "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": "1"}}


def held_job() -> Object:
    """A Job that starts no pod."""
    container = {"name": "main", "image": "launch-test/shell:1", "command": ["true"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": f"job-{uuid4().hex[:8]}"}
    return {
        **{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata},
        "spec": {"parallelism": 0, "template": template},
    }


def failure(answer: httpx.Response) -> tuple[int, str]:
    """The code and the reason of a refusal, which its Status tells too."""
    status = answer.json()
    assert (status["kind"], status["status"], status["code"]) == ("Status", "Failure", answer.status_code)
    return answer.status_code, status["reason"]


@contextmanager
def watch(api: httpx.Client, path: str, **query: str) -> Iterator[Iterator[Object]]:
    """Watch a path for as long as the block lasts."""
    with api.stream("GET", path, params={"watch": "true", **query}, timeout=SECONDS) as answer:
        yield (json.loads(line) for line in answer.iter_lines())
