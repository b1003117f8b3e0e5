"""Short options of `kubernetes` put into the job's container: how much it gets, its volumes, and the outputs folder."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from prefect_launch.errors import LaunchError
from prefect_launch.runners.remote.kubernetes.environment import OUTPUT_DIR
from prefect_launch.runners.remote.kubernetes.fields import unshared
from prefect_launch.runners.remote.kubernetes.images import check_container_images, check_image_reachable
from prefect_launch.runners.remote.kubernetes.kinds import written
from prefect_launch.runners.remote.kubernetes.manifest_checks import pod_templates, with_names
from prefect_launch.runners.remote.kubernetes.options import (
    KubernetesOptions,
    job_containers,
    one_container_job,
    read_options,
)
from prefect_launch.runners.remote.kubernetes.pod_counts import pods_in
from prefect_launch.runners.remote.kubernetes.quantities import parse_quantity, written_bytes, written_cpus
from prefect_launch.runners.remote.kubernetes.volumes import mount_volume

_PATH: Final = "resource_args.kubernetes"
_OUTPUT_VOLUME: Final = "launch-outputs"
_SHM_VOLUME: Final = "launch-shm"
#: What a container has that says nothing else, by the option that sets it.
_NAMES: Final = {"cpus": "cpu", "memory": "memory"}


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
    """Refuse short options that do not fit into the manifest next to them, and images that nodes cannot pull.

    Args:
        options: all that a run has, checked.

    Raises:
        SpecError: as `place_short_options` and `check_image_reachable`.
    """
    read = read_options(options)
    _check_images(read)
    manifest = unshared(read.manifest) if read.manifest is not None else one_container_job()
    for _, number, template in pod_templates(manifest, read.kind):
        pod = with_names(template)["spec"]
        for container in job_containers(pod, read, read.kind.pods[number]):
            place_short_options(pod, container, read)


def check_job_image(image: str, options: Mapping[str, Any]) -> None:
    """Refuse an item's image that the nodes cannot pull.

    Args:
        image: that the item names.
        options: all that a run has, as far as they are known.

    Raises:
        SpecError: with the next step.
    """
    try:
        read = read_options(options)
    except LaunchError:  # Reported elsewhere, or not filled in yet.
        return
    for pods in pods_in(read.manifest or one_container_job(), read.kind):
        pod = with_names({"spec": pods.spec})["spec"]
        for container in job_containers(pod, read, pods.place) if pods.place else ():
            check_container_images({"containers": [{**container, "image": image}]}, "the job", read.node_registries)


def _check_images(options: KubernetesOptions) -> None:
    if options.image is not None and "${" not in options.image:
        check_image_reachable(options.image, f"{_PATH}.image", options.node_registries)
    found = [(_PATH, pods) for pods in pods_in(options.manifest or {}, options.kind)]
    for index, service in enumerate(options.additional_services):
        found += [(f"{_PATH}.additional-services[{index}]", pods) for pods in pods_in(service.manifest)]
    for path, pods in found:
        named = {
            field: [one for one in pods.spec.get(field) or () if "${" not in str(one.get("image"))]
            for field in ("initContainers", "containers")
        }
        check_container_images(named, f"{path}.{written(pods.keys)}", options.node_registries)


def set_resources(container: dict[str, Any], options: KubernetesOptions) -> None:
    """Put how much a run gets by its short options into a container of its job, which is changed.

    What the queue's limits alone say is a limit: nothing is kept free for it.
    """
    amounts = {
        "cpu": None if options.cpus is None else written_cpus(options.cpus),
        "memory": None if options.memory is None else written_bytes(options.memory),
        options.gpu_resource: None if options.gpus is None else str(options.gpus),
    }
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if given:
        resources = container.setdefault("resources", {})
        asked = resources.get("requests") or {}
        # Without a request of its own, a container asks for as much as its limit.
        unasked = {_NAMES[option] for option in options.from_limits.keys() & _NAMES.keys()}
        least = {name: min(asked.get(name, "0"), given[name], key=parse_quantity) for name in unasked}
        resources["requests"] = {**asked, **given, **least}
        resources["limits"] = {**(resources.get("limits") or {}), **given}
