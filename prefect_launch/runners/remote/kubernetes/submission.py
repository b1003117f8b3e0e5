"""Submission of a Kubernetes run: its object first, held, then what belongs to it, owned by that object.

So everything is removed with the object, whenever the agent dies. A submission that fails removes what it has made. The
object is marked as incomplete until the rest exists, and an agent that finds it incomplete removes it. Objects of an
earlier try are reused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import anyio

from prefect_launch.errors import AgentConfigError, LaunchError, QueueError, SpecError, clause
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient, Object
from prefect_launch.runners.remote.kubernetes.errors import NotThereError, TakenError
from prefect_launch.runners.remote.kubernetes.holding import is_held
from prefect_launch.runners.remote.kubernetes.objects import RunObjects, labels_of, with_owner
from prefect_launch.runners.remote.kubernetes.options import ServiceSpec
from prefect_launch.runners.remote.kubernetes.run_status import kind_in, note_kind
from prefect_launch.runners.remote.kubernetes.watch import JOBS, Resource

log = logging.getLogger(__name__)

#: Marks an object whose Secret, code or services are not all there.
INCOMPLETE: Final = "prefect-launch.incomplete"
#: Between two looks at a service that is not ready.
_READY_PAUSE_SECONDS: Final = 1.0
#: How long what an older object owned may take to go, once that is deleted.
_TAKEN_SECONDS: Final = 30.0
#: How long the removal of what a failed submission has made may take.
_UNDO_SECONDS: Final = 10.0

#: Those that every cluster has under this name, of which runs are made.
_BUILT_IN: Final = {
    ("batch/v1", "Job"): JOBS,
    ("v1", "Secret"): Resource("secrets", "v1"),
    ("v1", "ConfigMap"): Resource("configmaps", "v1"),
}


class Kinds:
    """The kinds of objects that a cluster has, asked for once each.

    Args:
        client: of the cluster.
    """

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._known: dict[tuple[str, str], Resource] = dict(_BUILT_IN)

    async def resource(self, api_version: str, kind: str) -> Resource:
        """Return how a kind is called in paths.

        Raises:
            QueueError: when the cluster does not have it, or not in namespaces.
        """
        known = self._known.get((api_version, kind))
        if known is not None:
            return known
        group, _, version = api_version.rpartition("/")
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        try:
            found = await self._client.get(base, what=f"say what there is in {api_version}")
        except NotThereError:
            raise QueueError(
                f"The cluster has no API {api_version!r}, which the queue's {kind} is of. Install its operator there,"
                " or correct apiVersion."
            ) from None
        for one in found.get("resources") or ():
            if "/" not in one["name"] and one.get("namespaced"):
                self._known[api_version, one["kind"]] = Resource(one["name"], version, group)
        if (api_version, kind) not in self._known:
            names = ", ".join(sorted(name for of, name in self._known if of == api_version))
            raise QueueError(f"The cluster's API {api_version!r} has no kind {kind!r}. It has: {names}. Correct kind.")
        return self._known[api_version, kind]


async def create_run(
    client: KubernetesClient, kinds: Kinds, made: RunObjects, namespace: str, resource: Resource
) -> Object:
    """Create a run's object, and what belongs to it; return the object that has the run's name.

    Args:
        client: of the cluster.
        kinds: of the cluster.
        made: what to create.
        namespace: that all is made in.
        resource: what the object is called in paths.

    Raises:
        LaunchError: when the cluster refuses it, fails or does not answer.
    """
    manifest = made.manifest
    note_kind(manifest, made.kind)
    is_whole = not (made.owned or made.services)
    if not is_whole:
        manifest["metadata"].setdefault("annotations", {})[INCOMPLETE] = "true"
    job = None
    try:
        job = await _create(client, resource.path(namespace), manifest)
        is_ours = labels_of(job).items() >= labels_of(manifest).items()
        if is_whole or not is_ours or not is_incomplete(job):
            return job
        return await _complete(client, kinds, made, namespace, resource, job)
    except BaseException as error:
        # Also one that was made though its answer was lost; what was refused was not.
        if job is not None or not isinstance(error, (SpecError, QueueError, AgentConfigError)):
            with anyio.CancelScope(shield=True):
                await _undo(client, resource.path(namespace, manifest["metadata"]["name"]), manifest)
        raise


async def _undo(client: KubernetesClient, path: str, manifest: Object) -> None:
    """Remove the object of a submission that has failed, and all that it owns; what stays is found as incomplete."""
    name = manifest["metadata"]["name"]
    try:
        with anyio.move_on_after(_UNDO_SECONDS):
            there = await client.find(path, what=f"read {name}")
            if there is not None and _is_made_of(there, manifest) and not _was_released(there):
                body = {"propagationPolicy": "Foreground", "preconditions": {"uid": there["metadata"]["uid"]}}
                await client.delete(path, body, what=f"remove {name}, which could not be made whole")
    except LaunchError as error:
        log.warning("%s may be there, not whole, and cannot be removed now: %s", name, error)


def _is_made_of(there: Object, manifest: Object) -> bool:
    """Whether an object is of this claim, and of this maker: another one's has other annotations."""
    written = {key: value for key, value in manifest["metadata"]["annotations"].items() if key != INCOMPLETE}
    is_written = written.items() <= (there["metadata"].get("annotations") or {}).items()
    return is_written and labels_of(there).get(Labels.CLAIM) == labels_of(manifest).get(Labels.CLAIM)


