"""Check of a whole manifest before anything is queued: a batch Job, a custom resource, or an additional service."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from prefect_launch.errors import SpecError
from prefect_launch.runners.remote.kubernetes.fields import check_fields, join, shown
from prefect_launch.runners.remote.kubernetes.kind_rules import check_kind
from prefect_launch.runners.remote.kubernetes.kinds import JOB, Keys, ObjectKind, find, written
from prefect_launch.runners.remote.kubernetes.pod_counts import check_counts
from prefect_launch.runners.remote.kubernetes.rules import check_metadata, check_name, check_object_name, check_pod
from prefect_launch.spec.code_options import parse_image

_PATH: Final = "resource_args.kubernetes"
#: Additional services whose fields are known, by group and kind; of others only the metadata is checked.
_SERVICE_TYPES: Final = {
    ("", "ConfigMap"): "V1ConfigMap",
    ("", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("", "Pod"): "V1Pod",
    ("", "Secret"): "V1Secret",
    ("", "Service"): "V1Service",
    ("apps", "Deployment"): "V1Deployment",
    ("apps", "StatefulSet"): "V1StatefulSet",
    ("batch", "Job"): "V1Job",
}
_OLD_JOBS: Final = ("batch/v1beta1", "batch/v2alpha1")


def container_name(index: int) -> str:
    """Return the name of a container that its manifest gives none, as in the reference."""
    return f"launch{index}"


def with_names(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod template whose containers all have names; it is not changed."""
    spec = template.get("spec")
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    if not isinstance(containers, list) or not all(isinstance(one, Mapping) for one in containers):
        return dict(template)
    named = [{"name": container_name(i), **one} for i, one in enumerate(containers)]
    return {**template, "spec": {**spec, "containers": named}}  # type: ignore[dict-item]


def pod_templates(manifest: Mapping[str, Any], kind: ObjectKind) -> list[tuple[Keys, int, Any]]:
    """Return the pod templates of an object: where each is, which of the kind's paths led there, and itself."""
    return [
        (keys, number, template)
        for number, place in enumerate(kind.pods)
        for keys, template in find(manifest, place.template)
    ]


def check_manifest(manifest: Mapping[str, Any], kind: ObjectKind, *, allowed: Collection[str] = ()) -> None:
    """Refuse the manifest of a job that the API server would refuse.

    Args:
        manifest: of the object, as its owner wrote it.
        kind: what is known of it.
        allowed: names of fields that the table of fields need not know.

    Raises:
        SpecError: with the path, the value, the rule and the next step.
    """
    for key in ("metadata", "spec"):
        if not isinstance(manifest.get(key, {}), Mapping):
            raise SpecError(f"{_PATH}.{key} is {shown(manifest[key])}; it must be a mapping.")
    if manifest["apiVersion"] in _OLD_JOBS:
        raise SpecError(f"{_PATH}.apiVersion is {manifest['apiVersion']!r}, which is gone. Write 'batch/v1'.")
    metadata = manifest.get("metadata") or {}
    check_fields(metadata, "V1ObjectMeta", f"{_PATH}.metadata", allowed=allowed)
    check_metadata(f"{_PATH}.metadata", metadata)
    templates = pod_templates(manifest, kind)
    if not templates and not kind.entry_point:
        where = " or ".join(f"{_PATH}.{one.template}" for one in kind.pods)
        raise SpecError(f"{where} is missing: the pod template, with spec.containers. Add it.")
    if (kind.group, kind.kind) == (JOB.group, JOB.kind):
        spec = {**manifest["spec"], "template": with_names(_mapping(templates[0][2], f"{_PATH}.spec.template"))}
        check_fields(spec, "V1JobSpec", f"{_PATH}.spec", allowed=allowed)
        _check_counts(spec)
    check_kind(manifest, kind, _PATH)
    check_counts(manifest, kind, _PATH)
    for keys, number, template in templates:
        path = f"{_PATH}.{written(keys)}"
        _check_template(template, path, allowed=allowed, runs_job=kind.pods[number].runs_job, custom=kind is not JOB)


def _check_template(template: Any, path: str, *, allowed: Collection[str], runs_job: bool, custom: bool) -> None:
    named = with_names(_mapping(template, path))
    check_fields(named, "V1PodTemplateSpec", path, allowed=allowed)
    check_metadata(join(path, "metadata"), named.get("metadata") or {})
    if not named.get("spec"):
        raise SpecError(f"{path}.spec is missing: the pod's containers. Add it.")
    # What a custom resource makes of a pod's restart policy is its own affair.
    check_pod(join(path, "spec"), named["spec"], in_job=runs_job and not custom)
    for field in ("initContainers", "containers"):
        for index, container in enumerate(named["spec"].get(field) or ()):
            if "image" in container and "${" not in str(container["image"]):
                _check_image(f"{path}.spec.{field}[{index}].image", container["image"])


def _check_image(path: str, image: str) -> None:
    try:
        parse_image(image)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _check_counts(spec: Mapping[str, Any]) -> None:
    for name in ("parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        value = spec.get(name)
        if value is not None and value < 0:
            raise SpecError(f"{_PATH}.spec.{name} is {value}; it must not be below 0. Correct it.")
    for name in ("parallelism", "completions"):
        if spec.get(name) == 0:
            raise SpecError(f"{_PATH}.spec.{name} is 0, so the job would never run. Leave it out, or give 1 or more.")
    if spec.get("selector") is not None or spec.get("manualSelector"):
        raise SpecError(f"{_PATH}.spec.selector cannot be set: the cluster makes one for each job. Leave it out.")


def is_known_service(manifest: Mapping[str, Any]) -> bool:
    """Whether the fields of an additional service's kind are known."""
    return (str(manifest["apiVersion"]).rpartition("/")[0], manifest["kind"]) in _SERVICE_TYPES


def check_service(manifest: Any, path: str) -> None:
    """Refuse the manifest of an additional service that the API server would refuse.

    Raises:
        SpecError: with the path, the value, the rule and the next step.
    """
    found = _mapping(manifest, path)
    for key in ("apiVersion", "kind"):
        if not isinstance(found.get(key), str) or not found[key]:
            raise SpecError(f"{path}.{key} is {shown(found.get(key))}; it must be text, such as 'v1' and 'Service'.")
    metadata = _mapping(found.get("metadata"), f"{path}.metadata")
    check_fields(metadata, "V1ObjectMeta", f"{path}.metadata")
    check_metadata(f"{path}.metadata", metadata)
    if metadata.get("name") is None:
        raise SpecError(f"{path}.metadata.name is missing. Add it: the job finds the service under its name.")
    name = (check_name if found["kind"] == "Service" else check_object_name)(f"{path}.metadata.name", metadata["name"])
    group = found["apiVersion"].rpartition("/")[0]
    known = _SERVICE_TYPES.get((group, found["kind"]))
    if known:
        check_fields(found, known, f"{path} ({found['kind']} {name})")
    check_counts(found, None, path)


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{path} is {shown(value)}; it must be a mapping.")
    return dict(value)
