"""Options of the resource `kubernetes`: the short form, a whole manifest, or both, and who may set which.

`resource_args.kubernetes` may have the keys of a manifest (`apiVersion`, `kind`, `metadata`, `spec`) as users of W&B's
reference have it, and options with short names (`image`, `cpus`, `memory`, `gpus`, `env`, …), which are put into the
job's container of that manifest. Without a manifest it is a batch Job of one container. One table has all options and
how each is read. A submitter may set how much the job gets, and its variables; the rest is for the queue's owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.units import parse_duration
from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.runners.remote.kubernetes.fields import check_fields, shown, walk
from prefect_launch.runners.remote.kubernetes.kinds import ObjectKind, PodTemplatePath, kind_of
from prefect_launch.runners.remote.kubernetes.manifest_checks import (
    check_manifest,
    check_service,
    is_known_service,
    pod_templates,
    with_names,
)
from prefect_launch.runners.remote.kubernetes.quantities import (
    GPU_RESOURCE,
    read_cpus,
    read_gpu_count,
    read_memory,
)
from prefect_launch.runners.remote.kubernetes.rules import (
    check_annotations,
    check_env_name,
    check_label_key,
    check_labels,
    check_name,
    check_object_name,
)
from prefect_launch.runners.remote.kubernetes.unsafe import check_safe, unsafe
from prefect_launch.runners.remote.kubernetes.volumes import Volume, read_volumes
from prefect_launch.spec.code_options import parse_image
from prefect_launch.spec.option_names import normalise_options, read_env

#: How long an additional service may take until it is ready, in seconds; as in the reference.
_WAIT_SECONDS: Final = 300.0
#: The keys of a manifest, under their normal names.
MANIFEST_KEYS: Final = {"apiversion": "apiVersion", "kind": "kind", "metadata": "metadata", "spec": "spec"}
_PATH: Final = "resource_args.kubernetes"
#: The type of a Service that is reached from inside of the cluster alone.
_INSIDE: Final = "ClusterIP"


class ServiceSpec(BaseModel):
    """An object that is created with the job and removed with it, such as a database.

    Attributes:
        manifest: of the object.
        wait_for_ready: whether the job starts once it is ready.
        wait_seconds: how long that may take.
    """

    model_config = ConfigDict(frozen=True)

    manifest: dict[str, Any]
    wait_for_ready: bool = True
    wait_seconds: float = _WAIT_SECONDS


class KubernetesOptions(BaseModel):
    """Options as they are read; each field is the option of that name, None or empty where it is not given.

    Attributes:
        manifest: the object as its owner wrote it; None: a batch Job of one container.
        kind: what is known about the object's kind.
        cpus: in billionths.
        memory: in bytes.
        shm_size: in bytes.
        ttl: for how many seconds an ended job stays, if its agent has not removed it.
        image_pull_timeout: for how many seconds a container may fail to get its image.
        from_limits: options that nobody asked for, which are the queue's limits.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    manifest: dict[str, Any] | None = None
    kind: ObjectKind
    image: str | None = None
    cpus: int | None = None
    memory: int | None = None
    gpus: int | None = None
    gpu_resource: str = GPU_RESOURCE
    namespace: str | None = None
    context: str | None = None
    node_registries: tuple[str, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    service_account: str | None = None
    volumes: tuple[Volume, ...] = ()
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    ttl: int | None = None
    image_pull_secret: tuple[str, ...] = ()
    image_pull_timeout: float | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    priority_class: str | None = None
    shm_size: int | None = None
    main_container: str | None = None
    from_limits: dict[str, Any] = Field(default_factory=dict)
    additional_services: tuple[ServiceSpec, ...] = ()


# --- readers: each takes what a person wrote, and raises ValueError or SpecError with the rule ---


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be text, and not empty")
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"it must be a mapping, not {type(value).__name__}")
    return deepcopy(dict(value))


def _image(value: object) -> str:
    parse_image(_text(value))
    return str(value)


def _name(option: str) -> Callable[[object], str]:
    return lambda value: check_name(f"{_PATH}.{option}", value)


