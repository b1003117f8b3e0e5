"""Real engines of the benchmarks, and what each does with a bare job: Kubernetes, Slurm, Ray, a Prefect worker.

The job of a floor and that of an item do the same: their first command makes a file, whose time stamp says when they
ran. Each engine is that of the tests, started for the benchmark and gone afterwards.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import httpx

from benchmarks.place import Place

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATIENCE_SECONDS = 900.0
_LOOK_SECONDS = 0.005


class EngineMissingError(RuntimeError):
    """This machine does not have the engine."""


class Marks:
    """Files that jobs make as the first thing that they do.

    Args:
        folder: that the jobs see under the same path.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        self.folder = folder

    def command(self, name: str) -> str:
        """Return the shell command that makes a mark."""
        return f": > {self.folder}/{name}"

    def times(self, prefix: str) -> list[float]:
        """Return when the marks were made whose names begin so, in seconds since the epoch."""
        return [one.stat().st_mtime for one in self.folder.iterdir() if one.name.startswith(prefix)]

    def wait(self, prefix: str, count: int = 1, seconds: float = _PATIENCE_SECONDS) -> list[float]:
        """Wait until there are so many marks; return their times.

        Raises:
            TimeoutError: when they are not there in time.
        """
        deadline = time.monotonic() + seconds
        while len(found := self.times(prefix)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} jobs {prefix!r} have begun in {seconds:g} s")
            time.sleep(_LOOK_SECONDS if count == 1 else 0.2)
        return found


