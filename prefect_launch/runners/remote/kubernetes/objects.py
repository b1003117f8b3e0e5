"""Objects that one run is made of: the held Job or custom resource, its Secret, its code, and additional services.

The name, the labels and what the job gets come from the run's plan; everything else from the options. Nothing is asked
of the cluster, and nothing is made: the same plan gives the same objects.
"""

from __future__ import annotations

import base64
import json
import math
import posixpath
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import TAKEOVER_SECONDS, Labels, RunPlan
from prefect_launch.runners.remote.kubernetes.code import add_code, code_config_map, preview_code
from prefect_launch.runners.remote.kubernetes.environment import OUTPUT_DIR, SecretValues, job_variables, literal
from prefect_launch.runners.remote.kubernetes.fields import unshared
from prefect_launch.runners.remote.kubernetes.holding import HOLD, QUEUE_LABEL, Hold, hold_back, hold_pods, is_held
from prefect_launch.runners.remote.kubernetes.images import check_container_images
from prefect_launch.runners.remote.kubernetes.kind_rules import complete_helpers, with_defaults
from prefect_launch.runners.remote.kubernetes.kinds import (
    ObjectKind,
    PodTemplatePath,
    first,
    place,
    written,
)
from prefect_launch.runners.remote.kubernetes.manifest_checks import pod_templates, with_names
from prefect_launch.runners.remote.kubernetes.options import (
    KubernetesOptions,
    ServiceSpec,
    job_containers,
    one_container_job,
    read_options,
)
from prefect_launch.runners.remote.kubernetes.rules import OWN_PREFIX, is_label_value
from prefect_launch.runners.remote.kubernetes.short_options import place_short_options