def _object_name(option: str) -> Callable[[object], str]:
    return lambda value: check_object_name(f"{_PATH}.{option}", value)


def _labels(option: str, *, are_own: bool) -> Callable[[object], dict[str, str]]:
    def read(value: object) -> dict[str, str]:
        labels = _mapping(value)
        check_labels(f"{_PATH}.{option}", labels, are_own=are_own)
        return labels

    return read


def _annotations(value: object) -> dict[str, str]:
    annotations = _mapping(value)
    check_annotations(f"{_PATH}.annotations", annotations)
    return annotations


def _env(value: object) -> dict[str, str]:
    env = read_env(value)
    for name in env:
        check_env_name(f"{_PATH}.env", name)
    return env


def _tolerations(value: object) -> list[dict[str, Any]]:
    items = value if isinstance(value, (list, tuple)) else [value]
    read: list[Any] = [_toleration(item) if isinstance(item, str) else item for item in items]
    check_fields(read, "list[V1Toleration]", f"{_PATH}.tolerations")
    return read


def _toleration(text: str) -> dict[str, str]:
    """Read a taint as kubectl writes it: `key=value:NoSchedule`, `key:NoSchedule` or `key`."""
    taint, _, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    check_label_key(f"{_PATH}.tolerations", key)
    found = {"key": key, "operator": "Equal" if equals else "Exists"}
    return {**found, **({"value": value} if equals else {}), **({"effect": effect} if effect else {})}


def _ttl(value: object) -> int:
    if value == 0 and not isinstance(value, bool):
        return 0
    seconds = parse_duration(value)
    if seconds is None:
        raise ValueError("it must be a duration, such as 3600 or '1h'")
    return int(seconds)


def _pull_secrets(value: object) -> list[str]:
    names = value if isinstance(value, (list, tuple)) else [value]
    return [check_object_name(f"{_PATH}.image-pull-secret", name) for name in names]


