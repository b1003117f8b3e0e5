"""`secure_mode` of an agent: a submitter gives inputs, and nothing else decides what code runs.

On such an agent the entry point, the image and the command are the job's, and a pod gets nothing of its host. Unlike
the reference, which documents the lock on the image and does not keep it, this one holds for all resources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.safety.manifest import normal_key, walk
from prefect_launch.safety.options import normalise_option
from prefect_launch.spec import LaunchSpec

_POD_KEYS = {normal_key(key) for key in ("hostPID", "hostIPC", "hostNetwork", "initContainers", "ephemeralContainers")}
_CONTAINER_KEYS = {"command", "image"}
_OPTIONS = {"command", "entrypoint", "image"}


def check_secure_mode(spec: LaunchSpec, resource_args: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Refuse what an agent in secure mode does not let a submitter decide.

    Args:
        spec: the item's spec.
        resource_args: by resource's name; the spec's own when left out. Given the queue's merged ones, as the reference
            does, the queue's own settings are refused too.

    Raises:
        UnsafeSpecError: naming what is locked, and the next step.
    """
    args = spec.resource_args if resource_args is None else resource_args
    for locked in (*_locked_in_spec(spec), *_locked_in_args(args), *_locked_in_services(spec)):
        raise UnsafeSpecError(
            f"This agent is configured to lock {locked} but the job specification attempts to override it."
            " Remove it, make it part of the job, or use a queue whose agents are not in secure mode."
        )


def _locked_in_spec(spec: LaunchSpec) -> Iterator[str]:
    if spec.overrides.entry_point:
        yield 'the "entrypoint" override'
    if spec.overrides.dockerfile:
        yield 'the "dockerfile" override'
    if spec.builder.get("accelerator"):
        yield 'the "builder" base image'
    if spec.docker.user_id is not None:
        yield 'the "docker" user id'
    if spec.image:
        yield f'the "image" (it runs images of jobs only, and {spec.image!r} is named directly)'


def _locked_in_args(args: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for resource, options in args.items():
        for name in options:
            if normalise_option(name) in _OPTIONS:
                yield f'"{normalise_option(name)}" in resource_args.{resource}'
        yield from _locked_in_manifest(options)


def _locked_in_services(spec: LaunchSpec) -> Iterator[str]:
    for service in spec.additional_services:
        yield from _locked_in_manifest(service, pod_only=True)


def _locked_in_manifest(manifest: Any, *, pod_only: bool = False) -> Iterator[str]:
    for _, key, value in walk(manifest):
        if normal_key(key) in _POD_KEYS:
            yield f'"{key}" in pod spec'
        if normal_key(key) == "containers" and not pod_only:
            yield from (f'"{name}" in container spec' for name in _container_keys(value))


def _container_keys(containers: Any) -> Iterator[str]:
    for container in containers if isinstance(containers, (list, tuple)) else [containers]:
        if isinstance(container, Mapping):
            yield from (str(name) for name in container if normal_key(str(name)) in _CONTAINER_KEYS)
