"""Short options of `kubernetes` put into the job's container: how much it gets, its volumes, and the outputs folder."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from prefect_launch.runners.remote.kubernetes.environment import OUTPUT_DIR
from prefect_launch.runners.remote.kubernetes.manifest_checks import pod_templates, with_names
from prefect_launch.runners.remote.kubernetes.options import (
    KubernetesOptions,
    job_containers,
    one_container_job,
    read_options,
)
from prefect_launch.runners.remote.kubernetes.quantities import written_bytes, written_cpus
from prefect_launch.runners.remote.kubernetes.volumes import mount_volume

_OUTPUT_VOLUME: Final = "launch-outputs"
_SHM_VOLUME: Final = "launch-shm"


def place_short_options(pod: dict[str, Any], container: dict[str, Any], options: KubernetesOptions) -> None:
    """Put the short options of a run into a container of its job; the pod and the container are changed.

    Raises:
        SpecError: for a volume whose name or path another one has.
    """
    set_resources(container, options)
    if options.shm_size is not None:
        volume = {"name": _SHM_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": written_bytes(options.shm_size)}}
        mount_volume(pod, container, volume, {"name": _SHM_VOLUME, "mountPath": "/dev/shm"})
    for one in options.volumes:
        mount_volume(pod, container, deepcopy(one.volume), deepcopy(one.mount))
    outputs = {"name": _OUTPUT_VOLUME, "emptyDir": {}}
    mount_volume(pod, container, outputs, {"name": _OUTPUT_VOLUME, "mountPath": OUTPUT_DIR})


def check_placing(options: Mapping[str, Any]) -> None:
    """Refuse short options that do not go into the manifest beside them.

    Args:
        options: all that a run has, checked.

    Raises:
        SpecError: as `place_short_options`.
    """
    read = read_options(options)
    manifest = deepcopy(read.manifest) if read.manifest is not None else one_container_job()
    for _, number, template in pod_templates(manifest, read.kind):
        pod = with_names(template)["spec"]
        for container in job_containers(pod, read, read.kind.pods[number]):
            place_short_options(pod, container, read)


def set_resources(container: dict[str, Any], options: KubernetesOptions) -> None:
    """Put how much a run gets by its short options into a container of its job, which is changed."""
    amounts = {
        "cpu": None if options.cpus is None else written_cpus(options.cpus),
        "memory": None if options.memory is None else written_bytes(options.memory),
        options.gpu_resource: None if options.gpus is None else str(options.gpus),
    }
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if given:
        resources = container.setdefault("resources", {})
        for part in ("requests", "limits"):
            resources[part] = {**(resources.get(part) or {}), **given}
