"""A Jobs REST API in memory, which answers as a Ray head does; faults are put before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.ray.client import RayClient
from prefect_launch.runners.remote.ray.runner import RayRunner

NODE = "node-1"
Fault = Callable[[httpx.Request], httpx.Response | None]


@dataclass
class RayApi:
    """What a head knows.

    Attributes:
        jobs: by submission id, as the API gives them back.
        logs: by submission id, in bytes.
        packages: by name.
        nodes: what each node has.
        used: what of it is taken, of each node.
        node_types: the types of the nodes, as an autoscaler tells them.
        session: the head's life.
        faults: asked first; one that returns an answer is used up by it.
        proxy: asked before all; its answers are no head's.
        calls: "METHOD path" of every request.
    """

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    nodes: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 4.0, "memory": 8e9}])
    used: list[dict[str, float]] = field(default_factory=lambda: [{}])
    node_types: tuple[str, ...] = ("node_1",)
    session: str = "session-1"
    faults: list[Fault] = field(default_factory=list)
    proxy: Fault = field(default=lambda request: None)
    calls: list[str] = field(default_factory=list)
    lost_answers: int = 0

    def runner(self, home: Path, **environment: str) -> RayRunner:
        """Return a runner that reaches it."""
        client = RayClient(lambda: {"RAY_ADDRESS": "http://ray:8265", **environment}, httpx.MockTransport(self.answer))
        return RayRunner(home, client)

    def end(self, name: str, status: str = "SUCCEEDED", **more: Any) -> None:
        """Let a job end."""
        self.jobs[name] |= {"status": status, "start_time": 1_000, "end_time": 3_000, **more}

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        self.calls.append(f"{request.method} {request.url.path}")
        if (refused := self.proxy(request)) is not None:
            return refused
        for fault in list(self.faults):
            answer = fault(request)
            if answer is not None:
                self.faults.remove(fault)
                return answer
        answer = self._answer(request.method, request.url.path, request)
        if self.lost_answers:
            self.lost_answers -= 1
            raise httpx.ReadError("lost", request=request)
        return answer

    def _answer(self, method: str, path: str, request: httpx.Request) -> httpx.Response:
        if path == "/api/version":
            return httpx.Response(200, json={"ray_version": "2.60.0", "session_name": self.session})
        if path == "/api/jobs/":
            return self._submit(json.loads(request.content)) if method == "POST" else self._listed()
        if path.startswith("/api/jobs/"):
            return self._job(method, *path.removeprefix("/api/jobs/").partition("/")[::2])
        if path.startswith("/api/packages/gcs/"):
            return self._package(method, path.rpartition("/")[2], request.content)
        if path == "/api/v0/logs/file":
            name = request.url.params["filename"].removeprefix("job-driver-").removesuffix(".log")
            return httpx.Response(200, content=self.logs.get(name, b""))
        if path == "/api/v0/nodes":
            rows = [{"state": "ALIVE", "resources_total": one} for one in self.nodes]
            return httpx.Response(200, json={"data": {"result": {"result": rows}}})
        if path == "/api/cluster_status":
            usage = {
                str(number): {name: [used.get(name, 0.0), total] for name, total in node.items()}
                for number, (node, used) in enumerate(zip(self.nodes, self.used, strict=True))
            }
            types = {str(number): one for number, one in enumerate(self.node_types)}
            report = {"loadMetricsReport": {"usageByNode": usage}, "autoscalerReport": {"nodeTypeMapping": types}}
            return httpx.Response(200, json={"data": {"clusterStatus": report}})
        return httpx.Response(404, text="not there")

    def _listed(self) -> httpx.Response:
        drivers: list[dict[str, Any]] = [{"type": "DRIVER", "submission_id": None, "status": "RUNNING", "metadata": {}}]
        return httpx.Response(200, json=[*self.jobs.values(), *drivers])

    def _submit(self, body: Mapping[str, Any]) -> httpx.Response:
        name = body["submission_id"]
        if name in self.jobs:
            why = f"Job with submission_id {name} already exists. Please use a different submission_id."
            return httpx.Response(500, text=f"Traceback (most recent call last):\n  …\nValueError: {why}\n.\n")
        self.jobs[name] = {**body, "type": "SUBMISSION", "status": "PENDING", "driver_node_id": None}
        return httpx.Response(200, json={"job_id": name, "submission_id": name})

    def _job(self, method: str, name: str, verb: str) -> httpx.Response:
        job = self.jobs.get(name)
        if job is None:
            return httpx.Response(404, text=f"Job {name} does not exist")
        is_ended = job["status"] not in ("PENDING", "RUNNING")
        if method == "GET":
            return httpx.Response(200, json=job)
        if verb == "stop":
            if job["status"] == "RUNNING":
                self.end(name, "STOPPED", message="Job was intentionally stopped.")
            return httpx.Response(200, json={"stopped": not is_ended})
        if not is_ended:
            return httpx.Response(500, text="RuntimeError: it is in a non-terminal state")
        del self.jobs[name]
        return httpx.Response(200, json={"deleted": True})

    def _package(self, method: str, name: str, content: bytes) -> httpx.Response:
        if method == "PUT":
            self.packages[name] = content
        if name not in self.packages:
            return httpx.Response(404, text=f"Package gcs://{name} does not exist")
        return httpx.Response(200)


def plan_in(folder: Path, *command: str, **changes: Any) -> RunPlan:
    """Return a plan with a folder of its own."""
    item = str(uuid4())
    run_dir = folder / "runs" / item
    run_dir.mkdir(parents=True)
    labels = {Labels.ITEM: item, Labels.CLAIM: "claim-1"}
    return RunPlan(
        item_id=item,
        run_id=item[:8],
        run_dir=run_dir,
        **{"command": command or ("python", "train.py"), "labels": labels, **changes},
    )


async def submitted(runner: RayRunner, plan: RunPlan) -> str:
    """Submit a plan; return the run's handle."""
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle
