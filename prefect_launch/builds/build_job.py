"""Job of a build in a cluster: the plan of a run of the resource `kubernetes` whose program builds and pushes an image.

Its name comes from the image's tag, so that a namespace has one build of an image, however many agents ask for it. The
build context travels in ConfigMaps of at most 1 MiB each: that works on every cluster, with no right but those that
runs need, and with no store. The credentials for the registries and pip's settings are in Secrets that the Job owns.

One container builds into a layout of the image, and another pushes it: the steps of a Dockerfile run in the first one's
file system, and the login that pushes is in the second alone.
"""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prefect_launch.builds.builder import ImageBuild, ImageLabels
from prefect_launch.builds.context import BuildContext
from prefect_launch.builds.dockerfile import write_dockerfile, write_labels
from prefect_launch.builds.settings import ClusterSettings
from prefect_launch.core.units import format_size
from prefect_launch.environments.pip_config import SECRETS
from prefect_launch.errors import SourceError
from prefect_launch.registries.base import parse_reference
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.kubernetes.code import MAX_CODE_BYTES
from prefect_launch.runners.remote.kubernetes.environment import literal
from prefect_launch.runners.remote.kubernetes.objects import (
    DOCKER_CONFIG_KEY,
    OUTPUTS_PATH,
    docker_config_secret,
)
from prefect_launch.runners.remote.kubernetes.options import one_container_job, read_options
from prefect_launch.runners.remote.kubernetes.short_options import place_short_options

#: Prefix of the annotations on a build's Job that name the agents waiting for it. No label of a run begins so.
WAITERS: Final = "builds.prefect-launch/"
#: The annotation that tells who has made a Job: a value of one look at it, as no other has.
MAKER: Final = "builds.prefect-launch.maker"
_DOCKERFILE: Final = "Dockerfile.launch"
_ARCHIVE: Final = "context.tar.gz"
_CONTEXT_DIR: Final = "/launch/context"
_PARTS_DIR: Final = "/launch/parts"
#: Where the image lies between its build and its push.
_IMAGE_DIR: Final = "/launch/image"
#: Where kaniko looks for credentials.
_CONFIG_DIR: Final = "/kaniko/.docker"
#: What a cluster's database is to hold of one build.
_MAX_PARTS: Final = 32
#: How long what a build left stays, if everybody who waited for it has died, in seconds.
_TTL_SECONDS: Final = 300


@dataclass(frozen=True)
class BuildFiles:
    """What goes into the pod of a build.

    Attributes:
        parts: the packed build context, cut.
        secrets: files of pip's settings, by name.
        push_auths: credentials to push with, as `docker_config_secret` takes them; none: the owner's Secret has them.
        pull_auths: those for the base images, which the steps of the build can read; likewise.
        insecure: hosts of registries that are asked without TLS.
    """

    parts: Sequence[bytes]
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    push_auths: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    pull_auths: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    insecure: Sequence[str] = ()


def cut_context(target: ImageBuild) -> list[bytes]:
    """Pack what is built, with the generated Dockerfile, and cut it into the pieces that ConfigMaps hold. Blocks.

    Raises:
        SourceError: when it is too large for them.
    """
    packed = _Packed()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped:
        _with_dockerfile(target).write(zipped)  # type: ignore[arg-type]
    whole = packed.getvalue()
    return [whole[start : start + MAX_CODE_BYTES] for start in range(0, len(whole), MAX_CODE_BYTES)]


class _Packed(io.BytesIO):
    """A packed context in memory, no larger than what is carried."""

    def write(self, piece: Any) -> int:
        if self.tell() + memoryview(piece).nbytes > _MAX_PARTS * MAX_CODE_BYTES:
            raise SourceError(
                f"The build context has more than {format_size(_MAX_PARTS * MAX_CODE_BYTES)} when it is packed, which"
                " is the most that is carried into a cluster. Leave data out with .dockerignore or .launchignore, or"
                " build on a machine with a Docker Engine (builder.type: docker)."
            )
        return super().write(piece)


