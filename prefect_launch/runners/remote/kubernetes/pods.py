"""What the pods of a run say: why they wait, which container failed first and how, whether their node was taken away.

Pure functions over pods as the API server returns them (dictionaries).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from prefect_launch.core.output_limits import OUTPUTS_FILE
from prefect_launch.errors import ImagePullError, InfrastructureError, LaunchError, SpecError
from prefect_launch.runners.base import ExitStatus, signal_of

Pod = Mapping[str, Any]

#: How long a container may wait with these reasons until its job is given up, in seconds. What a reason says is wrong
#: may be made right (a Secret that comes later, a registry that is away); a name that is none stays so.
_PATIENCE: Final[Mapping[str, float]] = {
    "InvalidImageName": 0,
    "ErrImageNeverPull": 0,
    "CreateContainerConfigError": 60,
    "CreateContainerError": 60,
    "RunContainerError": 60,
    "SignatureValidationFailed": 0,
}
#: How long the nodes may fail to get an image, in seconds, where the queue's owner says nothing else.
PULL_SECONDS: Final = 300.0
_PULLS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"})
#: What every pod says while it starts.
_STARTING: Final = frozenset({"ContainerCreating", "PodInitializing", ""})
#: A failed pod's own reasons, which the machine is to blame for.
_TAKEN_AWAY: Final = frozenset(
    {
        *("Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"),
        *("UnexpectedAdmissionError", "OutOfcpu", "OutOfmemory", "OutOfpods", "OutOfephemeral-storage"),
    }
)
#: How the kubelet says that it has evicted a pod for a limit of the pod's own: on its disk, or on a volume in memory.
#: Where the node itself is short of something, it says so (`The node was low on resource`).
_OWN_LIMIT: Final = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
#: The reason of a pod that has reached the `activeDeadlineSeconds` of its own.
_POD_DEADLINE: Final = "DeadlineExceeded"
#: So much the kubelet hands over of a container's last message, and of those of all containers of a pod: each of them
#: has an equal part. It reads the end of a longer file.
_MAX_MESSAGE_BYTES: Final = 4096
_MAX_POD_MESSAGE_BYTES: Final = 12_288
_OOM: Final = "OOMKilled"
_NO_PROGRAM: Final = ("executable file not found", "no such file or directory")


class Waiting(NamedTuple):
    """Why a run does not run yet.

    Attributes:
        reason: in the cluster's words.
        refusal: why it never will, if so.
    """

    reason: str
    refusal: LaunchError | None = None


class ContainerEnd(NamedTuple):
    """How one container of a pod ended.

    Attributes:
        pod: the pod's name.
        container: its own name.
        exit_code: as the kubelet gives it.
        reason: likewise: `Error`, `OOMKilled`, `ContainerCannotRun`.
        message: what it left in its termination message.
        started_at: when it started; None where that is not known.
        ended_at: when it ended; likewise.
        is_init: whether it ran before the others.
        is_sidecar: whether it was started before the others and runs together with them.
    """

    pod: str
    container: str
    exit_code: int
    reason: str
    message: str
    started_at: datetime | None
    ended_at: datetime | None
    is_init: bool
    is_sidecar: bool = False


# --- reading a pod ---


def name_of(made: Mapping[str, Any]) -> str:
    """Return the name of an object."""
    return str((made.get("metadata") or {}).get("name", ""))


def status_of(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of an object; an empty one where there is none yet."""
    return made.get("status") or {}


