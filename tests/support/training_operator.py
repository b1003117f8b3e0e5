"""Stand-in of the training operator: PyTorchJobs in a real cluster, and who makes the pods of one and judges them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.kubernetes_cluster import KubernetesCluster, wait_until

_GROUP, _VERSION, _PLURAL = "kubeflow.org", "v1", "pytorchjobs"
_DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{_PLURAL}.{_GROUP}"},
    "spec": {
        "group": _GROUP,
        "scope": "Namespaced",
        "names": {"plural": _PLURAL, "singular": "pytorchjob", "kind": "PyTorchJob"},
        "versions": [
            {
                "name": _VERSION,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


class TrainingOperator:
    """Does for one PyTorchJob what the operator does: waits for its release, makes its pods, writes its conditions.

    Args:
        cluster: that it works in.
        namespace: of the jobs.
    """

    def __init__(self, cluster: KubernetesCluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        cluster.apply(_DEFINITION)
        wait_until(lambda: self._is_served(), "the resource PyTorchJob")

    def _is_served(self) -> bool:
        definition = self._cluster.get("customresourcedefinition", _DEFINITION["metadata"]["name"])
        conditions = definition.get("status", {}).get("conditions", ())
        return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

    def run(self, name: str) -> None:
        """Run a PyTorchJob to its end; blocks."""
        wait_until(lambda: not self._job(name)["spec"]["runPolicy"].get("suspend"), f"the release of {name}")
        job = self._job(name)
        pods = [
            self._pod(job, f"{name}-{role.lower()}-{i}", spec["template"])
            for role, spec in job["spec"]["pytorchReplicaSpecs"].items()
            for i in range(spec["replicas"])
        ]
        for pod in pods:
            self._cluster.kubectl("create", "-n", self._namespace, "-f", "-", stdin=json.dumps(pod))
        names = [pod["metadata"]["name"] for pod in pods]
        wait_until(lambda: self._end(names) is not None, f"the end of {name}")
        end = self._end(names)
        condition = {"type": end, "status": "True", "reason": f"PyTorchJob{end}", "message": f"PyTorchJob {name} {end}"}
        patch = json.dumps({"status": {"conditions": [{"type": "Created", "status": "True"}, condition]}})
        self._cluster.kubectl("patch", _PLURAL, name, "-n", self._namespace, "--type=merge", "-p", patch)

    def _job(self, name: str) -> dict[str, Any]:
        job: dict[str, Any] = self._cluster.get(_PLURAL, name, "-n", self._namespace)
        return job

    def _end(self, names: list[str]) -> str | None:
        """Return the condition of the end: one failed pod is enough, and all must have succeeded."""
        phases = {self._cluster.get("pod", name, "-n", self._namespace)["status"]["phase"] for name in names}
        return "Failed" if "Failed" in phases else "Succeeded" if phases == {"Succeeded"} else None

    @staticmethod
    def _pod(job: dict[str, Any], name: str, template: dict[str, Any]) -> dict[str, Any]:
        owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": job["metadata"]["name"]}
        reference = {**owner, "uid": job["metadata"]["uid"], "controller": True}
        return {
            **template,
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": name, "ownerReferences": [reference]},
            "spec": {"restartPolicy": "Never", **template["spec"]},
        }
