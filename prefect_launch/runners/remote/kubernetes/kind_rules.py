"""Rules of operators for what is made held: fields that they need, fields that keep an object from being held.

KubeRay refuses to suspend a RayJob whose cluster is to stay, and it makes the pod that submits the job's command from a
template of its own, where the run's labels are not: so that template is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from prefect_launch.errors import SpecError
from prefect_launch.runners.remote.kubernetes.fields import shown
from prefect_launch.runners.remote.kubernetes.kinds import (
    RAY_HEAD,
    RAY_SUBMITTER,
    ObjectKind,
    first,
    set_default,
)

_RAY: Final = ("ray.io", "RayJob")
#: As KubeRay has it.
_SUBMITTER: Final = {
    "name": "ray-job-submitter",
    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "200Mi"}},
}
_OWN_SUBMITTER_MODES: Final = (None, "", "K8sJobMode")


def check_kind(manifest: Mapping[str, Any], kind: ObjectKind, path: str) -> None:
    """Refuse an object that its operator would not take, or that would wait forever.

    Args:
        manifest: as its owner wrote it.
        kind: what is known of it.
        path: of the manifest, for messages.

    Raises:
        SpecError: with the path, the value, the rule and the next step.
    """
    for place, value in kind.required.items():
        given = first(manifest, place)
        if given is not None and given != value:
            raise SpecError(
                f"{path}.{place} is {shown(given)}; its operator holds a {kind.kind} back only where it is {value!r},"
                " and each run is held until it is recorded. Leave it out: the agent removes the object with all that"
                " it has made once its run has ended."
            )
    if (kind.group, kind.kind) == _RAY:
        _check_ray_job(manifest, path)


def _check_ray_job(manifest: Mapping[str, Any], path: str) -> None:
    if first(manifest, "spec.clusterSelector"):
        raise SpecError(
            f"{path}.spec.clusterSelector names an existing cluster, where no RayJob can be held back. Give"
            " rayClusterSpec, or use a queue of the resource 'ray' for that cluster."
        )
    if first(manifest, "spec.deletionStrategy"):
        raise SpecError(
            f"{path}.spec.deletionStrategy does not go with a RayJob that can be held back. Leave it out: the agent"
            " removes the RayJob with its cluster once its run has ended."
        )
    if first(manifest, "spec.submissionMode") == "InteractiveMode":
        raise SpecError(
            f"{path}.spec.submissionMode is 'InteractiveMode', in which a RayJob waits until somebody submits a job by"
            " hand. Leave it out."
        )


def with_defaults(manifest: dict[str, Any], kind: ObjectKind) -> None:
    """Put in what an object's owner has not set, and its operator needs or sets otherwise; it is changed.

    Args:
        manifest: of the object.
        kind: what is known of it.
    """
    for place, value in {**kind.defaults, **kind.required}.items():
        set_default(manifest, place, value)
    if (kind.group, kind.kind) == _RAY and first(manifest, "spec.submissionMode") in _OWN_SUBMITTER_MODES:
        pod = {"restartPolicy": "Never", "containers": [deepcopy(_SUBMITTER)]}
        set_default(manifest, RAY_SUBMITTER, {"spec": pod})


def complete_helpers(manifest: Mapping[str, Any], kind: ObjectKind) -> None:
    """Give the pod that submits a RayJob's command the image of its cluster's head, if it has no image of its own.

    Args:
        manifest: whose other pods are complete; it is changed.
        kind: what is known of it.
    """
    helper, head = first(manifest, f"{RAY_SUBMITTER}.spec"), first(manifest, f"{RAY_HEAD}.spec")
    if (kind.group, kind.kind) != _RAY or not helper or not head:
        return
    source = head["containers"][0]
    for container in helper["containers"]:
        if not container.get("image"):
            kept = ("image", "imagePullPolicy")
            container.update({key: source[key] for key in kept if key in source})
    if head.get("imagePullSecrets"):
        helper.setdefault("imagePullSecrets", deepcopy(head["imagePullSecrets"]))
