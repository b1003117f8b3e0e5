"""The Kubernetes of the tests: the caller's own cluster when one is named, or one node of their own.

`PREFECT_LAUNCH_TEST_KUBECONFIG` names a kubeconfig of a cluster that the tests may use (kind, k3s);
`PREFECT_LAUNCH_TEST_KUBERNETES_IMAGE` an image with a shell that its nodes have or can pull.
`python -m tests.support.kubernetes_cluster` starts a cluster and prints its KUBECONFIG; it stops on Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from tests.support import images
from tests.support.kubernetes_node import KubernetesNode
from tests.support.kubernetes_programs import KubernetesMissingError

KUBECONFIG = "PREFECT_LAUNCH_TEST_KUBECONFIG"
IMAGE = "PREFECT_LAUNCH_TEST_KUBERNETES_IMAGE"
COMMAND_SECONDS = 60.0
#: For a hang: a busy machine may take most of it.
DEADLINE_SECONDS = 120.0
TOKEN_SECONDS = 3600


class KubernetesCluster:
    """A cluster that tests may use.

    Args:
        kubeconfig: File of an administrator's access.
        node: The cluster's one node when the tests started it; only then can servers be stopped and images be made.
        image: Image with a shell.

    Attributes:
        kubeconfig: The same.
        node: The same.
        shell_image: The image.
    """

    def __init__(self, kubeconfig: Path, node: KubernetesNode | None = None, image: str = images.SHELL_IMAGE) -> None:
        self.kubeconfig = kubeconfig
        self.node = node
        self.shell_image = image
        self._namespaces: list[str] = []

    @classmethod
    def find_or_start(cls, *, build: bool = False) -> KubernetesCluster:
        """Take the caller's cluster when one is named; start one otherwise.

        Args:
            build: Build the programs when they are not there.

        Returns:
            A cluster that is ready for pods.

        Raises:
            KubernetesMissingError: None is named, and none can be started; the message says what to do.
        """
        if named := os.environ.get(KUBECONFIG):
            return cls(Path(named), image=os.environ.get(IMAGE, "busybox:1"))
        node = KubernetesNode(build=build)
        return cls(node.kubeconfig, node)

    def stop(self) -> None:
        """Stop the cluster when the tests started it; remove their namespaces otherwise."""
        if self.node:
            self.node.stop()
        elif self._namespaces:
            self.kubectl("delete", "namespace", "--wait=false", *self._namespaces)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as an administrator.

        Args:
            *arguments: Of the command.
            stdin: Its input.

        Returns:
            What it wrote to standard output.

        Raises:
            RuntimeError: It failed; its error is in the message.
        """
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """Read an object, or a list of them.

        Args:
            *arguments: Of `kubectl get`.

        Returns:
            The object.
        """
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects.

        Args:
            *objects: Their manifests.
        """
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def create_namespace(self) -> str:
        """Create a namespace that takes pods.

        Returns:
            Its name.
        """
        name = f"tests-{uuid4().hex[:8]}"
        self.kubectl("create", "namespace", name)
        self._namespaces.append(name)
        wait_until(lambda: bool(self.get("serviceaccounts", "-n", name)["items"]), f"the account of {name}")
        return name

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace and all that is in it, without waiting for its end.

        Args:
            name: The namespace.
        """
        self.kubectl("delete", "namespace", "--wait=false", name)
        self._namespaces.remove(name)

    def token(self, namespace: str, account: str) -> str:
        """Ask for a token of a ServiceAccount, valid for an hour.

        Args:
            namespace: The account's namespace.
            account: Its name.

        Returns:
            The token.
        """
        request = {
            **{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"},
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(request))
        return str(json.loads(answer)["status"]["token"])

    def kubeconfig_of(self, namespace: str, account: str, folder: Path) -> Path:
        """Write a kubeconfig with the rights of a ServiceAccount.

        Args:
            namespace: The account's namespace, and the one that the kubeconfig names.
            account: Its name.
            folder: Where the file goes.

        Returns:
            The file.
        """
        config = yaml.safe_load(self.kubectl("config", "view", "--raw", "--minify", "--flatten"))
        config["users"][0]["user"] = {"token": self.token(namespace, account)}
        config["contexts"][0]["context"]["namespace"] = namespace
        file = folder / f"kubeconfig-{account}"
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(config))
        return file

    def cordon(self) -> None:
        """Let no node take a pod: new ones wait as Unschedulable."""
        self.kubectl("cordon", *self._nodes())

    def uncordon(self) -> None:
        """Let the nodes take pods again."""
        self.kubectl("uncordon", *self._nodes())

    def _nodes(self) -> list[str]:
        return [node["metadata"]["name"] for node in self.get("nodes")["items"]]


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until something is so.

    Args:
        is_so: Asked again and again.
        what: What is waited for, for the message.
        seconds: How long at most.

    Raises:
        TimeoutError: It was not so in time.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds} s there was still no sign of {what}")
        time.sleep(0.1)


def main() -> None:
    """Start a cluster, tell the way to it, and stop it on Ctrl-C or SIGTERM."""
    began = time.monotonic()
    try:
        cluster = KubernetesCluster.find_or_start(build=True)
    except KubernetesMissingError as missing:
        sys.exit(str(missing))
    try:
        sys.stderr.write(f"ready after {time.monotonic() - began:.1f} s; image with a shell: {cluster.shell_image}\n")
        sys.stdout.write(f"export KUBECONFIG={cluster.kubeconfig}\n")
        sys.stdout.flush()
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    main()