def condition(made: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return the condition of a type that is true now; an empty mapping where there is none."""
    found = (one for one in status_of(made).get("conditions") or () if one.get("type") == kind)
    return next((one for one in found if one.get("status") == "True"), {})


def read_time(text: object) -> datetime | None:
    """Read a point in time of the API; None where there is none."""
    if not isinstance(text, str) or not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def first_running_container(pods: Iterable[Pod]) -> tuple[str, str] | None:
    """Return the first container that runs and is no helper before the others: its pod's name, and its own."""
    for pod in pods:
        states = {one["name"]: one.get("state") or {} for one in status_of(pod).get("containerStatuses") or ()}
        for container in pod["spec"].get("containers") or ():
            if "running" in states.get(container["name"], {}):
                return name_of(pod), str(container["name"])
    return None


def has_started(pod: Pod) -> bool:
    """Whether one of its containers runs or has run: what has started stays so, also between two tries."""
    return status_of(pod).get("phase") == "Running" or any(not end.is_init for end in ends_of(pod))


def has_ended(pod: Pod) -> bool:
    """Whether all its containers have ended."""
    return status_of(pod).get("phase") in ("Succeeded", "Failed")


def in_words(*parts: object) -> str:
    """Return a reason and a message as one text, without what says nothing."""
    return ": ".join(str(part).strip() for part in parts if part and str(part).strip())


def ends_of(pod: Pod) -> list[ContainerEnd]:
    """Return how the containers of a pod ended, those that did, init containers first."""
    statuses, sidecars = status_of(pod), _sidecars(pod)
    return [
        _end(name_of(pod), one, is_init=field == "initContainerStatuses", sidecars=sidecars)
        for field in ("initContainerStatuses", "containerStatuses")
        for one in statuses.get(field) or ()
        if _terminated(one)
    ]


def _sidecars(pod: Pod) -> frozenset[str]:
    init = (pod.get("spec") or {}).get("initContainers") or ()
    return frozenset(str(one.get("name")) for one in init if one.get("restartPolicy") == "Always")


def _terminated(container: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how a container ended; also one that waits for its next start, which the last state is of."""
    state = container.get("state") or {}
    return state.get("terminated") or ((container.get("lastState") or {}).get("terminated") or {})


def _end(pod: str, container: Mapping[str, Any], *, is_init: bool, sidecars: Collection[str]) -> ContainerEnd:
    ended = _terminated(container)
    is_sidecar = container.get("name") in sidecars
    number = ended.get("signal")
    code = ended.get("exitCode")
    return ContainerEnd(
        pod=pod,
        container=str(container.get("name", "")),
        exit_code=int(code) if code is not None else 128 + int(number or 0),
        reason=str(ended.get("reason") or ""),
        message=str(ended.get("message") or ""),
        started_at=read_time(ended.get("startedAt")),
        ended_at=read_time(ended.get("finishedAt")),
        is_init=is_init and not is_sidecar,
        is_sidecar=is_sidecar,
    )


_LATE: Final = datetime.max.replace(tzinfo=timezone.utc)


def first_failure(pods: Iterable[Pod]) -> ContainerEnd | None:
    """Return the container that failed first, of some pods; None where none did.

    The API's times are whole seconds. Of several at the same one, what the others' end has ended counts last: those
    that were stopped by a signal, and sidecars, which end with their pod.
    """
    failed = [end for pod in pods for end in ends_of(pod) if end.exit_code != 0 or end.reason == _OOM]
    return min(failed, key=_precedence, default=None)


def _precedence(end: ContainerEnd) -> tuple[bool, datetime, bool]:
    was_stopped = signal_of(end.exit_code) in ("SIGTERM", "SIGKILL") and end.reason != _OOM
    return end.is_sidecar, end.ended_at or _LATE, was_stopped


def outputs_message(pods: Iterable[Pod]) -> str | None:
    """Return the content of `outputs.json`, as the last container that wrote one left it; None where none did.

    Raises:
        InfrastructureError: when the kubelet has not handed over all of it.
    """
    ends = ((end, pod) for pod in pods for end in ends_of(pod) if not (end.is_init or end.is_sidecar))
    messages = (_Message(end, _message_bytes(pod)) for end, pod in ends)
    found = [one for one in messages if one.end.message.lstrip().startswith("{") or one.is_full]
    if not found:
        return None
    last = max(found, key=lambda one: one.end.ended_at or _LATE)
    if last.is_full and not _is_json(last.end.message):
        raise InfrastructureError(
            f"{OUTPUTS_FILE} has more than the {last.most_bytes:,} bytes that Kubernetes hands over of it from a"
            " container of such a pod, so it is not kept. Write larger results to a volume or a bucket that the"
            " queue's owner names."
        )
    return last.end.message


class _Message(NamedTuple):
    end: ContainerEnd
    most_bytes: int

    @property
    def is_full(self) -> bool:
        """Whether the kubelet may have cut it off."""
        return len(self.end.message.encode()) >= self.most_bytes


def _message_bytes(pod: Pod) -> int:
    """Return how much the kubelet hands over of the last message of one of a pod's containers."""
    spec = pod.get("spec") or {}
    count = sum(len(spec.get(field) or ()) for field in ("initContainers", "containers"))
    return min(_MAX_MESSAGE_BYTES, _MAX_POD_MESSAGE_BYTES // max(1, count))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# --- why it waits ---


def waiting_of(pods: Sequence[Pod], now: datetime, pull_seconds: float = PULL_SECONDS) -> Waiting:
    """Say why pods wait, those that have not started.

    Args:
        pods: of a run; others of them may run.
        now: the time, which says how long they have waited.
        pull_seconds: how long their nodes may fail to get an image.
    """
    found = [one for pod in pods if not has_ended(pod) for one in _waits(pod, now, pull_seconds)]
    refused = next((one for one in found if one.refusal is not None), None)
    return refused or next(iter(found), Waiting(""))


def _waits(pod: Pod, now: datetime, pull_seconds: float) -> Iterator[Waiting]:
    statuses = status_of(pod)
    since = _since(pod)
    for kind in ("initContainerStatuses", "containerStatuses"):
        if kind == "containerStatuses":
            since = _latest(since, condition(pod, "Initialized").get("lastTransitionTime"))
        for container in statuses.get(kind) or ():
            since = _latest(since, _terminated(container).get("finishedAt"))
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = str(waiting.get("reason") or "")
            if reason not in _STARTING:
                text = in_words(reason, waiting.get("message"))
                patience = pull_seconds if reason in _PULLS else _PATIENCE.get(reason)
                is_over = patience is not None and _is_over(patience, since, now)
                yield Waiting(text, _refusal(reason, text, pod, container) if is_over else None)
    for one in statuses.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            yield Waiting(in_words(one.get("reason"), one.get("message")))
    if statuses.get("reason") and not has_ended(pod):
        yield Waiting(in_words(statuses["reason"], statuses.get("message")))


def _since(pod: Pod) -> datetime | None:
    """Return when a node took a pod; when it was made, where that is not known."""
    made = (pod.get("metadata") or {}).get("creationTimestamp")
    return read_time(status_of(pod).get("startTime")) or read_time(made)


def _latest(known: datetime | None, text: object) -> datetime | None:
    """Return the later of two times: a container waits since the one before it has ended."""
    found = read_time(text)
    return found if known is None or (found is not None and found > known) else known


def _is_over(patience: float, since: datetime | None, now: datetime) -> bool:
    return not patience or (since is not None and (now - since).total_seconds() >= patience)


def _refusal(reason: str, text: str, pod: Pod, container: Mapping[str, Any]) -> LaunchError:
    where = f"The container {container.get('name')!r} of the pod {name_of(pod)!r} cannot start"
    if reason in _PULLS or reason == "ErrImageNeverPull":
        image = container.get("image")
        return ImagePullError(
            f"{where}: {text}. Check the image {image!r}, and that the cluster's nodes may pull it (image_pull_secret)."
        )
    return SpecError(f"{where}: {text}. Correct what it names: the job's image, or the queue's own options.")


# --- why it ended ---


def taken_away(pod: Pod) -> str | None:
    """Say why a pod's node was taken from it, in the cluster's words; None where it was not."""
    disruption = condition(pod, "DisruptionTarget")
    statuses = status_of(pod)
    reason, message = str(statuses.get("reason") or ""), str(statuses.get("message") or "")
    if evicted_for_own_use(pod):
        return None
    if disruption:
        return in_words(disruption.get("reason"), disruption.get("message"))
    return in_words(reason, message) if reason in _TAKEN_AWAY else None


def evicted_for_own_use(pod: Pod) -> str | None:
    """Say which limit of its own a pod was evicted for, in the cluster's words; None where it was not."""
    statuses = status_of(pod)
    reason, message = str(statuses.get("reason") or ""), str(statuses.get("message") or "")
    return in_words(reason, message) if reason == "Evicted" and _OWN_LIMIT.search(message) else None


def failure_of(pods: Sequence[Pod], *, default: str) -> ExitStatus:
    """Say how a run ended that failed.

    Args:
        pods: of the run, which are still there.
        default: why it failed, in the cluster's words, where no pod tells.
    """
    failed = [pod for pod in pods if status_of(pod).get("phase") != "Succeeded"]
    end = first_failure(failed)
    times = _times(pods)
    if by_cluster := _ended_by_cluster(failed):
        code = None if end is None else end.exit_code
        return ExitStatus(exit_code=code, signal=signal_of(code), **by_cluster, **times)
    of_pod = next(
        (in_words(s.get("reason"), s.get("message")) for pod in failed if (s := status_of(pod)).get("reason")), ""
    )
    if end is None:
        removed = "" if pods else "; none of its pods is left: somebody may have deleted them"
        return ExitStatus(exit_code=None, error=f"{of_pod or default}{removed}", **times)
    end = end._replace(exit_code=_shell_code(end))
    return ExitStatus(
        exit_code=end.exit_code,
        signal=signal_of(end.exit_code),
        oom_killed=end.reason == _OOM,
        error=of_pod or _why_not_run(end) or _who_removed(end, failed),
        is_own_doing=end.is_init and not of_pod,
        warnings=_which(end, pods),
        **times,
    )


def _ended_by_cluster(pods: Sequence[Pod]) -> dict[str, Any]:
    """Say why the cluster has ended one of the pods, as fields of an exit status; none where it has ended none."""
    for pod in pods:
        if why := evicted_for_own_use(pod):
            return {"error": why, "is_own_doing": True}
        if why := taken_away(pod):
            return {"error": why, "preempted": True}
        if status_of(pod).get("reason") == _POD_DEADLINE:
            return {"error": in_words(_POD_DEADLINE, status_of(pod).get("message")), "timed_out": True}
    return {}


def _shell_code(end: ContainerEnd) -> int:
    """Return the exit code as a shell gives it: 127 for a program that is not there, for which runtimes give 128."""
    if end.reason in ("ContainerCannotRun", "StartError") and any(words in end.message for words in _NO_PROGRAM):
        return 127
    return end.exit_code


def _why_not_run(end: ContainerEnd) -> str | None:
    if end.reason in ("ContainerCannotRun", "StartError"):
        what = "command cannot be run" if end.exit_code == 127 else "container could not be started"
        return in_words(f"the {what}", end.message)
    if end.is_init:
        return in_words(
            f"the init container {end.container!r} failed with exit code {end.exit_code}", end.message[-500:]
        )
    return None


def _who_removed(end: ContainerEnd, pods: Iterable[Pod]) -> str | None:
    pod = next(pod for pod in pods if name_of(pod) == end.pod)
    if (pod.get("metadata") or {}).get("deletionTimestamp") and signal_of(end.exit_code) in ("SIGTERM", "SIGKILL"):
        return f"somebody else deleted its pod {end.pod!r}"
    return None


def _which(end: ContainerEnd, pods: Sequence[Pod]) -> tuple[str, ...]:
    """Name the container that failed first, where there are several."""
    count = sum(len(status_of(pod).get("containerStatuses") or ()) for pod in pods)
    if count < 2 and not end.is_init:
        return ()
    return (f"the container {end.container!r} of the pod {end.pod!r} failed first, with exit code {end.exit_code}",)


def success_of(pods: Sequence[Pod]) -> ExitStatus:
    """Say how a run ended that succeeded."""
    return ExitStatus(exit_code=0, **_times(pods))


def _times(pods: Sequence[Pod]) -> dict[str, Any]:
    ends = [end for pod in pods for end in ends_of(pod) if not end.is_init]
    started = [end.started_at for end in ends if end.started_at is not None]
    ended = [end.ended_at for end in ends if end.ended_at is not None]
    return {"started_at": min(started, default=None), "ended_at": max(ended, default=None)}