#: How long a container of the run may fail to get its image, in seconds.
PULL_TIMEOUT: Final = "prefect-launch.image-pull-timeout"
#: Label of what goes with a run and is not the run: its Secret, its code, its services.
BESIDE: Final = "prefect-launch.beside"
#: Label selector of all runs, and of their pods.
RUNS: Final = f"{Labels.ITEM},!{BESIDE}"
#: The file that the kubelet reads a container's last message from: the run's named results.
OUTPUTS_PATH: Final = f"{OUTPUT_DIR}/outputs.json"
#: What a Secret with credentials for registries has them under.
DOCKER_CONFIG_KEY: Final = ".dockerconfigjson"
#: Of the metadata that an owner wrote, what is the server's, or comes from the run.
_NOT_KEPT: Final = frozenset({"name", "generateName", "namespace", "uid", "resourceVersion", "creationTimestamp"}) | {
    *("managedFields", "generation", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences")
}
_HIDDEN: Final = "***"
#: Stands for an image that is still to be built.
_TO_BE_BUILT: Final = "to-be-built"


class RunObjects(BaseModel):
    """What is made in the cluster for one run.

    Attributes:
        kind: of the object that is the run.
        manifest: of it: held, where its kind can be held.
        namespace: that all is made in; None: the agent's own.
        context: of the kubeconfig; None: the current one.
        owned: objects that are made once the run's object exists, and go with it (`with_owner`): Secret, ConfigMap.
        services: additional services, which go with it too.
        last: what its pods wait for, where it cannot be held until its services are ready.
    """

    model_config = ConfigDict(frozen=True)

    kind: ObjectKind
    manifest: dict[str, Any]
    namespace: str | None = None
    context: str | None = None
    owned: tuple[dict[str, Any], ...] = Field(default=(), repr=False)
    services: tuple[ServiceSpec, ...] = ()
    last: tuple[dict[str, Any], ...] = ()


def build_objects(
    plan: RunPlan,
    *,
    hold: Hold = Hold.SUSPEND,
    code: bytes | None = None,
    pull_auths: Mapping[str, Mapping[str, str]] | None = None,
    stop_seconds: float = TAKEOVER_SECONDS,
) -> RunObjects:
    """Return the objects of a run.

    Args:
        plan: of the run.
        hold: how the server can hold a batch Job.
        code: as `pack_code` returns it.
        pull_auths: credentials for registries by host, each `{"username": …, "password": …}`; none: no pull secret.
        stop_seconds: what a container gets between TERM and KILL, where the plan does not say it.

    Raises:
        SpecError: when the options are wrong, do not fit the job, or show a secret.
    """
    if plan.stop_seconds is None:
        plan = plan.model_copy(update={"stop_seconds": stop_seconds})
    options = read_options(plan.options).model_copy(update={"from_limits": plan.from_limits})
    kind = options.kind
    manifest = unshared(options.manifest) if options.manifest is not None else one_container_job()
    secrets = SecretValues(f"{plan.name}-env", plan.mask)
    pull_secret = f"{plan.name}-pull" if pull_auths else None
    with_defaults(manifest, kind)
    _name_templates(manifest, kind)
    has_job = False
    for keys, number, template in pod_templates(manifest, kind):
        has_job = _complete_pod(template, plan, options, secrets, pull_secret, kind.pods[number]) or has_job
        check_container_images(template["spec"], f"{written(keys)}.spec", options.node_registries)
    complete_helpers(manifest, kind)
    if kind.entry_point:
        _set_entry_point(manifest, plan, kind)
    elif not has_job:
        raise SpecError(
            f"resource_args.kubernetes has no container {options.main_container or kind.container!r} that the job runs"
            f" in. Name its container so, or name the container in the option main_container."
        )
    manifest["metadata"] = _metadata(manifest.get("metadata") or {}, plan, options)
    if kind.ttl and options.ttl is not None:
        place(manifest, kind.ttl, options.ttl)
    hold_back(manifest, kind, hold)
    services = tuple(_service(one, plan, options) for one in options.additional_services)
    last = []
    if any(one.wait_for_ready for one in services) and not is_held(manifest, kind):
        pods = (template["spec"] for _, _, template in pod_templates(manifest, kind))
        last = [_labelled(hold_pods(pods, f"{plan.name}-ready"), plan, options)]
    secrets.check_none_left(manifest, "resource_args.kubernetes")
    for service in services:
        secrets.check_none_left(service.manifest, "An additional service")
    owned = [
        secrets.secret(),
        _pull_secret(pull_secret, pull_auths),
        None if code is None else code_config_map(plan, code),
    ]
    return RunObjects(
        kind=kind,
        manifest=manifest,
        namespace=options.namespace,
        context=options.context,
        owned=tuple(_labelled(one, plan, options) for one in owned if one is not None),
        services=services,
        last=tuple(last),
    )


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan of which no objects can be made; its image may be still to be built.

    Raises:
        SpecError: as `build_objects` does.
    """
    _built_later(plan)


def _built_later(plan: RunPlan) -> RunObjects:
    if plan.image is None and plan.build_request is not None:
        plan = plan.model_copy(update={"image": _TO_BE_BUILT, "code_dir": None})
    return build_objects(plan, code=preview_code(plan))


def preview_objects(plan: RunPlan) -> dict[str, Any]:
    """Return what would be made for a run, without values of variables and without secrets."""
    made = _built_later(plan)
    manifest = deepcopy(made.manifest)
    for _, _, template in pod_templates(manifest, made.kind):
        for _, container in _containers(template["spec"]):
            for variable in container.get("env", ()):
                if "value" in variable:
                    variable["value"] = _HIDDEN
    others = (*made.owned, *(service.manifest for service in made.services), *made.last)
    beside = [f"{one['kind']} {one['metadata']['name']}" for one in others]
    return {"manifest": manifest, "namespace": made.namespace or "the agent's", "beside": beside}


# --- labels ---


def split_labels(labels: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what of a run's labels can be labels of Kubernetes, and the rest, which become annotations."""
    legal = {key: value for key, value in labels.items() if is_label_value(value)}
    return legal, {key: value for key, value in labels.items() if key not in legal}


def labels_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the run that an object is, whether they are labels or annotations there."""
    metadata = manifest.get("metadata") or {}
    both = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    return {
        key: value
        for key, value in both.items()
        if key.startswith(OWN_PREFIX) and key not in (HOLD, PULL_TIMEOUT, Labels.WANTED_NAME)
    }


def selector_of(labels: Mapping[str, str]) -> str:
    """Return the label selector of the objects that may have these labels of a run; `labels_of` says which do."""
    legal, _ = split_labels(labels)
    return ",".join([RUNS, *(f"{key}={value}" for key, value in sorted(legal.items()))])


def with_owner(made: Mapping[str, Any], owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object that goes when its owner goes.

    Args:
        made: the object.
        owner: as the server returned it, with its `uid`.
    """
    metadata = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    return {**made, "metadata": {**made["metadata"], "ownerReferences": [reference]}}


# --- the run's object ---


def _name_templates(manifest: dict[str, Any], kind: ObjectKind) -> None:
    for _, _, template in pod_templates(manifest, kind):
        template.update(with_names(template))


def _metadata(given: Mapping[str, Any], plan: RunPlan, options: KubernetesOptions) -> dict[str, Any]:
    wanted = {Labels.WANTED_NAME: given["name"]} if given.get("name") else {}
    patience = {} if options.image_pull_timeout is None else {PULL_TIMEOUT: f"{options.image_pull_timeout:g}"}
    kept = {key: value for key, value in given.items() if key not in _NOT_KEPT}
    labels, annotations = split_labels(plan.labels)
    return {
        **kept,
        "name": plan.name,
        **({"namespace": options.namespace} if options.namespace else {}),
        "labels": {**options.labels, **labels},
        "annotations": {**options.annotations, **annotations, **wanted, **patience},
    }


def _labelled(made: dict[str, Any], plan: RunPlan, options: KubernetesOptions) -> dict[str, Any]:
    labels, annotations = split_labels(plan.labels)
    metadata = made["metadata"]
    return {
        **made,
        "metadata": {
            **metadata,
            **({"namespace": options.namespace} if options.namespace else {}),
            "labels": {**(metadata.get("labels") or {}), **labels, BESIDE: "true"},
            "annotations": {**(metadata.get("annotations") or {}), **annotations},
        },
    }


def _service(service: ServiceSpec, plan: RunPlan, options: KubernetesOptions) -> ServiceSpec:
    return service.model_copy(update={"manifest": _labelled(unshared(service.manifest), plan, options)})


def _complete_pod(
    template: dict[str, Any],
    plan: RunPlan,
    options: KubernetesOptions,
    secrets: SecretValues,
    pull_secret: str | None,
    of: PodTemplatePath,
) -> bool:
    """Complete a pod template; whether one of its containers runs the job."""
    labels, annotations = split_labels(plan.labels)
    metadata = template.setdefault("metadata", {})
    shared = {key: value for key, value in options.labels.items() if key != QUEUE_LABEL}
    metadata["labels"] = {**(metadata.get("labels") or {}), **shared, **labels}
    metadata["annotations"] = {**(metadata.get("annotations") or {}), **options.annotations, **annotations}
    pod = template["spec"]
    takes_command = of.runs_job and not options.kind.entry_point
    if takes_command and not options.kind.container:
        pod.setdefault("restartPolicy", "Never")
    # In whole seconds; with 0, a deletion would not show that its container has ended.
    pod.setdefault("terminationGracePeriodSeconds", max(1, math.ceil(plan.stop_seconds or 0)))
    _place_pod(pod, options, pull_secret)
    for field, container in _containers(pod):
        secrets.take_out(container)
        if field == "initContainers":
            # Not for the job's own: the last lines of a log could be taken for its outputs.
            container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    ours = list(job_containers(pod, options, of))
    for container in ours:
        _complete_container(pod, container, plan, options, secrets, takes_command=takes_command)
    return bool(ours)


def _place_pod(pod: dict[str, Any], options: KubernetesOptions, pull_secret: str | None) -> None:
    """Put in what says where and as whom a pod runs."""
    if options.node_selector:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **options.node_selector}
    if options.tolerations:
        pod["tolerations"] = [*pod.get("tolerations", ()), *deepcopy(options.tolerations)]
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.priority_class:
        pod["priorityClassName"] = options.priority_class
    names = [*options.image_pull_secret, *([pull_secret] if pull_secret else ())]
    if names:
        pod["imagePullSecrets"] = [*pod.get("imagePullSecrets", ()), *({"name": name} for name in names)]