def _gpu_resource(value: object) -> str:
    check_label_key(f"{_PATH}.gpu-resource", value)
    if "/" not in str(value):
        raise ValueError("it must be the name of a device, such as 'nvidia.com/gpu' or 'amd.com/gpu'")
    return str(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _seconds(value: object) -> float:
    seconds = parse_duration(value)
    if seconds is None:
        raise ValueError("it must be a duration, such as 300 or '5min'")
    return seconds


def _names(value: object) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise ValueError("it must be a list of texts")
    return list(value)


def _services(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("it must be a list of manifests, or of {config: MANIFEST, wait_for_ready: true}")
    for index, item in enumerate(value):
        path = f"{_PATH}.additional-services[{index}]"
        own = _service_parts(item, path)
        check_service(own["config"], f"{path}.config" if own is item else path)
    return list(value)


_SERVICE_KEYS: Final = frozenset({"config", "name", "wait_for_ready", "wait_timeout"})


def _service_parts(item: Any, path: str) -> Mapping[str, Any]:
    """Return a service with its manifest as `config`, whichever way it is written."""
    if not isinstance(item, Mapping):
        raise SpecError(f"{path} is {shown(item)}; it must be a manifest with apiVersion, kind and metadata.name.")
    if "config" not in item:
        return {"config": item}
    for key in item:
        if key not in _SERVICE_KEYS:
            raise unknown_name("field", key, _SERVICE_KEYS, where=f" in {path}")
    for key, read in (("wait_for_ready", _boolean), ("wait_timeout", _seconds)):
        if key in item:
            try:
                read(item[key])
            except ValueError as error:
                raise SpecError(f"{path}.{key} is {shown(item[key])}: {error}.") from None
    return item


_SUBMITTER: Final[Mapping[str, Callable[[object], Any]]] = {
    "cpus": read_cpus,
    "env": _env,
    "gpus": read_gpu_count,
    "memory": read_memory,
    "shm-size": read_memory,
}
_OWNER: Final[Mapping[str, Callable[[object], Any]]] = {
    "additional-services": _services,
    "allow-fields": _names,
    "annotations": _annotations,
    "apiversion": _text,
    "context": _text,
    "custom": _mapping,
    "gpu-resource": _gpu_resource,
    "image": _image,
    "image-pull-secret": _pull_secrets,
    "image-pull-timeout": _ttl,
    "kind": _text,
    "labels": _labels("labels", are_own=True),
    "main-container": _name("main-container"),
    "metadata": _mapping,
    "namespace": _name("namespace"),
    "node-registries": _names,
    "node-selector": _labels("node-selector", are_own=False),
    "priority-class": _object_name("priority-class"),
    "service-account": _object_name("service-account"),
    "spec": _mapping,
    "tolerations": _tolerations,
    "ttl": _ttl,
    "volumes": read_volumes,
    "wait-for-ready": _boolean,
    "wait-timeout": _seconds,
}
_TABLE: Final = {**_SUBMITTER, **_OWNER}

#: What any submitter may set, as the options may be written.
SUBMITTER_OPTIONS: Final = frozenset({*_SUBMITTER, "cpu", "e", "m"})
OPTIONS: Final = frozenset(_TABLE) | SUBMITTER_OPTIONS


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their normal names, when every one is known and has a good value. The values stay as
    written.

    A manifest's `spec` is checked when its `apiVersion` and `kind` are there; `check_together` checks it in any case.

    Raises:
        NotFoundError: for an option that is not known.
        SpecError: for a value of the wrong type or form, with its path, the value, the rule and the next step.
    """
    if not isinstance(options, Mapping):
        raise SpecError(
            f"{_PATH} is {shown(options)}; it must be a mapping: a manifest (apiVersion, kind, metadata, spec), or"
            " options such as image, cpus, memory, gpus."
        )
    checked = normalise_options(options)
    for name, value in checked.items():
        _read(name, value)
    if {"apiversion", "kind", "spec"} <= checked.keys():
        _check_manifest(checked)
    return checked


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, and a manifest that is not whole.

    Args:
        options: as `check_options` returns them; all that a run has.

    Raises:
        SpecError: naming what is wrong.
    """
    if "spec" in options:
        _check_manifest(options)
    elif given := [key for name, key in MANIFEST_KEYS.items() if name in options and name != "metadata"]:
        raise SpecError(f"{_PATH} has {given[0]!r} and no 'spec'. Add the manifest's spec, or leave {given[0]!r} out.")


def check_submitter_options(options: Mapping[str, Any]) -> None:
    """Refuse what would reach out of a job's own pod, in options that the queue's owner lets submitters set.

    Args:
        options: the submitter's own, as `check_options` returns them.

    Raises:
        UnsafeSpecError: naming the field, where it stands, and the next step.
    """
    for name, value in options.items():
        path = MANIFEST_KEYS.get(name, name)
        if name == "volumes":
            _check_safe_volumes(value, path)
        elif name == "additional-services":
            _check_safe_services(value, path)
        elif name != "env":
            check_safe(value, path)


def _check_safe_volumes(value: Any, path: str) -> None:
    for index, item in enumerate(value if isinstance(value, (list, tuple)) else [value]):
        if isinstance(item, str) and item.lstrip().startswith("/"):
            raise unsafe("hostPath", f"{path}[{index}]", item)
        check_safe(item, f"{path}[{index}]")


def _check_safe_services(value: Any, path: str) -> None:
    check_safe(value, path)
    for entry in walk(value, path):
        made = entry.value
        if not (isinstance(made, Mapping) and {"apiVersion", "kind"} <= made.keys()):
            continue
        if not is_known_service(made):
            raise unsafe("kind", f"{entry.path}.kind", made["kind"])
        if made["kind"] == "Service" and (kind := (made.get("spec") or {}).get("type", _INSIDE)) != _INSIDE:
            raise unsafe("type", f"{entry.path}.spec.type", kind)


def read_options(options: Mapping[str, Any]) -> KubernetesOptions:
    """Return checked options, read.

    Raises:
        LaunchError: as `check_options` and `check_together` do.
    """
    checked = check_options(options)
    check_together(checked)
    read = {name: _read(name, value) for name, value in checked.items()}
    manifest = manifest_of(checked)
    short = {name.replace("-", "_"): value for name, value in read.items()}
    return KubernetesOptions.model_validate(
        {
            **{
                name: value
                for name, value in short.items()
                if name in KubernetesOptions.model_fields and name != "kind"
            },
            "manifest": manifest if "spec" in checked else None,
            "kind": _kind_of(checked),
            "namespace": (read.get("metadata") or {}).get("namespace") or read.get("namespace"),
            "labels": {**((read.get("metadata") or {}).get("labels") or {}), **read.get("labels", {})},
            "annotations": {**((read.get("metadata") or {}).get("annotations") or {}), **read.get("annotations", {})},
            "additional_services": _service_specs(read),
        }
    )


def manifest_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest in options, with its own spelling of keys, `batch/v1` and `Job` where it does not say."""
    given = {key: deepcopy(options[name]) for name, key in MANIFEST_KEYS.items() if name in options}
    return {"apiVersion": "batch/v1", "kind": "Job", **given}


def one_container_job() -> dict[str, Any]:
    """Return the manifest of a run whose options have none."""
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": {"containers": [{}]}}}}


def own_image(options: Mapping[str, Any]) -> str | None:
    """Return the image that the queue's options name for jobs that name none; None where they name none.

    It is that of the option `image`, or else of the container that the job runs in; not one that a macro names.
    """
    read = read_options(options)
    if read.image is None and read.manifest is not None and not read.kind.entry_point:
        named = [
            container.get("image")
            for _, number, template in pod_templates(read.manifest, read.kind)
            for container in job_containers(with_names(template)["spec"], read, read.kind.pods[number])
        ]
        image = next((one for one in named if one), None)
    else:
        image = read.image
    return None if image is None or "${" in image else image


def job_containers(
    pod: Mapping[str, Any], options: KubernetesOptions, place: PodTemplatePath
) -> Iterator[dict[str, Any]]:
    """Yield the containers that run the job: the one that is named, or else the first, and all that have no image.

    Args:
        pod: its spec, whose containers have names.
        options: of the run.
        place: of the pod's template.
    """
    if place.is_helper:
        return
    containers: list[dict[str, Any]] = pod.get("containers") or []
    wanted = options.main_container or (options.kind.container if place.runs_job else "")
    main = next((one for one in containers if one["name"] == wanted), None) if wanted else containers[0]
    yield from (one for one in containers if one is main or not one.get("image"))


def _kind_of(options: Mapping[str, Any]) -> ObjectKind:
    manifest = manifest_of(options)
    return kind_of(manifest["apiVersion"], manifest["kind"], options.get("custom"))


def _check_manifest(options: Mapping[str, Any]) -> None:
    check_manifest(manifest_of(options), _kind_of(options), allowed=options.get("allow-fields", ()))


def _service_specs(read: Mapping[str, Any]) -> list[ServiceSpec]:
    found = []
    for item in read.get("additional-services", ()):
        parts = _service_parts(item, _PATH)
        found.append(
            ServiceSpec(
                manifest=deepcopy(dict(parts["config"])),
                wait_for_ready=parts.get("wait_for_ready", read.get("wait-for-ready", True)),
                wait_seconds=_seconds(parts.get("wait_timeout", read.get("wait-timeout", _WAIT_SECONDS))),
            )
        )
    return found


def service_kinds(options: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return API version and kind of each additional service that a queue's options name, unread as they are."""
    written = options.get("additional-services")
    items = [one for one in written if isinstance(one, Mapping)] if isinstance(written, (list, tuple)) else []
    manifests = (_service_parts(one, _PATH)["config"] for one in items)
    return {(str(one.get("apiVersion")), str(one.get("kind"))) for one in manifests}


def _read(name: str, value: object) -> Any:
    if name not in _TABLE:
        raise unknown_name("option", name, _known_names(), where=f" in {_PATH}")
    try:
        return _TABLE[name](value)
    except ValueError as error:
        raise SpecError(f"Invalid {_PATH} option {name!r}: {shown(value)}: {error}.") from None


def _known_names() -> Sequence[str]:
    return [MANIFEST_KEYS.get(name, name) for name in _TABLE]