def _with_dockerfile(target: ImageBuild) -> BuildContext:
    if target.recipe is None:
        return target.context
    # By its digest: the tag may be moved until the cluster pulls it.
    name, _, digest = target.base.rpartition("@")
    recipe = target.recipe.model_copy(update={"base": parse_reference(name).at(digest)})
    text = write_dockerfile(recipe, secrets=()) + write_labels(target.labels)
    return target.context.plus({_DOCKERFILE: text.encode()})


def build_plan(
    target: ImageBuild,
    destination: str,
    settings: ClusterSettings,
    files: BuildFiles,
    run_dir: Path,
    annotations: Mapping[str, str],
) -> RunPlan:
    """Return the plan of the run that builds an image.

    Args:
        target: what is built.
        destination: the image's full name in its registry.
        settings: of builds in the cluster.
        files: what goes into the pod.
        run_dir: a folder.
        annotations: that the Job has from the start: who waits for it, and its maker.
    """
    item = f"build-{target.tag}"
    labels = {Labels.ITEM: item, Labels.ATTEMPT: "1", ImageLabels.TAG: target.tag}
    plan = RunPlan(
        item_id=item,
        run_id=item,
        run_dir=run_dir,
        args=("push", _IMAGE_DIR, f"--destination={destination}", *_insecure_flags(files)),
        labels=labels,
    )
    flags = (*_build_flags(target, files), *settings.args)
    return plan.model_copy(update={"options": _options(plan, flags, settings, files, annotations)})


def _build_flags(target: ImageBuild, files: BuildFiles) -> list[str]:
    flags = [
        f"--context=tar://{_CONTEXT_DIR}/{_ARCHIVE}",
        f"--dockerfile={target.dockerfile or _DOCKERFILE}",
        "--no-push",
        f"--oci-layout-path={_IMAGE_DIR}",
        f"--digest-file={OUTPUTS_PATH}",
    ]
    flags += [f"--label={name}={value}" for name, value in target.labels.items() if target.dockerfile]
    flags += [f"--custom-platform={target.platform}"] if target.platform else []
    return flags + _insecure_flags(files)


def _insecure_flags(files: BuildFiles) -> list[str]:
    return [f"--{flag}={host}" for host in files.insecure for flag in ("insecure-registry", "skip-tls-verify-registry")]