def _was_released(there: Object) -> bool:
    """Whether an object was made before by somebody else, who has released it."""
    kind = kind_in(there)
    return bool(kind.suspend) and not is_incomplete(there) and not is_held(there, kind)


async def _complete(
    client: KubernetesClient, kinds: Kinds, made: RunObjects, namespace: str, resource: Resource, job: Object
) -> Object:
    """Create what belongs to a run's object; return the object, marked as complete."""
    for one in made.owned:
        await _create_owned(client, kinds, namespace, with_owner(one, job))
    for service in made.services:
        await _create_owned(client, kinds, namespace, with_owner(service.manifest, job))
    for service in made.services:
        if service.wait_for_ready:
            await _wait_ready(client, kinds, namespace, service)
    for one in made.last:
        await _create_owned(client, kinds, namespace, with_owner(one, job))
    name = job["metadata"]["name"]
    patch = {"metadata": {"uid": job["metadata"]["uid"], "annotations": {INCOMPLETE: None}}}
    return await client.patch(resource.path(namespace, name), patch, what=f"complete {name}")


def is_incomplete(job: Mapping[str, Any]) -> bool:
    """Whether something that belongs to an object may not be there."""
    return INCOMPLETE in (job["metadata"].get("annotations") or {})


async def _create(client: KubernetesClient, path: str, manifest: Object) -> Object:
    """Create an object, or return the one that has its name."""
    name = manifest["metadata"]["name"]
    what = f"create the {manifest['kind']} {name}"
    while True:
        try:
            # An older server takes no notice of the query.
            return await client.create(path, manifest, {"fieldValidation": "Strict"}, what=what)
        except TakenError:
            there = await client.find(f"{path}/{name}", what=f"read the {manifest['kind']} {name}")
            if there is not None:
                return there
        except NotThereError as error:
            raise QueueError(
                f"The cluster cannot take the {manifest['kind']}: {clause(error)}. Create the namespace, or correct the"
                " queue's config."
            ) from None


async def _create_owned(client: KubernetesClient, kinds: Kinds, namespace: str, made: Object) -> None:
    """Create an object that an owner has; one of the same name that an older owner had must go first."""
    resource = await kinds.resource(made["apiVersion"], made["kind"])
    due = time.monotonic() + _TAKEN_SECONDS
    name = made["metadata"]["name"]
    while True:
        there = await _create(client, resource.path(namespace), made)
        owners = [one.get("uid") for one in there["metadata"].get("ownerReferences") or ()]
        if made["metadata"]["ownerReferences"][0]["uid"] in owners:
            return
        if labels_of(there).get(Labels.ITEM) != labels_of(made).get(Labels.ITEM):
            raise QueueError(
                f"The namespace {namespace} has a {made['kind']} {name!r} already, which is not of this item. Give"
                " the additional service a name that no other has, such as one with ${run_id} in it."
            )
        if time.monotonic() >= due:
            raise TakenError(f"The {made['kind']} {name!r} of an older attempt has not gone. Try again.")
        uid = there["metadata"]["uid"]
        await client.delete(
            resource.path(namespace, name), {"preconditions": {"uid": uid}}, what=f"remove the {made['kind']} {name}"
        )
        await asyncio.sleep(0.2)


# --- services ---


async def _wait_ready(client: KubernetesClient, kinds: Kinds, namespace: str, service: ServiceSpec) -> None:
    manifest = service.manifest
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    resource = await kinds.resource(manifest["apiVersion"], kind)
    due = time.monotonic() + service.wait_seconds
    seen = "not there"
    while time.monotonic() < due:
        found = await client.find(resource.path(namespace, name), what=f"read the {kind} {name}")
        if found is not None:
            seen = await _why_not_ready(client, namespace, found)
        if not seen:
            return
        await asyncio.sleep(_READY_PAUSE_SECONDS)
    raise QueueError(
        f"The additional service {kind} {name!r} was not ready after {service.wait_seconds:g} s: {seen}. It is removed"
        " with its job. Look at its image and its readiness probe, or raise wait_timeout."
    )


async def _why_not_ready(client: KubernetesClient, namespace: str, found: Object) -> str:
    """Say what a service still waits for; empty once it is ready. A kind that tells nothing is ready when it exists."""
    kind, status, spec = found["kind"], found.get("status") or {}, found.get("spec") or {}
    if kind == "Pod":
        ready = any(
            one.get("type") == "Ready" and one.get("status") == "True" for one in status.get("conditions") or ()
        )
        return "" if ready else f"its phase is {status.get('phase', 'Pending')}"
    if kind in ("Deployment", "StatefulSet", "ReplicaSet"):
        wanted, there = spec.get("replicas", 1), status.get("readyReplicas") or 0
        return "" if there >= wanted else f"{there} of {wanted} pods are ready"
    if kind == "Job":
        return "" if status.get("succeeded") or status.get("active") else "it has no pod"
    if kind == "Service" and spec.get("selector"):
        name = found["metadata"]["name"]
        ends = await client.find(
            f"/api/v1/namespaces/{namespace}/endpoints/{name}", what=f"read the endpoints of {name}"
        )
        has_any = any(subset.get("addresses") for subset in (ends or {}).get("subsets") or ())
        return "" if has_any else "no pod that it selects is ready"
    return ""
