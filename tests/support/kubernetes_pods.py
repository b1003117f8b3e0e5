"""What becomes of a Job's pods on a scripted Kubernetes API: each way to wait and to end, in today's words."""

from __future__ import annotations

from typing import Any

from tests.support.kubernetes_api import KubernetesApi
from tests.support.kubernetes_store import Object, now

JOBS = ("apis/batch/v1", "jobs")
PODS = ("api/v1", "pods")
EVENTS = ("api/v1", "events")
KILLED, TERMINATED = 137, 143


class JobPods:
    """The pods of one Job of a scripted server, and what the Job says of them.

    Args:
        api: The server.
        namespace: The Job's.
        name: The Job's.
    """

    def __init__(self, api: KubernetesApi, namespace: str, name: str) -> None:
        self._api, self._namespace, self._job = api, namespace, name
        self._count = 0

    @property
    def job(self) -> Object:
        """The Job."""
        return self._api.store.get(JOBS, self._namespace, self._job)

    @property
    def pods(self) -> list[Object]:
        """Its pods."""
        return self._api.store.list(PODS, self._namespace, f"job-name={self._job}")

    def is_held(self) -> bool:
        """Whether the Job starts no pod yet."""
        spec = self.job["spec"]
        return bool(spec.get("suspend")) or spec.get("parallelism") == 0

    def create(self) -> str:
        """Create one pod, which no node has taken; returns its name."""
        template, uid = self.job["spec"]["template"], self.job["metadata"]["uid"]
        name, labels = f"{self._job}-{self._count:05d}", {"job-name": self._job, "controller-uid": uid}
        self._count += 1
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": self._job, "uid": uid, "controller": True}
        metadata = {
            **(template.get("metadata") or {}),
            "name": name,
            "labels": {
                **((template.get("metadata") or {}).get("labels") or {}),
                **labels,
                **{f"batch.kubernetes.io/{key}": value for key, value in labels.items()},
            },
            "ownerReferences": [owner],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        self._api.store.create(PODS, self._namespace, {**pod, "status": {"phase": "Pending"}})
        self._job_status(active=1, startTime=now())
        return name

    def cannot_be_scheduled(self, message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") -> None:
        """No node has room for the pod."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._pod_status(conditions=[{**condition, "lastTransitionTime": now()}])

    def wait(self, reason: str, message: str = "", container: str | None = None) -> None:
        """A node has the pod, whose containers cannot start: ImagePullBackOff, CreateContainerConfigError…"""
        self._scheduled(container, {"waiting": {"reason": reason, "message": message}})

    def run(self) -> None:
        """The containers run; native sidecars too."""
        running = {"running": {"startedAt": now()}}
        self._scheduled(None, running, phase="Running", init=running)

    def finish(
        self, exit_code: int = 0, *, reason: str | None = None, message: str = "", signal: int = 0, container: str = ""
    ) -> None:
        """The containers end; the Job says so too.

        Args:
            exit_code: Of the container, the others' is 0.
            reason: OOMKilled, ContainerCannotRun; by default Completed or Error.
            message: What it wrote to its termination message.
            signal: What ended it.
            container: Which one; the first by default.
        """
        self.end_pod(exit_code, reason=reason, message=message, signal=signal, container=container)
        if exit_code:
            self.fail("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        else:
            self.complete()

    def end_pod(
        self, exit_code: int = 0, *, reason: str | None = None, message: str = "", signal: int = 0, container: str = ""
    ) -> None:
        """The containers end, and the Job says nothing yet; the arguments are those of `finish`."""
        names = [each["name"] for each in self._spec().get("containers", ())]
        chosen = container or names[0]
        statuses = []
        for name in names:
            code = exit_code if name == chosen else 0
            ended: Object = {"exitCode": code, "startedAt": now(), "finishedAt": now()}
            ended["reason"] = (reason if name == chosen else None) or ("Error" if code else "Completed")
            if name == chosen:
                ended |= {"message": message} if message else {}
                ended |= {"signal": signal} if signal else {}
            statuses.append(_container(name, {"terminated": ended}))
        # The kubelet ends native sidecars after the containers, by TERM and then KILL.
        killed = {"terminated": {"exitCode": KILLED, "reason": "Error", "finishedAt": now()}}
        init = [_container(each["name"], killed) for each in self._sidecars()]
        phase = "Failed" if exit_code else "Succeeded"
        self._pod_status(phase=phase, containerStatuses=statuses, initContainerStatuses=init)

    def disrupt(self, reason: str, message: str = "", *, deleted: bool = False) -> None:
        """Something takes the pod away for a cause that is not its own.

        Args:
            reason: PreemptionByScheduler, EvictionByEvictionAPI, DeletionByTaintManager, DeletionByPodGC or
                TerminationByKubelet.
            message: In the condition.
            deleted: Whether the pod is gone at once.
        """
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
        self.end_pod(TERMINATED)
        self._pod_status(conditions=[{**condition, "lastTransitionTime": now()}])
        if deleted:
            self._api.store.delete(PODS, self._namespace, self._last()["metadata"]["name"])

    def evict(self, message: str = "The node was low on resource: memory.") -> None:
        """The kubelet ends the pod, as its node is short of something: before 1.26, with no condition."""
        self._pod_status(phase="Failed", reason="Evicted", message=message, containerStatuses=[])

    def complete(self) -> None:
        """The Job has ended well."""
        self._end_job(
            "Complete", "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods"
        )

    def fail(self, reason: str, message: str = "") -> None:
        """The Job has failed: BackoffLimitExceeded, DeadlineExceeded, PodFailurePolicy, MaxFailedIndexesExceeded.

        The pods of one that has failed by its deadline are deleted, as the controller does.
        """
        if reason == "DeadlineExceeded":
            for pod in self.pods:
                self._api.store.delete(PODS, self._namespace, pod["metadata"]["name"])
        self._end_job("Failed", "FailureTarget", reason, message)

    def event(self, reason: str, message: str, *, kind: str = "Pod", what: str = "Warning") -> None:
        """Something is told of the pod, or of the Job: FailedScheduling, FailedCreate (a quota), BackOff."""
        about = self.job if kind == "Job" else self._last()
        metadata = about["metadata"]
        involved = {"kind": kind, "name": metadata["name"], "namespace": self._namespace, "uid": metadata["uid"]}
        event = {
            **{"apiVersion": "v1", "kind": "Event", "type": what, "reason": reason, "message": message},
            **{"involvedObject": involved, "lastTimestamp": now(), "count": 1},
            "metadata": {"generateName": f"{metadata['name']}."},
        }
        self._api.store.create(EVENTS, self._namespace, event)

    def _end_job(self, condition: str, before: str, reason: str, message: str) -> None:
        conditions = [
            {"type": each, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
            for each in (before, condition)
        ]
        counts = {"succeeded": 1} if condition == "Complete" else {"failed": max(1, self._count)}
        self._job_status(active=0, conditions=conditions, completionTime=now(), **counts)

    def _scheduled(
        self, container: str | None, state: Object, *, phase: str = "Pending", init: Object | None = None
    ) -> None:
        created = {"waiting": {"reason": "ContainerCreating"}}
        statuses = [
            _container(each["name"], state if container in (None, each["name"]) else created)
            for each in self._spec().get("containers", ())
        ]
        sidecars = [_container(each["name"], init) for each in self._sidecars()] if init else []
        conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}]
        self._api.store.patch(PODS, self._namespace, self._last()["metadata"]["name"], {"spec": {"nodeName": "node-1"}})
        self._pod_status(
            phase=phase,
            conditions=conditions,
            containerStatuses=statuses,
            initContainerStatuses=sidecars,
            startTime=now(),
        )

    def _sidecars(self) -> list[Object]:
        return [each for each in self._spec().get("initContainers", ()) if each.get("restartPolicy") == "Always"]

    def _spec(self) -> Object:
        spec: Object = self._last()["spec"]
        return spec

    def _last(self) -> Object:
        return self.pods[-1]

    def _pod_status(self, **status: Any) -> None:
        name = self._last()["metadata"]["name"]
        self._api.store.patch(PODS, self._namespace, name, {"status": status})

    def _job_status(self, **status: Any) -> None:
        self._api.store.patch(JOBS, self._namespace, self._job, {"status": status})


def _container(name: str, state: Object) -> Object:
    return {"name": name, "state": state, "ready": "running" in state, "restartCount": 0, "image": "", "imageID": ""}