class Engine(ABC):
    """An engine that runs, and a way to it with nothing of ours in between.

    Args:
        place: of the benchmarks.

    Attributes:
        name: of the resource.
        floor: what a bare job is.
        slots: how many items the agent works on at a time.
        marks: of its jobs.
        environment: by which an agent finds it.
    """

    name: ClassVar[str]
    floor: ClassVar[str]
    slots: ClassVar[int] = 200

    def __init__(self, place: Place) -> None:
        self.place = place
        self.marks = Marks(place.folder / f"marks-{self.name}")
        self.environment: dict[str, str] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The config of a queue."""
        return {}

    def spec(self, mark: str) -> dict[str, Any]:
        """Return what an item is that makes a mark: here, a code job."""
        return {"job": self._job, "overrides": {"entry_point": ["sh", "-c", self.marks.command(mark)]}}

    @cached_property
    def _job(self) -> str:
        from benchmarks.bench_throughput import instant_job

        return instant_job(self.place)

    @abstractmethod
    def submit(self, mark: str) -> None:
        """Submit a bare job that makes a mark."""

    @abstractmethod
    def full(self) -> AbstractContextManager[None]:
        """Let no job start for as long as the block lasts."""

    @abstractmethod
    def close(self) -> None:
        """End it with all that runs there."""


class Kubernetes(Engine):
    """One node, of the tests."""

    name: ClassVar[str] = "kubernetes"
    floor: ClassVar[str] = "POST of a Job"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from tests.support.kubernetes_cluster import KubernetesCluster
        from tests.support.kubernetes_node import KubernetesNode
        from tests.support.kubernetes_programs import KubernetesMissingError

        try:
            self._node = KubernetesNode()
        except KubernetesMissingError as missing:
            raise EngineMissingError(str(missing)) from missing
        self._cluster = KubernetesCluster(self._node.kubeconfig, self._node)
        self._namespace = self._cluster.create_namespace()
        self.environment = {"KUBECONFIG": str(self._node.kubeconfig)}
        trust = ssl.create_default_context(cafile=str(self._node.authority))
        login = {"Authorization": f"Bearer {self._node.token}"}
        self._client = httpx.Client(base_url=f"https://{self._node.address}", headers=login, verify=trust, timeout=60)

    @property
    def config(self) -> dict[str, Any]:
        return {"namespace": self._namespace, "volumes": f"{self.marks.folder}:{self.marks.folder}"}

    def spec(self, mark: str) -> dict[str, Any]:
        command = ["sh", "-c", self.marks.command(mark)]
        return {"docker": {"docker_image": self._cluster.shell_image}, "overrides": {"entry_point": command}}

    def submit(self, mark: str) -> None:
        folder = str(self.marks.folder)
        container = {
            **{"name": "main", "image": self._cluster.shell_image, "command": ["sh", "-c", self.marks.command(mark)]},
            "volumeMounts": [{"name": "marks", "mountPath": folder}],
        }
        pod = {
            **{"restartPolicy": "Never", "containers": [container]},
            "volumes": [{"name": "marks", "hostPath": {"path": folder}}],
        }
        job = {
            **{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"bare-{uuid4().hex[:12]}"}},
            "spec": {"backoffLimit": 0, "template": {"spec": pod}},
        }
        self._client.post(f"/apis/batch/v1/namespaces/{self._namespace}/jobs", json=job).raise_for_status()

    @contextmanager
    def full(self) -> Iterator[None]:
        self._cluster.cordon()
        yield
        self._cluster.uncordon()

    def close(self) -> None:
        self._client.close()
        self._node.stop()


class Slurm(Engine):
    """Two nodes of four CPUs, of the tests."""

    name: ClassVar[str] = "slurm"
    floor: ClassVar[str] = "sbatch"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from tests.support.slurm import SlurmCluster, SlurmMissingError

        try:
            self._cluster = SlurmCluster()
        except SlurmMissingError as missing:
            raise EngineMissingError(str(missing)) from missing
        self.environment = {"SLURM_CONF": str(self._cluster.config)}

    @property
    def config(self) -> dict[str, Any]:
        return {"memory": "100m"}

    def submit(self, mark: str) -> None:
        command = ["sbatch", "--parsable", "--mem=100", "--output=/dev/null", f"--wrap={self.marks.command(mark)}"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **self.environment})

    @contextmanager
    def full(self) -> Iterator[None]:
        self._cluster.set_nodes("drain")
        yield
        self._cluster.set_nodes("resume")

    def close(self) -> None:
        self._cluster.stop()


class Ray(Engine):
    """A head with two CPUs, of the tests. So many jobs at a time as have room for their processes."""

    name: ClassVar[str] = "ray"
    floor: ClassVar[str] = "POST of a job"
    _CPUS: ClassVar[float] = 0.25

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from tests.support.ray import RayHead, RayMissingError

        try:
            self._head = RayHead()
        except RayMissingError as missing:
            raise EngineMissingError(str(missing)) from missing
        self.environment = {"RAY_ADDRESS": self._head.address}
        self._client = self._head.client()

    @property
    def config(self) -> dict[str, Any]:
        from tests.support.ray import GATE

        return {"cpus": self._CPUS, "resources": {GATE: 0.001}}

    def submit(self, mark: str) -> None:
        body = {"entrypoint": self.marks.command(mark), "entrypoint_num_cpus": self._CPUS}
        self._client.post("/api/jobs/", json=body).raise_for_status()

    def full(self) -> AbstractContextManager[None]:
        return self._head.full()

    def close(self) -> None:
        self._client.close()
        self._head.stop()


class PrefectWorker(Engine):
    """A work pool of processes and its worker, which asks the server once a second."""

    name: ClassVar[str] = "prefect"
    floor: ClassVar[str] = "a flow run with a bare command"
    slots: ClassVar[int] = 16

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from tests.support.prefect_worker import PrefectWorkerProcess

        url, pool = place.server.api_url, "bench-processes"
        self._worker = PrefectWorkerProcess(url, pool, "process", place.folder / "worker")
        self._worker.start()
        self._client = httpx.Client(base_url=url, timeout=60)
        flow = self._post("/flows/", {"name": "bare"})
        more = {"path": str(place.folder), "entrypoint": "none.py:none", "pull_steps": []}
        self._deployment = self._post(
            "/deployments/", {"name": "bare", "flow_id": flow["id"], "work_pool_name": pool, **more}
        )["id"]
        self._pool = pool

    @property
    def config(self) -> dict[str, Any]:
        return {"work_pool": self._pool}

    def submit(self, mark: str) -> None:
        variables = {"command": f"sh -c '{self.marks.command(mark)}'"}
        body = {"state": {"type": "SCHEDULED", "name": "Scheduled"}, "job_variables": variables}
        self._post(f"/deployments/{self._deployment}/create_flow_run", body)

    @contextmanager
    def full(self) -> Iterator[None]:
        self._worker.stop()
        yield

    def close(self) -> None:
        self._client.close()
        self._worker.stop()

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        # On SQLite two writers that meet are answered so, and nothing was made.
        while (answer := self._client.post(path, json=body)).status_code == 503:
            time.sleep(0.1)
        answer.raise_for_status()
        return answer.json()


ENGINES: Sequence[type[Engine]] = (Kubernetes, Slurm, Ray, PrefectWorker)
