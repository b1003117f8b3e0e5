"""A Kubernetes 1.20 of one node, started by the tests as processes of this machine. Needs root.

Its address, of the API server on port 443 and of the node, is that of the bridge of a Docker Engine of its own: tests
and pods reach it there, and two clusters have nothing in common. The first address of the Services' range is the same
one, so that a program in a pod finds the API server with no proxy; other Services get an address and no traffic.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

import yaml
from docker import DockerClient

from tests.support import images
from tests.support.docker_engine import EngineMissingError, PrivateEngine, mounts_below
from tests.support.kubernetes_audit import AUDIT_POLICY, Right, rights_used
from tests.support.kubernetes_keys import write_keys
from tests.support.kubernetes_programs import KubernetesMissingError, Programs
from tests.support.ports import free_port
from tests.support.processes import ChildProcess

START_SECONDS = 180.0
PAUSE_IMAGE = "launch-test/pause:1"
# Those of the controllers that a run, its rights and its end need.
CONTROLLERS = (
    *("job", "garbagecollector", "namespace", "podgc", "nodelifecycle", "resourcequota", "ttl-after-finished"),
    *("serviceaccount", "serviceaccount-token", "root-ca-cert-publisher", "deployment", "replicaset", "endpoint"),
)


class KubernetesNode:
    """The cluster, started on construction: ready for pods.

    Args:
        build: Build the programs when they are not there.

    Attributes:
        address: IP address of the API server and the node, which pods and this machine reach.
        engine: Docker Engine of its pods.
        kubeconfig: File with all rights.
        token: The token in it.
        authority: File of the certificate that signed the API server's.

    Raises:
        KubernetesMissingError: Not root, or a program is missing here.
    """

    def __init__(self, *, build: bool = False) -> None:
        self._programs = Programs.find(build=build)
        try:
            self.engine = PrivateEngine()
        except EngineMissingError as missing:
            raise KubernetesMissingError(str(missing)) from missing
        self.address = self.engine.address
        self._folder = Path(tempfile.mkdtemp(prefix="launch-test-kubernetes-"))
        self.kubeconfig = self._folder / "kubeconfig"
        self.authority = self._folder / "ca.crt"
        self.token = uuid4().hex
        self.name = f"node-{uuid4().hex[:8]}"
        self._etcd_url = f"http://127.0.0.1:{free_port()}"
        self._processes: dict[str, ChildProcess] = {}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process and container, and remove all data."""
        for process in reversed(self._processes.values()):
            process.kill()
        with self.client() as client:
            for container in client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True)
        self.engine.stop()
        for mount in mounts_below(self._folder):
            subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self._folder)

    def client(self) -> _Client:
        """A client of the Docker Engine, closed at the end of the block."""
        return _Client(base_url=self.engine.host, timeout=120)

    def kill_api_server(self) -> None:
        """End the API server at once, as a crash would: pods run on."""
        self._processes["kube-apiserver"].kill()

    def start_api_server(self) -> None:
        """Start it again, and wait until it answers."""
        self._spawn("kube-apiserver", *self._api_server_flags())
        self._processes["kube-apiserver"].wait_until(lambda: self._answers("/readyz"), START_SECONDS)

    def kill_kubelet(self) -> None:
        """End the node's agent, as when a machine is lost: nobody tells of its pods any more."""
        self._processes["kubelet"].kill()

    def start_kubelet(self) -> None:
        """Start it again."""
        folder = self._folder / "kubelet"
        flags = self._kubelet_flags(folder)
        # The logs' folders lie below its working directory.
        command = ["env", f"--chdir={folder}", self._programs.path("kubelet"), *flags]
        self._processes["kubelet"] = ChildProcess(command, self._folder / "kubelet.log")

    def rights_used(self, namespace: str, account: str) -> dict[Right, set[int]]:
        """What a ServiceAccount has asked for so far, and the codes of the answers."""
        return rights_used(self._folder / "audit.log", f"system:serviceaccount:{namespace}:{account}")

    def log_of(self, program: str) -> str:
        """The last lines that one of the programs wrote."""
        return self._processes[program].tail()

    def _start(self) -> None:
        write_keys(self._folder, self.address)
        self._write_access()
        (self._folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
        self._spawn_etcd()
        self.start_api_server()
        access = f"--kubeconfig={self.kubeconfig}"
        quiet = ("--leader-elect=false", "--port=0", "--profiling=false")
        self._spawn(
            "kube-controller-manager",
            *(access, *quiet, f"--secure-port={free_port()}", f"--bind-address={self.address}"),
            *(f"--cert-dir={self._folder}/manager", f"--controllers={','.join(CONTROLLERS)}"),
            *(f"--root-ca-file={self._folder}/ca.crt", "--node-monitor-period=1s"),
            f"--service-account-private-key-file={self._folder}/accounts.key",
        )
        self._spawn(
            "kube-scheduler",
            *(access, *quiet, f"--secure-port={free_port()}", f"--bind-address={self.address}"),
            f"--cert-dir={self._folder}/scheduler",
        )
        with self.client() as client:
            images.ensure_image_of_one_program(client, PAUSE_IMAGE, self._programs.folder / "pause")
            images.ensure_shell_image(client)
            self._write_kubelet_config(client.info()["CgroupDriver"])
        self.start_kubelet()
        self._processes["kubelet"].wait_until(self._is_ready, START_SECONDS)

    def _spawn(self, name: str, *flags: str) -> None:
        self._processes[name] = ChildProcess([self._programs.path(name), *flags], self._folder / f"{name}.log")

    def _spawn_etcd(self) -> None:
        peers = f"http://127.0.0.1:{free_port()}"
        flags = [
            *("--name", "one", "--data-dir", f"{self._folder}/etcd", "--unsafe-no-fsync"),
            *("--listen-client-urls", self._etcd_url, "--advertise-client-urls", self._etcd_url),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"one={peers}", "--logger", "zap", "--log-level", "error"),
        ]
        self._processes["etcd"] = ChildProcess([self._programs.etcd, *flags], self._folder / "etcd.log")

    def _write_access(self) -> None:
        tokens = self._folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(self.kubeconfig_for(self.token))

    def kubeconfig_for(self, token: str, namespace: str = "default") -> str:
        """Text of a kubeconfig that logs in with a token."""
        cluster = {"server": f"https://{self.address}", "certificate-authority": f"{self._folder}/ca.crt"}
        context = {"cluster": "tests", "user": "user", "namespace": namespace}
        config = {
            **{"apiVersion": "v1", "kind": "Config", "current-context": "tests"},
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": context}],
        }
        return yaml.safe_dump(config)

    def _api_server_flags(self) -> list[str]:
        return [
            *(f"--etcd-servers={self._etcd_url}", f"--bind-address={self.address}", "--secure-port=443"),
            *("--insecure-port=0", f"--advertise-address={self.address}", "--profiling=false"),
            *(f"--tls-cert-file={self._folder}/apiserver.crt", f"--tls-private-key-file={self._folder}/apiserver.key"),
            f"--service-account-key-file={self._folder}/accounts.key",
            f"--service-account-signing-key-file={self._folder}/accounts.key",
            *(
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--token-auth-file={self._folder}/tokens.csv",
            ),
            *("--authorization-mode=RBAC", "--allow-privileged=true", "--endpoint-reconciler-type=none"),
            f"--service-cluster-ip-range={self.engine.subnet}",
            *(f"--audit-policy-file={self._folder}/audit.yaml", f"--audit-log-path={self._folder}/audit.log"),
            *("--kubelet-preferred-address-types=InternalIP", "--feature-gates=TTLAfterFinished=true"),
        ]

    def _kubelet_flags(self, folder: Path) -> list[str]:
        return [
            *(f"--kubeconfig={self.kubeconfig}", f"--config={folder}/config.yaml", f"--root-dir={folder}/root"),
            *(f"--cert-dir={folder}/pki", f"--hostname-override={self.name}", f"--node-ip={self.address}"),
            *("--container-runtime=docker", f"--docker-endpoint={self.engine.host}"),
            *(f"--pod-infra-container-image={PAUSE_IMAGE}", f"--experimental-dockershim-root-directory={folder}/shim"),
            *(f"--cni-bin-dir={folder}/cni", f"--cni-conf-dir={folder}/cni", f"--cni-cache-dir={folder}/cni"),
        ]

    def _write_kubelet_config(self, cgroup_driver: str) -> None:
        folder = self._folder / "kubelet"
        (folder / "cni").mkdir(parents=True)
        never = {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"}
        config = {
            **{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"},
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            **{"address": self.address, "port": free_port(), "readOnlyPort": 0, "healthzPort": 0},
            **{"cgroupDriver": cgroup_driver, "cgroupsPerQOS": False, "enforceNodeAllocatable": []},
            **{"failSwapOn": False, "makeIPTablesUtilChains": False, "hairpinMode": "none"},
            # Its socket would lie at a place of the whole machine.
            "featureGates": {"DevicePlugins": False},
            # No name server answers there, and at once: this machine's own is out of a pod's reach.
            **{"clusterDNS": [self.address], "clusterDomain": "cluster.local"},
            # A full disk of this machine is no reason to evict pods and remove images.
            **{"evictionHard": {**never, "imagefs.available": "0%"}, "imageGCHighThresholdPercent": 100},
            **{"nodeStatusUpdateFrequency": "4s", "maxPods": 250, "registryPullQPS": 0, "eventRecordQPS": 0},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl with all rights; whatever its exit code."""
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def _answers(self, path: str) -> bool:
        return self.kubectl("get", "--raw", path).returncode == 0

    def _is_ready(self) -> bool:
        taints = self.kubectl("get", "node", self.name, "-o", "jsonpath={.spec.taints}/{.status.conditions[*].status}")
        account = self.kubectl("get", "serviceaccount", "default")
        return taints.stdout.startswith("/") and taints.stdout.endswith("True") and account.returncode == 0


class _Client(DockerClient):  # type: ignore[misc]  # the SDK is not typed
    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