def _containers(pod: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for field in ("initContainers", "containers"):
        yield from ((field, container) for container in pod.get(field) or ())


def _complete_container(
    pod: dict[str, Any],
    container: dict[str, Any],
    plan: RunPlan,
    options: KubernetesOptions,
    secrets: SecretValues,
    *,
    takes_command: bool,
) -> None:
    own = container.get("image") or ""
    # A macro that is still there names the image of an item that has none.
    image = plan.resolved_image or plan.image or (None if "${" in own else own) or options.image
    if not image:
        raise SpecError(
            f"The container {container['name']!r} of resource_args.kubernetes has no image, and the job names none."
            " Name it in the queue (image), or in the job."
        )
    container["image"] = image
    place_short_options(pod, container, options)
    own = container.get("env") or []
    variables = job_variables(plan, options.env, container)
    # First, so that a manifest's own variables can name them as $(LAUNCH_RUN_ID).
    container["env"] = [secrets.entry(name, value) for name, value in variables.items()] + [
        one for one in own if one["name"] not in variables
    ]
    container["terminationMessagePath"] = OUTPUTS_PATH
    if takes_command:
        _set_command(container, plan)
        if plan.code_dir is not None:
            add_code(pod, container, plan)


def _set_command(container: dict[str, Any], plan: RunPlan) -> None:
    if plan.command:
        container["command"] = [literal(word) for word in plan.command]
        container.pop("args", None)
    if plan.args:
        container["args"] = [literal(word) for word in plan.args]
    if plan.working_dir is None or plan.code_dir is not None:
        return
    folder = posixpath.join(container.get("workingDir", ""), plan.working_dir)
    if folder.startswith("/"):
        container["workingDir"] = posixpath.normpath(folder)
    elif container.get("command"):
        # The image's own working directory is known on its node only.
        container["command"] = ["/bin/sh", "-c", 'cd -- "$0" && exec "$@"', literal(folder), *container["command"]]
    else:
        raise SpecError(
            f"The working directory {plan.working_dir!r} is relative to the image's own, which is known on the node"
            " only. Give an absolute path, or name the entry point too."
        )


def _set_entry_point(manifest: dict[str, Any], plan: RunPlan, kind: ObjectKind) -> None:
    if plan.code_dir is not None:
        raise SpecError(
            f"A {kind.kind} runs its command in a cluster of its own, so no code is carried onto its image. Create the"
            " job without a base image, so that an image is built of its code."
        )
    words = shlex.join((*plan.command, *plan.args))
    if plan.command:
        place(manifest, kind.entry_point, words)
    elif plan.args:
        place(manifest, kind.entry_point, f"{first(manifest, kind.entry_point) or ''} {words}".strip())


def _pull_secret(name: str | None, auths: Mapping[str, Mapping[str, str]] | None) -> dict[str, Any] | None:
    return None if name is None or not auths else docker_config_secret(name, auths)


def docker_config_secret(name: str, auths: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return a Secret with credentials for registries, as Docker's config file has them.

    Args:
        name: of the Secret.
        auths: credentials by registry, each `{"username": …, "password": …}`.
    """
    whole = {
        host: {
            **one,
            "auth": base64.b64encode(f"{one.get('username', '')}:{one.get('password', '')}".encode()).decode(),
        }
        for host, one in auths.items()
    }
    data = {DOCKER_CONFIG_KEY: base64.b64encode(json.dumps({"auths": whole}).encode()).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson",
        "data": data,
    }
