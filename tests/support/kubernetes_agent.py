"""The agent of `examples/kubernetes`, put into a cluster by Kustomize as its README says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.support.kubernetes_audit import Right
from tests.support.kubernetes_cluster import KubernetesCluster

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "kubernetes"
NAME = "prefect-launch-agent"


class AgentInCluster:
    """One agent in a pod, with the example's own account, role and settings of the pod.

    Args:
        cluster: that it is put into.
        namespace: its own.
        folder: for the files of its kustomization.
        home: a folder of the node, in the place of the volume that its home is on.
    """

    def __init__(self, cluster: KubernetesCluster, namespace: str, folder: Path, home: Path) -> None:
        self.cluster, self.namespace = cluster, namespace
        self._folder, self._home = folder, home

    def apply(self, *, image: str, api_url: str, queue: str, **server: str) -> None:
        """Put it into the cluster.

        Args:
            image: of the agent.
            api_url: of the Prefect server, as its pod reaches it.
            queue: that it serves.
            **server: further variables of its environment, such as `PREFECT_API_KEY`.
        """
        base = self._folder / "base"
        shutil.copytree(EXAMPLE / "base", base)
        (self._folder / "agent-config.yaml").write_text(yaml.safe_dump({"name": queue, "queues": [queue]}))
        name, tag = image.split(":")
        here = {
            # `bases`, and `env` below, are what old versions of kubectl know too.
            **{"namespace": self.namespace, "bases": ["base"]},
            "images": [{"name": NAME, "newName": name, "newTag": tag}],
            "configMapGenerator": [
                {"name": NAME, "behavior": "replace", "files": ["agent-config.yaml"]},
                {"name": "prefect-launch-server", "behavior": "replace", "literals": [f"PREFECT_API_URL={api_url}"]},
            ],
            "secretGenerator": [{"name": NAME, "literals": [f"{key}={value}" for key, value in server.items()]}],
            "patchesStrategicMerge": ["volume.yaml"],
        }
        (self._folder / "kustomization.yaml").write_text(yaml.safe_dump(here))
        volume = {"name": "home", "persistentVolumeClaim": None, "hostPath": {"path": str(self._home)}}
        (self._folder / "volume.yaml").write_text(
            yaml.safe_dump(
                {
                    **{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME}},
                    "spec": {"template": {"spec": {"volumes": [volume]}}},
                }
            )
        )
        self.cluster.kubectl("apply", "-f", "-", stdin=self.cluster.kubectl("kustomize", str(self._folder)))

    def replace(self) -> None:
        """Let another pod take its place, as a new version of its image does."""
        self.cluster.kubectl("rollout", "restart", "-n", self.namespace, f"deployment/{NAME}")

    def pods(self) -> list[str]:
        """Names of its pods, those on their way out included."""
        pods = self.cluster.get("pods", "-n", self.namespace, "-l", f"app={NAME}")["items"]
        return [pod["metadata"]["name"] for pod in pods]

    def pod(self) -> str:
        """Name of its pod that is not on its way out; empty while there is none."""
        pods = self.cluster.get("pods", "-n", self.namespace, "-l", f"app={NAME}")["items"]
        return next((pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]), "")

    def log(self) -> str:
        """What its pod has written so far."""
        return self.cluster.kubectl("logs", "-n", self.namespace, f"deployment/{NAME}")


def granted() -> set[Right]:
    """What the example's Role grants."""
    objects: list[dict[str, Any]] = list(yaml.safe_load_all((EXAMPLE / "base" / "account.yaml").read_text()))
    (role,) = (each for each in objects if each["kind"] == "Role")
    return {
        Right(group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
