"""What an agent needs of a Kubernetes cluster, looked at without making anything: login, namespace, rights."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final

from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import Finding
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient
from prefect_launch.runners.remote.kubernetes.watch import JOBS, Resource

_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
#: What is done with the object of a run.
_OF_RUNS: Final = ("create", "get", "list", "watch", "patch", "delete")
#: What else is needed: verbs on a resource of the core, with its part.
_OTHERS: Final = (
    ("list", "pods", ""),
    ("watch", "pods", ""),
    ("delete", "pods", ""),
    ("get", "pods", "log"),
    *((verb, name, "") for name in ("secrets", "configmaps") for verb in ("create", "get", "delete")),
)

#: What is done with an additional service.
_OF_SERVICES: Final = ("create", "get", "delete")
#: A Service is ready once one of these is, which have its name.
_ENDPOINTS: Final = ("get", "", "endpoints", "")

#: Without it, only the reason of a wait may stay unknown.
_OPTIONAL: Final = ("list", "", "events", "")


async def diagnose_cluster(
    client: KubernetesClient,
    namespace: str | None,
    resource: Resource = JOBS,
    *,
    services: Collection[Resource] = (),
    secrets: Collection[str] = (),
) -> list[Finding]:
    """Look at a cluster as an agent's login sees it.

    Args:
        client: of it.
        namespace: of the queue; None: the login's own.
        resource: that runs are objects of.
        services: that additional services are objects of.
        secrets: names of Secrets that must be there.
    """
    try:
        version = await client.version()
        chosen = namespace or await client.namespace()
    except LaunchError as error:
        return [Finding(name="Kubernetes", is_ok=False, detail=str(error))]
    found = [Finding(name="Kubernetes", is_ok=True, detail=f"version {version[0]}.{version[1]}, namespace {chosen}")]
    if await _is_missing(client, chosen):
        step = f"The cluster has no namespace {chosen!r}. Create it, or correct the queue's config."
        return [*found, Finding(name="namespace", is_ok=False, detail=step)]
    rights = [(verb, resource.group, resource.plural, "") for verb in _OF_RUNS]
    rights += [(verb, "", name, part) for verb, name, part in _OTHERS]
    rights += [(verb, one.group, one.plural, "") for one in services for verb in _OF_SERVICES]
    rights += [_ENDPOINTS for one in services if (one.group, one.plural) == ("", "services")]
    try:
        missing = await _missing(client, chosen, list(dict.fromkeys(rights)))
        not_told = await _missing(client, chosen, [_OPTIONAL])
    except LaunchError as error:
        return [*found, Finding(name="rights", is_ok=False, detail=str(error))]
    if missing:
        step = f"Give the agent's account a Role in {chosen} with: {', '.join(missing)}."
        return [*found, Finding(name="rights", is_ok=False, detail=step)]
    without = f"; without {not_told[0]}, why a job waits may not be told" if not_told else ""
    detail = f"on {resource.plural}, pods, their logs, secrets{without}"
    found.append(Finding(name="rights", is_ok=True, detail=detail))
    return [*found, *[await _secret(client, chosen, name) for name in secrets]]


async def _secret(client: KubernetesClient, namespace: str, name: str) -> Finding:
    try:
        there = await client.find(f"/api/v1/namespaces/{namespace}/secrets/{name}", what=f"read the Secret {name}")
    except LaunchError as error:
        return Finding(name=f"Secret {name}", is_ok=False, detail=str(error))
    if there is None:
        step = f"The namespace {namespace} has no Secret {name!r}. Create it, or correct the config that names it."
        return Finding(name=f"Secret {name}", is_ok=False, detail=step)
    return Finding(name=f"Secret {name}", is_ok=True)


async def _is_missing(client: KubernetesClient, namespace: str) -> bool:
    """Whether a namespace is not there; an agent need not be allowed to look."""
    try:
        return await client.find(f"/api/v1/namespaces/{namespace}", what="read the namespace") is None
    except LaunchError:
        return False


async def _missing(client: KubernetesClient, namespace: str, rights: Sequence[tuple[str, str, str, str]]) -> list[str]:
    async def is_allowed(verb: str, group: str, resource: str, part: str) -> bool:
        wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": part}
        review: dict[str, Any] = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in wanted.items() if value}},
        }
        answer = await client.create(_REVIEWS, review, what="ask for the agent's rights")
        return bool((answer.get("status") or {}).get("allowed"))

    allowed = await asyncio.gather(*(is_allowed(*right) for right in rights))
    return [
        f"{verb} {resource}{'/' + part if part else ''}"
        for (verb, _, resource, part), is_ok in zip(rights, allowed, strict=True)
        if not is_ok
    ]
