"""Code of a job that runs on a base image: packed into a ConfigMap, unpacked by an init container of the same image.

Nothing is built, pushed or downloaded for it. A ConfigMap holds at most 1 MiB, so larger code needs an image that is
built of it; the base image needs a shell, and `tar` or Python to unpack.
"""

from __future__ import annotations

import base64
import io
import posixpath
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from prefect_launch.core.units import format_size
from prefect_launch.errors import SpecError
from prefect_launch.inputs.config_files import merge_into_file, normal_path
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.code import write_tar

#: Where the code is in its container, as in images that are built of it.
CODE_DIR: Final = "/workspace"
#: The API server's limit for the data of one ConfigMap.
MAX_CODE_BYTES: Final = 1024 * 1024
_ARCHIVE: Final = "code.tar.gz"
_ARCHIVE_DIR: Final = "/launch/code"
_CODE_VOLUME: Final = "launch-code"
_ARCHIVE_VOLUME: Final = "launch-code-archive"
_UNPACK: Final = (
    f"if command -v tar >/dev/null 2>&1; then tar -xzf {_ARCHIVE_DIR}/{_ARCHIVE} -C {CODE_DIR}; else"
    f" python3 -m tarfile -e {_ARCHIVE_DIR}/{_ARCHIVE} {CODE_DIR}; fi"
)
#: Of what the job's container gets, what its init container needs: a quota may ask for it.
_SHARED_RESOURCES: Final = ("cpu", "memory", "ephemeral-storage")


def config_map_name(plan: RunPlan) -> str:
    """Return the name of the ConfigMap with a run's code."""
    return f"{plan.name}-code"


def pack_code(plan: RunPlan) -> bytes | None:
    """Pack the code of a run, its config files merged with the run's values; None where it has none. Blocks.

    Raises:
        SpecError: when it is too large for a ConfigMap.
        JobCodeError: when a config file cannot be merged.
    """
    if plan.code_dir is None:
        return None
    for name, values in plan.file_overrides.items():
        merge_into_file(plan.code_dir / (plan.build_context or "") / normal_path(name), values)
    packed = io.BytesIO()
    # Whatever user the container runs as may read and change a file.
    write_tar(plan.code_dir, packed, mode_bits=0o666)
    if packed.tell() > MAX_CODE_BYTES:
        raise SpecError(
            f"The job's code has {format_size(packed.tell())} when it is packed, and Kubernetes carries at most"
            f" {format_size(MAX_CODE_BYTES)} of it onto a base image. Leave out what is no code (.launchignore), or"
            " create the job without a base image, so that an image is built of it."
        )
    return packed.getvalue()


def code_config_map(plan: RunPlan, code: bytes) -> dict[str, Any]:
    """Return the ConfigMap that carries packed code."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config_map_name(plan)},
        "binaryData": {_ARCHIVE: base64.b64encode(code).decode()},
    }


def add_code(pod: dict[str, Any], container: dict[str, Any], plan: RunPlan) -> None:
    """Let a pod's container have the code of a run as its working directory; both are changed."""
    volumes = pod.setdefault("volumes", [])
    if not any(one.get("name") == _CODE_VOLUME for one in volumes):
        volumes += [
            {"name": _CODE_VOLUME, "emptyDir": {}},
            {"name": _ARCHIVE_VOLUME, "configMap": {"name": config_map_name(plan)}},
        ]
        # First of all: another init container may want the code.
        pod["initContainers"] = [_unpacker(container), *pod.get("initContainers", ())]
    container.setdefault("volumeMounts", []).append({"name": _CODE_VOLUME, "mountPath": CODE_DIR})
    container["workingDir"] = posixpath.normpath(
        posixpath.join(CODE_DIR, plan.build_context or "", plan.working_dir or "")
    )


def _unpacker(container: Mapping[str, Any]) -> dict[str, Any]:
    shared = {
        part: {name: amount for name, amount in amounts.items() if name in _SHARED_RESOURCES}
        for part, amounts in (container.get("resources") or {}).items()
        if part in ("limits", "requests")
    }
    own = {key: deepcopy(container[key]) for key in ("image", "imagePullPolicy", "securityContext") if key in container}
    return {
        "name": _CODE_VOLUME,
        **own,
        "command": ["/bin/sh", "-c", _UNPACK],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "workingDir": "/",
        **({"resources": shared} if any(shared.values()) else {}),
        "volumeMounts": [
            {"name": _CODE_VOLUME, "mountPath": CODE_DIR},
            {"name": _ARCHIVE_VOLUME, "mountPath": _ARCHIVE_DIR, "readOnly": True},
        ],
    }


def preview_code(plan: RunPlan) -> bytes | None:
    """Return what stands for the packed code where it is not there yet."""
    return None if plan.code_dir is None else b""
