"""Hold of a run's object: it is made so that the cluster does not start it, and released once it is recorded.

A batch Job, or a custom resource that knows it, is suspended. One that names a queue of Kueue is suspended for Kueue,
which resumes it when the queue has room: it is held in a queue that does not exist, and released into its own.

A kind that cannot be held is made at once. If its pods must not run before something else exists, they mount a
ConfigMap that is made last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

from prefect_launch.runners.remote.kubernetes.kinds import JOB, ObjectKind, first, place

#: How an object is held until its run is recorded: `suspend`, `parallelism=N` with the number that it gets, or
#: `queue-name=NAME` with its queue of Kueue.
HOLD: Final = "prefect-launch.hold"
#: The label that names a queue of Kueue, a value of it that none has, and how its hold is written.
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
_NO_QUEUE: Final = "prefect-launch-held"
_BY_QUEUE: Final = "queue-name="
_GATE_VOLUME: Final = "launch-ready"
_GATE_DIR: Final = "/launch/ready"


class Hold(str, Enum):
    """How a batch Job is held: `SUSPEND` from Kubernetes 1.21 on, `PARALLELISM` (0 pods) on every server; or not."""

    NONE = "none"
    SUSPEND = "suspend"
    PARALLELISM = "parallelism"


def hold_back(manifest: dict[str, Any], kind: ObjectKind, hold: Hold) -> None:
    """Hold an object back, where its kind can be held; it is changed.

    Args:
        manifest: of the object, with its metadata whole.
        kind: what is known of it.
        hold: how the server holds a batch Job.
    """
    annotations, labels = manifest["metadata"]["annotations"], manifest["metadata"]["labels"]
    if hold is Hold.NONE:
        return
    if kind.suspend and (queue := labels.get(QUEUE_LABEL)):
        annotations[HOLD] = f"{_BY_QUEUE}{queue}"
        labels[QUEUE_LABEL] = _NO_QUEUE
        place(manifest, kind.suspend, True)
    elif kind.suspend and first(manifest, kind.suspend) is True:
        return  # Somebody else of the cluster is to start it.
    elif kind == JOB and hold is Hold.PARALLELISM:
        parallelism = first(manifest, "spec.parallelism")
        annotations[HOLD] = f"{hold.value}={1 if parallelism is None else parallelism}"
        place(manifest, "spec.parallelism", 0)
    elif kind.suspend:
        annotations[HOLD] = Hold.SUSPEND.value
        place(manifest, kind.suspend, True)


def hold_pods(pods: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    """Let pods wait for a ConfigMap, and return it.

    The kubelet starts no container of a pod, nor an init container, before all its volumes are mounted.

    Args:
        pods: the specs of the pods; they are changed.
        name: of the ConfigMap.
    """
    for pod in pods:
        volume = {"name": _GATE_VOLUME, "configMap": {"name": name}}
        pod["volumes"] = [*(pod.get("volumes") or ()), volume]
        container = pod["containers"][0]
        mount = {"name": _GATE_VOLUME, "mountPath": _GATE_DIR, "readOnly": True}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


def release_patch(manifest: Mapping[str, Any], kind: ObjectKind) -> dict[str, Any] | None:
    """Return the merge patch that releases an object; None for one that is not held by us (any more)."""
    metadata = manifest.get("metadata") or {}
    held = str((metadata.get("annotations") or {}).get(HOLD, ""))
    # Without its mark: who suspends the object later does not make it one that was never started.
    patch: dict[str, Any] = {"metadata": {"annotations": {HOLD: None}}}
    if held == Hold.SUSPEND.value and first(manifest, kind.suspend) is True:
        place(patch, kind.suspend, False)
        return patch
    if held.startswith(f"{Hold.PARALLELISM.value}=") and first(manifest, "spec.parallelism") == 0:
        place(patch, "spec.parallelism", int(held.partition("=")[2]))
        return patch
    if held.startswith(_BY_QUEUE) and (metadata.get("labels") or {}).get(QUEUE_LABEL) == _NO_QUEUE:
        patch["metadata"]["labels"] = {QUEUE_LABEL: held.removeprefix(_BY_QUEUE)}
        return patch
    return None


def is_held(manifest: Mapping[str, Any], kind: ObjectKind) -> bool:
    """Whether an object waits for its release by us."""
    return release_patch(manifest, kind) is not None
