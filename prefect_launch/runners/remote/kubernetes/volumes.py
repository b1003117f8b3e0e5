"""Volumes of the short form: `CLAIM:/path[:ro]`, or a volume of Kubernetes with the path where it is mounted."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from prefect_launch.errors import SpecError
from prefect_launch.runners.option_values import absolute_path
from prefect_launch.runners.remote.kubernetes.fields import check_fields, shown
from prefect_launch.runners.remote.kubernetes.rules import check_name, check_object_name

_PATH: Final = "resource_args.kubernetes.volumes"
#: Fields of a mount that may stand next to those of the volume.
_MOUNT_FIELDS: Final = ("mountPath", "readOnly", "subPath", "subPathExpr", "mountPropagation", "recursiveReadOnly")
_FORMS: Final = (
    "each must be 'CLAIM:/path' or 'CLAIM:/path:ro' with the name of a PersistentVolumeClaim, '/host/path:/path', or a"
    " mapping such as {'name': 'cache', 'emptyDir': {}, 'mountPath': '/cache'}"
)


class Volume(BaseModel):
    """A volume and its mount in the job's container, as a manifest has them."""

    model_config = ConfigDict(frozen=True)

    volume: dict[str, Any]
    mount: dict[str, Any]


def read_volumes(value: object) -> list[Volume]:
    """Read the option `volumes`: one, or a list.

    Raises:
        ValueError: with the rule.
        SpecError: likewise, for a field of a mapping.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    read = [_of_mapping(item, i) if isinstance(item, Mapping) else _of_text(item, i) for i, item in enumerate(items)]
    targets = [one.mount["mountPath"].rstrip("/") for one in read]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice:
        raise ValueError(f"two of them are mounted at {twice!r}")
    return read


def mount_volume(pod: dict[str, Any], container: dict[str, Any], volume: dict[str, Any], mount: dict[str, Any]) -> None:
    """Mount a volume in a pod's container; both are changed.

    Raises:
        SpecError: when the pod has another volume of that name, or the container another mount at that path.
    """
    volumes = pod.setdefault("volumes", [])
    there = next((one for one in volumes if one.get("name") == volume["name"]), None)
    if there is None:
        volumes.append(volume)
    elif there != volume:
        raise SpecError(
            f"resource_args.kubernetes has another volume {volume['name']!r} in its manifest, which stays what it is."
            " Give yours another name."
        )
    mounts = container.setdefault("volumeMounts", [])
    path = mount["mountPath"].rstrip("/")
    if any(str(one.get("mountPath")).rstrip("/") == path for one in mounts):
        raise SpecError(
            f"resource_args.kubernetes mounts two volumes at {mount['mountPath']!r} in the container"
            f" {container.get('name')!r}. Mount one of them at another path."
        )
    mounts.append(mount)


def _of_text(item: object, index: int) -> Volume:
    source, _, rest = item.partition(":") if isinstance(item, str) else ("", "", "")
    target, _, mode = rest.partition(":")
    if not source or not target or mode not in ("", "ro", "rw"):
        raise ValueError(_FORMS)
    mount = {"name": f"launch-volume-{index}", "mountPath": absolute_path(target)}
    if mode == "ro":
        mount["readOnly"] = True  # type: ignore[assignment]
    if source.startswith("/"):
        held: dict[str, Any] = {"hostPath": {"path": absolute_path(source)}}
    else:
        held = {"persistentVolumeClaim": {"claimName": check_object_name(_PATH, source)}}
    return Volume(volume={"name": f"launch-volume-{index}", **held}, mount=mount)


def _of_mapping(item: Mapping[str, Any], index: int) -> Volume:
    path = f"{_PATH}[{index}]"
    if "mountPath" not in item:
        raise SpecError(f"{path} is {shown(dict(item))} and has no mountPath: say where it is mounted.")
    name = check_name(f"{path}.name", item.get("name", f"launch-volume-{index}"))
    volume = {
        "name": name,
        **{key: deepcopy(value) for key, value in item.items() if key not in (*_MOUNT_FIELDS, "name")},
    }
    mount = {"name": name, **{key: item[key] for key in _MOUNT_FIELDS if key in item}}
    check_fields(volume, "V1Volume", path)
    check_fields(mount, "V1VolumeMount", path)
    absolute_path(mount["mountPath"])
    return Volume(volume=volume, mount=mount)
