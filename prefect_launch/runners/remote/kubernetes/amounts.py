"""Amounts that a whole run asks for: of all containers of all its pods, and its services', for its queue's limits.

A queue's maximum of memory is one of the run, not of a container: a manifest with four pods of 4 GiB asks for 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from prefect_launch.core.units import format_size
from prefect_launch.errors import LaunchError
from prefect_launch.runners.option_values import UNLIMITED, Amount
from prefect_launch.runners.remote.kubernetes.kind_rules import with_defaults
from prefect_launch.runners.remote.kubernetes.manifest_checks import with_names
from prefect_launch.runners.remote.kubernetes.options import (
    KubernetesOptions,
    job_containers,
    one_container_job,
    read_options,
)
from prefect_launch.runners.remote.kubernetes.pod_counts import Pods, pods_in
from prefect_launch.runners.remote.kubernetes.quantities import asked_of
from prefect_launch.runners.remote.kubernetes.short_options import set_resources

_COUNTED: Final = ("cpus", "memory", "gpus")


def amounts_of(options: Mapping[str, Any]) -> dict[str, Amount]:
    """Return how much a run with these options asks for in all, by the name of the quantity.

    Returns:
        Nothing for options that are wrong, or that are not filled in yet: `check_options` says what is.
    """
    try:
        read = read_options(options)
    except LaunchError:
        return {}
    manifest = deepcopy(read.manifest) if read.manifest is not None else one_container_job()
    with_defaults(manifest, read.kind)
    found = [(pods.number, _of_pod(pods, read)) for pods in pods_in(manifest, read.kind)]
    for service in read.additional_services:
        found += [(pods.number, _of_pod(pods, read)) for pods in pods_in(service.manifest)]
    pods = sum(count for count, _ in found)
    totals = {name: sum(count * asked[name] for count, asked in found if count and asked[name]) for name in _COUNTED}
    return {name: Amount(total, _in_words(name, total, pods)) for name, total in totals.items()}


def _of_pod(pods: Pods, options: KubernetesOptions) -> dict[str, float]:
    """Return the amounts of one pod: its containers and sidecars together, or an init container that needs more."""
    pod = with_names({"spec": deepcopy(dict(pods.spec))})["spec"]
    if pods.place is not None:
        for container in job_containers(pod, options, pods.place):
            set_resources(container, options)
    containers = [asked_of(one, options.gpu_resource) for one in pod.get("containers") or ()]
    init = [
        (one.get("restartPolicy") == "Always", asked_of(one, options.gpu_resource))
        for one in pod.get("initContainers") or ()
    ]
    own = asked_of(pod, options.gpu_resource) if pod.get("resources") else {}
    return {name: max(_at_most(name, containers, init), _finite(own.get(name))) for name in _COUNTED} | _claimed(pod)


def _at_most(
    name: str, containers: Sequence[Mapping[str, float]], init: Sequence[tuple[bool, Mapping[str, float]]]
) -> float:
    """Return the most that containers have at a time: each init container runs together with the sidecars before it."""
    beside, most = 0.0, 0.0
    for is_sidecar, asked in init:
        most = max(most, beside + asked[name])
        beside += asked[name] if is_sidecar else 0.0
    return max(most, beside + sum(asked[name] for asked in containers))


def _finite(amount: float | None) -> float:
    return 0.0 if amount is None or amount == UNLIMITED else amount


def _claimed(pod: Mapping[str, Any]) -> dict[str, float]:
    """Return what a pod's claims may be for: how many devices they are, is known to the cluster alone."""
    return {"gpus": UNLIMITED} if pod.get("resourceClaims") else {}


def _in_words(name: str, total: float, pods: float) -> str:
    if total == UNLIMITED:
        why = "behind resourceClaims" if name == "gpus" else "in a container that has no resources.limits"
        return f"an amount without a limit, {why},"
    amount = format_size(int(total)) if name == "memory" else f"{total / 1e9:g}" if name == "cpus" else f"{total:g}"
    return amount + (f" (in {pods:g} pods)" if pods > 1 else "")
