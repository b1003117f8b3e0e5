"""Amounts that a whole run asks for: of all containers of all its pods, for the limits of its queue.

A queue's maximum of memory is one of the run, not of a container: a manifest with four pods of 4 GiB asks for 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from prefect_launch.core.units import format_size
from prefect_launch.errors import LaunchError
from prefect_launch.runners.option_values import UNLIMITED, Amount
from prefect_launch.runners.remote.kubernetes.kinds import PodTemplatePath, pod_count
from prefect_launch.runners.remote.kubernetes.manifest_checks import pod_templates, with_names
from prefect_launch.runners.remote.kubernetes.options import (
    KubernetesOptions,
    job_containers,
    one_container_job,
    read_options,
)
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
    manifest = read.manifest if read.manifest is not None else one_container_job()
    found = [
        (pod_count(manifest, read.kind.pods[number], keys), _of_pod(with_names(template), read, read.kind.pods[number]))
        for keys, number, template in pod_templates(manifest, read.kind)
    ]
    pods = sum(count for count, _ in found)
    totals = {name: sum(count * amounts[name] for count, amounts in found if count) for name in _COUNTED}
    return {name: Amount(total, _in_words(name, total, pods)) for name, total in totals.items()}


def _of_pod(template: Mapping[str, Any], options: KubernetesOptions, place: PodTemplatePath) -> dict[str, float]:
    """Return the amounts of one pod: all its containers together, or one init container that needs more."""
    pod = deepcopy(dict(template["spec"]))
    for container in job_containers(pod, options, runs_job=place.runs_job):
        set_resources(container, options)
    containers, init = (
        [asked_of(one, options.gpu_resource) for one in pod.get(field) or ()]
        for field in ("containers", "initContainers")
    )
    return {name: max([sum(one[name] for one in containers), *(one[name] for one in init)]) for name in _COUNTED}


def _in_words(name: str, total: float, pods: int) -> str:
    if total == UNLIMITED:
        return "an amount without a limit, in a container that has no resources.limits,"
    amount = format_size(int(total)) if name == "memory" else f"{total / 1e9:g}" if name == "cpus" else f"{total:g}"
    return amount + (f" (in {pods} pods)" if pods > 1 else "")
