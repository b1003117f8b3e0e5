"""Kinds of objects that the resource `kubernetes` runs, in one table: a batch Job, PyTorchJob, RayJob, Volcano, JobSet.

An entry says where an object of the kind has its pod templates, how it is held, and how its state is read. Another kind
is described by the queue's owner with the same names, in the option `custom`. Paths are field names with dots between;
`*` stands for every key of a mapping, or every item of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import zip_longest
from math import prod
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prefect_launch.core.validation import first_error, reason
from prefect_launch.errors import SpecError
from prefect_launch.runners.remote.kubernetes.fields import join

_PATH: Final = re.compile(r"[A-Za-z_*][\w-]*(\.[A-Za-z_*][\w-]*)*|")


class PodTemplatePath(BaseModel):
    """Where an object has a pod template.

    Attributes:
        template: the path of the pod template (an object with `spec`, and perhaps `metadata`).
        counts: paths of numbers that are multiplied to the number of its pods: fields next to it, or above it.
        runs_job: whether its containers run the job's own command; not the pods of a cluster that the job runs on.
        is_helper: whether its containers are the operator's own, and get nothing of the job's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str
    counts: tuple[str, ...] = ()
    runs_job: bool = True
    is_helper: bool = False

    @field_validator("template", "counts")
    @classmethod
    def _validate_path(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for one in (value,) if isinstance(value, str) else value:
            if not _PATH.fullmatch(one):
                raise ValueError(f"{one!r} is no path: write field names with dots between, such as 'spec.template'")
        return value


class ObjectKind(BaseModel):
    """What there is to know about a kind of object.

    Attributes:
        kind: its name, such as `PyTorchJob`.
        group: of its API, such as `kubeflow.org`; empty for a kind that the queue's owner describes.
        plural: its name in the API's paths; empty: the kind in small letters with an `s`.
        pods: where it has its pod templates.
        container: the name that the container of the job must have; empty: any.
        suspend: the path of the field that holds it back while true; empty: it cannot be held that way.
        ttl: the path of the number of seconds that it stays once it has ended; empty: it has none.
        entry_point: the path of a field that takes the job's command as one text for a shell; empty: its containers
            take the command.
        phases: paths of its phase, one word; where there are several, one that says failed counts before the others.
        conditions: path of its conditions; empty: it has none.
        message: path of a message for people; empty: it has none.
        counts: path of a list of objects with counts of pods, `active`, `ready`; empty: it has none.
        states: words of its phases or conditions that mean something else than they do elsewhere, with their meaning.
        defaults: values by their paths, for fields that its owner has not set: who retries a run is its queue.
        required: values by their paths, without which its operator does not take it while it is held back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = ""
    group: str = ""
    plural: str = ""
    pods: tuple[PodTemplatePath, ...] = Field(default=(PodTemplatePath(template="spec.template"),), min_length=1)
    container: str = ""
    suspend: str = ""
    ttl: str = ""
    entry_point: str = ""
    phases: tuple[str, ...] = ("status.phase",)
    conditions: str = "status.conditions"
    message: str = "status.message"
    counts: str = ""
    states: dict[str, Literal["finished", "failed", "stopping", "running", "starting"]] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    required: dict[str, Any] = Field(default_factory=dict)

    @field_validator("suspend", "ttl", "entry_point", "phases", "conditions", "message", "counts")
    @classmethod
    def _validate_path(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for one in (value,) if isinstance(value, str) else value:
            if not _PATH.fullmatch(one):
                raise ValueError(f"{one!r} is no path: write field names with dots between, such as 'status.phase'")
        return value

    @property
    def resource(self) -> str:
        """Its name in the API's paths, such as `pytorchjobs`."""
        return self.plural or f"{self.kind.lower()}s"


#: A batch Job, of `batch/v1`.
JOB: Final = ObjectKind(
    kind="Job",
    group="batch",
    pods=(PodTemplatePath(template="spec.template", counts=("spec.parallelism",)),),
    suspend="spec.suspend",
    ttl="spec.ttlSecondsAfterFinished",
    defaults={"spec.backoffLimit": 0},
)

#: For how long the pods of a RayJob stay that has ended, in seconds: their logs are still to be read.
_RAY_SECONDS: Final = 600
#: The pod from which a RayJob's command is submitted; its log is the command's.
RAY_SUBMITTER: Final = "spec.submitterPodTemplate"
RAY_HEAD: Final = "spec.rayClusterSpec.headGroupSpec.template"
_RAY_WORKERS: Final = "spec.rayClusterSpec.workerGroupSpecs.*"
#: Custom resources that are known without a description.
CUSTOM_KINDS: Final = (
    ObjectKind(
        kind="PyTorchJob",
        group="kubeflow.org",
        pods=(
            PodTemplatePath(
                template="spec.pytorchReplicaSpecs.*.template", counts=("spec.pytorchReplicaSpecs.*.replicas",)
            ),
        ),
        container="pytorch",
        suspend="spec.runPolicy.suspend",
        ttl="spec.runPolicy.ttlSecondsAfterFinished",
        defaults={"spec.pytorchReplicaSpecs.*.restartPolicy": "Never"},
    ),
    ObjectKind(
        kind="MPIJob",
        group="kubeflow.org",
        pods=(
            PodTemplatePath(template="spec.mpiReplicaSpecs.Launcher.template"),
            # They run a server that the launcher starts processes by.
            PodTemplatePath(
                template="spec.mpiReplicaSpecs.Worker.template",
                counts=("spec.mpiReplicaSpecs.Worker.replicas",),
                runs_job=False,
            ),
        ),
        suspend="spec.runPolicy.suspend",
        ttl="spec.runPolicy.ttlSecondsAfterFinished",
        defaults={"spec.mpiReplicaSpecs.*.restartPolicy": "Never", "spec.runPolicy.backoffLimit": 0},
    ),
    ObjectKind(
        kind="RayJob",
        group="ray.io",
        pods=(
            PodTemplatePath(template=RAY_HEAD, runs_job=False),
            PodTemplatePath(template=f"{_RAY_WORKERS}.template", counts=(f"{_RAY_WORKERS}.replicas",), runs_job=False),
            PodTemplatePath(template=RAY_SUBMITTER, runs_job=False, is_helper=True),
        ),
        suspend="spec.suspend",
        ttl="spec.ttlSecondsAfterFinished",
        entry_point="spec.entrypoint",
        phases=("status.jobStatus", "status.jobDeploymentStatus"),
        # Of the cluster that it runs on: ready, provisioned.
        conditions="",
        states={
            **dict.fromkeys(("initializing", "waiting", "retrying", "suspending", "suspended"), "starting"),
            "validationfailed": "failed",
        },
        defaults={"spec.ttlSecondsAfterFinished": _RAY_SECONDS},
        required={"spec.shutdownAfterJobFinishes": True},
    ),
    ObjectKind(
        kind="Job",
        group="batch.volcano.sh",
        pods=(PodTemplatePath(template="spec.tasks.*.template", counts=("spec.tasks.*.replicas",)),),
        ttl="spec.ttlSecondsAfterFinished",
        phases=("status.state.phase",),
        message="status.state.message",
        # Entries without a type, each the phase as it was then.
        conditions="",
        states={"inqueue": "starting", "restarting": "starting"},
    ),
    ObjectKind(
        kind="JobSet",
        group="jobset.x-k8s.io",
        pods=(
            PodTemplatePath(
                template="spec.replicatedJobs.*.template.spec.template",
                counts=("spec.replicatedJobs.*.replicas", "spec.replicatedJobs.*.template.spec.parallelism"),
            ),
        ),
        suspend="spec.suspend",
        ttl="spec.ttlSecondsAfterFinished",
        phases=("status.terminalState",),
        counts="status.replicatedJobsStatus",
        defaults={"spec.replicatedJobs.*.template.spec.backoffLimit": 0},
        states={"startuppolicycompleted": "running", "startuppolicyinprogress": "starting"},
    ),
)


def kind_of(api_version: str, kind: str, custom: Mapping[str, Any] | None = None) -> ObjectKind:
    """Return what is known about a kind of object.

    Args:
        api_version: such as `kubeflow.org/v1`.
        kind: such as `PyTorchJob`.
        custom: what the queue's owner says of it: fields of `ObjectKind` in place of the known ones.

    Raises:
        SpecError: when the owner's description is wrong, or missing for an unknown kind.
    """
    group = api_version.rpartition("/")[0]
    known = next((one for one in (JOB, *CUSTOM_KINDS) if (one.group, one.kind) == (group, kind)), None)
    if known is None and custom is None:
        names = ", ".join(f"{one.kind} ({one.group})" for one in (JOB, *CUSTOM_KINDS))
        raise SpecError(
            f"resource_args.kubernetes is of the kind {kind!r} of {api_version!r}, and where it has its pods is not"
            f" known. Known: {names}. For another, say it in the option custom: {{'pods': [{{'template':"
            " 'spec.template'}]}."
        )
    base = known or ObjectKind(kind=kind, group=group)
    return base if custom is None else base.model_copy(update=_read_custom(custom))


def _read_custom(custom: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(custom, Mapping):
        raise SpecError(f"resource_args.kubernetes option 'custom' is {custom!r}; it must be a mapping.")
    own = {"kind", "group"} & custom.keys()
    if own:
        raise SpecError(
            f"resource_args.kubernetes option 'custom' has {sorted(own)[0]!r}, which the manifest says. Leave it out."
        )
    try:
        read = ObjectKind.model_validate(custom)
    except ValidationError as error:
        first = first_error(error)
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(ObjectKind.model_fields.keys() - {"kind", "group"}))
        raise SpecError(
            f"resource_args.kubernetes option 'custom' is wrong at {where!r}: {reason(first)}. It may have: {known}."
        ) from None
    return {name: getattr(read, name) for name in read.model_fields_set}


def pod_count(made: Mapping[str, Any], template: PodTemplatePath, keys: Keys) -> int:
    """Return how many pods an object has of a template.

    Args:
        made: the object.
        template: of the pods.
        keys: that lead to it, where its path has a `*`.
    """
    counts = (first(made, beside(path, keys)) for path in template.counts)
    return prod(1 if count is None else int(count) for count in counts)


# --- places in an object ---

Keys = tuple["str | int", ...]


def find(value: Any, path: str) -> Iterator[tuple[Keys, Any]]:
    """Yield what is at a path of an object, each with the keys and indexes that lead there; nothing where it is not."""
    places: list[tuple[Keys, Any]] = [((), value)]
    for name in path.split(".") if path else ():
        places = [((*keys, key), item) for keys, found in places for key, item in _inside(found, name)]
    yield from places


def first(value: Any, path: str) -> Any:
    """Return what is first at a path of an object; None where there is nothing, or no path."""
    return next((found for _, found in find(value, path)), None) if path else None


def beside(path: str, keys: Keys) -> str:
    """Return a path with its `*` replaced by the keys that another place has there."""
    return ".".join(str(key) if part == "*" else part for part, key in zip_longest(path.split("."), keys) if part)


def written(keys: Keys) -> str:
    """Return keys and indexes as a message shows them, such as `spec.tasks[0].template`."""
    path = ""
    for key in keys:
        path = f"{path}[{key}]" if isinstance(key, int) else join(path, key)
    return path


def place(value: dict[str, Any], path: str, item: Any) -> None:
    """Put an item at a path without `*` in an object, and make the mappings on the way."""
    *folders, last = path.split(".")
    for name in folders:
        value = value.setdefault(name, {})
    value[last] = item


def set_default(value: dict[str, Any], path: str, item: Any) -> None:
    """Put an item at a path in an object where nothing is; the mappings on the way are made below the last `*`."""
    above, star, below = path.rpartition("*.")
    for _, found in find(value, f"{above}*") if star else [((), value)]:
        if isinstance(found, dict) and first(found, below) is None:
            place(found, below, deepcopy(item))


def _inside(value: Any, name: str) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from ((key, value[key]) for key in (value if name == "*" else (name,)) if value.get(key) is not None)
    elif isinstance(value, list):
        yield from ((i, item) for i, item in enumerate(value) if name in ("*", str(i)))