def _options(
    plan: RunPlan, flags: Sequence[str], settings: ClusterSettings, files: BuildFiles, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """Return the options of the run: the owner's, and what every build has.

    An init container builds, since it runs what a submitter wrote; the run's own container pushes, and has the login.
    """
    options = {"service-account": None, **deepcopy(settings.options)}
    spec = {**one_container_job()["spec"], **options.pop("spec", {})}
    spec["template"] = template = {**spec["template"], "spec": dict(spec["template"]["spec"])}
    pod = template["spec"]
    if options["service-account"] is None:
        # What a build runs is a submitter's: it is nobody in the cluster.
        del options["service-account"]
        pod.setdefault("automountServiceAccountToken", False)
    own, *others = pod["containers"]
    pod["volumes"] = [*pod.get("volumes", ()), *_volumes(plan.name, settings, files)]
    build = _container("build", own, _build_mounts(settings, files))
    build |= {
        "image": settings.image,
        "args": [literal(flag) for flag in flags],
        "terminationMessagePath": OUTPUTS_PATH,
    }
    short = read_options(options)
    place_short_options(pod, build, short)
    build["env"] = [*build.get("env", ()), *({"name": name, "value": value} for name, value in short.env.items())]
    joiner = [_joiner(settings)] if len(files.parts) > 1 else []
    pod["initContainers"] = [*pod.get("initContainers", ()), *joiner, build]
    pod["containers"] = [_container("push", own, _push_mounts(settings, files)), *others]
    spec |= {"backoffLimit": 0, "activeDeadlineSeconds": max(1, round(settings.timeout_seconds))}
    return {
        **options,
        "apiversion": "batch/v1",
        "kind": "Job",
        "spec": spec,
        "annotations": {**options.get("annotations", {}), **annotations},
        "image": settings.image,
        "ttl": _TTL_SECONDS,
        "wait-for-ready": False,
        "additional-services": _objects(plan.name, settings, files),
    }


def _container(name: str, own: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a container as the owner has written it, with a name, mounts, and the login that is among them."""
    made = {**deepcopy(dict(own)), "name": name}
    made["volumeMounts"] = [*made.get("volumeMounts", ()), *mounts]
    if any(one["mountPath"] == _CONFIG_DIR for one in mounts):
        made["env"] = [*made.get("env", ()), {"name": "DOCKER_CONFIG", "value": _CONFIG_DIR}]
    return made


def _objects(name: str, settings: ClusterSettings, files: BuildFiles) -> list[dict[str, Any]]:
    """Return the objects that the Job owns."""
    found = [_config_map(name, number, len(files.parts), part) for number, part in enumerate(files.parts)]
    if files.secrets:
        data = {key: base64.b64encode(value).decode() for key, value in files.secrets.items()}
        metadata = {"name": f"{name}-pip"}
        found.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data})
    found += [docker_config_secret(f"{name}-push", files.push_auths)] if files.push_auths else []
    found += [docker_config_secret(f"{name}-bases", files.pull_auths)] if files.pull_auths else []
    return found


def _config_map(name: str, number: int, count: int, part: bytes) -> dict[str, Any]:
    key = _ARCHIVE if count == 1 else f"part-{number:03d}"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-context-{number}"},
        "binaryData": {key: base64.b64encode(part).decode()},
    }


def _volumes(name: str, settings: ClusterSettings, files: BuildFiles) -> list[dict[str, Any]]:
    maps = [f"{name}-context-{number}" for number in range(len(files.parts))]
    found: list[dict[str, Any]] = [{"name": "launch-context", "configMap": {"name": maps[0]}}]
    if len(maps) > 1:
        sources = [{"configMap": {"name": one}} for one in maps]
        found = [
            {"name": "launch-context", "emptyDir": {}},
            {"name": "launch-parts", "projected": {"sources": sources}},
        ]
    if files.secrets:
        found.append({"name": "launch-pip", "secret": {"secretName": f"{name}-pip", "defaultMode": 0o400}})
    found.append({"name": "launch-image", "emptyDir": {}})
    push = settings.push_secret or (f"{name}-push" if files.push_auths else None)
    pull = settings.pull_secret or (f"{name}-bases" if files.pull_auths else None)
    items = [{"key": DOCKER_CONFIG_KEY, "path": "config.json"}]
    for volume, secret in (("launch-push", push), ("launch-bases", pull)):
        if secret is not None:
            found.append({"name": volume, "secret": {"secretName": secret, "items": items}})
    return found


def _build_mounts(settings: ClusterSettings, files: BuildFiles) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": "launch-context", "mountPath": _CONTEXT_DIR},
        {"name": "launch-image", "mountPath": _IMAGE_DIR},
    ]
    if files.secrets:
        found.append({"name": "launch-pip", "mountPath": SECRETS, "readOnly": True})
    if settings.pull_secret or files.pull_auths:
        found.append({"name": "launch-bases", "mountPath": _CONFIG_DIR, "readOnly": True})
    return found


def _push_mounts(settings: ClusterSettings, files: BuildFiles) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "launch-image", "mountPath": _IMAGE_DIR, "readOnly": True}]
    if settings.push_secret or files.push_auths:
        found.append({"name": "launch-push", "mountPath": _CONFIG_DIR, "readOnly": True})
    return found


def _joiner(settings: ClusterSettings) -> dict[str, Any]:
    """Return the init container that puts a context together that did not fit into one ConfigMap."""
    return {
        "name": "launch-context",
        "image": settings.unpack_image,
        "command": ["sh", "-c", f"cat {_PARTS_DIR}/part-* > {_CONTEXT_DIR}/{_ARCHIVE}"],
        "volumeMounts": [
            {"name": "launch-parts", "mountPath": _PARTS_DIR, "readOnly": True},
            {"name": "launch-context", "mountPath": _CONTEXT_DIR},
        ],
    }
