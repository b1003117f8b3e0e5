"""Options that a queue's manifest sets by itself: the limits, the variables and `/dev/shm` of the job's own containers.

What the queue's owner has set there is fixed for its submitters, as a short option of the queue's is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefect_launch.errors import LaunchError
from prefect_launch.runners.remote.kubernetes.fields import join
from prefect_launch.runners.remote.kubernetes.kinds import kind_of, written
from prefect_launch.runners.remote.kubernetes.manifest_checks import pod_templates, with_names
from prefect_launch.runners.remote.kubernetes.options import KubernetesOptions, job_containers, manifest_of
from prefect_launch.runners.remote.kubernetes.quantities import GPU_RESOURCE, is_gpu

_SHM: Final = "/dev/shm"
_OPTIONS: Final = {"cpu": "cpus", "memory": "memory"}


def set_inside(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options (or `env.NAME`) that a manifest sets, each with its place.

    Args:
        options: of a queue, as its owner wrote them, under their normal names; values may hold template variables.

    Returns:
        Nothing for a manifest that is wrong: `check_options` says what is.
    """
    found: dict[str, str] = {}
    try:
        for option, where in _set(options):
            found.setdefault(option, where)
    except (LaunchError, AttributeError, KeyError, TypeError):  # An invalid manifest is reported elsewhere.
        return {}
    return found


def _set(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "spec" not in options:
        return
    manifest = manifest_of(options)
    kind = kind_of(manifest["apiVersion"], manifest["kind"], options.get("custom"))
    gpu_resource = options.get("gpu-resource", GPU_RESOURCE)
    read = KubernetesOptions(kind=kind, main_container=options.get("main-container"))
    for keys, number, template in pod_templates(manifest, kind):
        pod = with_names(template)["spec"]
        path = f"{written(keys)}.spec"
        yield from _resources(pod.get("resources"), f"{path}.resources", gpu_resource)
        for container in job_containers(pod, read, kind.pods[number]):
            where = f"{path}.containers[{pod['containers'].index(container)}]"
            yield from _resources(container.get("resources"), f"{where}.resources", gpu_resource)
            for variable in container.get("env") or ():
                yield f"env.{variable['name']}", f"{where}.env"
            for mount in container.get("volumeMounts") or ():
                if str(mount.get("mountPath")).rstrip("/") == _SHM:
                    yield "shm-size", f"{where}.volumeMounts"


def _resources(resources: Mapping[str, Any] | None, path: str, gpu_resource: str) -> Iterator[tuple[str, str]]:
    for part in ("limits", "requests"):
        for name in (resources or {}).get(part) or ():
            option = "gpus" if is_gpu(name, gpu_resource) else _OPTIONS.get(name)
            if option is not None:
                yield option, join(f"{path}.{part}", name)
