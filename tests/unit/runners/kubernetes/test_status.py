"""How a run on Kubernetes stands and ends, judged from objects in the shape that API servers give them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_launch.agent.item.outcome import cause_of, outcome_of_exit
from prefect_launch.core.states import ItemState
from prefect_launch.errors import ImagePullError, InfrastructureError, SpecError
from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.kubernetes.holding import HOLD
from prefect_launch.runners.remote.kubernetes.kinds import JOB
from prefect_launch.runners.remote.kubernetes.objects import PULL_TIMEOUT
from prefect_launch.runners.remote.kubernetes.pods import outputs_message
from prefect_launch.runners.remote.kubernetes.status import is_short_of_pods, run_status
from prefect_launch.spec.scheduling import Cause

NOW = datetime(2026, 5, 4, 12, 10, tzinfo=timezone.utc)
STARTED, ENDED = "2026-05-04T12:00:00Z", "2026-05-04T12:00:05Z"


def job(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    """Return a batch Job that was released."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "launch-x-1", "annotations": {HOLD: "parallelism=1"}},
        "spec": {"parallelism": 1, "backoffLimit": 0},
        "status": {"conditions": list(conditions), **status},
    }


def failed(reason: str = "BackoffLimitExceeded", message: str = "Job has reached the specified backoff limit") -> Any:
    """Return the condition of a Job that has failed."""
    return {"type": "Failed", "status": "True", "reason": reason, "message": message, "lastTransitionTime": ENDED}


def terminated(code: int, reason: str = "Error", message: str = "", at: str = ENDED, **more: Any) -> dict[str, Any]:
    """Return the state of a container that has ended."""
    ended = {"exitCode": code, "reason": reason, "startedAt": STARTED, "finishedAt": at, **more}
    return {"terminated": {**ended, **({"message": message} if message else {})}}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    """Return the state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


def pod(phase: str, *states: dict[str, Any], init: list[Any] | None = None, **status: Any) -> dict[str, Any]:
    """Return a pod with these states of its containers c0, c1, …"""
    name = status.pop("name", "launch-x-1-abcde")
    deleted = status.pop("deleted", None)
    return {
        "metadata": {"name": name, **({"deletionTimestamp": deleted} if deleted else {})},
        "status": {
            "phase": phase,
            "startTime": STARTED,
            "containerStatuses": [{"name": f"c{i}", "image": "img:1", "state": one} for i, one in enumerate(states)],
            "initContainerStatuses": [{"name": f"i{i}", "state": one} for i, one in enumerate(init or ())],
            **status,
        },
    }


def judge(made: dict[str, Any], *pods: dict[str, Any], **given: Any) -> RemoteStatus:
    """Return the status of a batch Job."""
    return run_status(made, JOB, pods, **{"now": NOW, **given})


def end_of(made: dict[str, Any], *pods: dict[str, Any]) -> ExitStatus:
    """Return how an ended Job ended."""
    status = judge(made, *pods)
    assert status.state is RemoteState.ENDED
    assert status.exit is not None
    return status.exit


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient cpu.",
}
DISRUPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "PreemptionByScheduler",
    "message": "default-scheduler: preempting to accommodate a higher priority pod",
}


def test_job_with_parallelism_0_is_held() -> None:
    made = job()
    made["spec"]["parallelism"] = 0

    assert judge(made).state is RemoteState.HELD


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([], ""),
        ([pod("Pending", waits("ContainerCreating"))], ""),
        ([pod("Pending", conditions=[UNSCHEDULABLE])], "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."),
        (
            [
                pod(
                    "Pending",
                    waits("ImagePullBackOff", 'Back-off pulling image "nope"'),
                    startTime="2026-05-04T12:09:59Z",
                )
            ],
            'ImagePullBackOff: Back-off pulling image "nope"',
        ),
        (
            [pod("Pending", waits("PodInitializing"), init=[waits("CrashLoopBackOff", "back-off 10s restarting")])],
            "CrashLoopBackOff: back-off 10s restarting",
        ),
    ],
)
def test_job_that_waits_says_why_in_the_clusters_words(pods: list[dict[str, Any]], reason: str) -> None:
    status = judge(job(), *pods)

    assert (status.state, status.reason, status.refusal) == (RemoteState.PENDING, reason, None)


def test_quota_that_is_used_up_is_told_by_the_jobs_events() -> None:
    event = {"type": "Warning", "reason": "FailedCreate", "message": 'pods "x" is forbidden: exceeded quota: q'}

    assert judge(job(), events=[event]).reason == 'FailedCreate: pods "x" is forbidden: exceeded quota: q'


def test_job_that_the_clusters_queueing_suspends_waits() -> None:
    suspended = {"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": "Job suspended"}

    assert judge(job(suspended)).reason == "JobSuspended: Job suspended"


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("ImagePullBackOff", ImagePullError),
        ("ErrImagePull", ImagePullError),
        ("InvalidImageName", SpecError),
        ("CreateContainerConfigError", SpecError),
    ],
)
def test_container_that_cannot_start_for_long_is_given_up(reason: str, error: type[Exception]) -> None:
    status = judge(job(), pod("Pending", waits(reason, "why it is so")))

    assert isinstance(status.refusal, error)
    assert "why it is so" in str(status.refusal)
    assert "'c0'" in str(status.refusal)


def test_name_that_is_no_image_is_given_up_at_once_and_a_failing_pull_is_not() -> None:
    at_once = datetime(2026, 5, 4, 12, 0, 1, tzinfo=timezone.utc)

    assert judge(job(), pod("Pending", waits("InvalidImageName")), now=at_once).refusal is not None
    assert judge(job(), pod("Pending", waits("ErrImagePull")), now=at_once).refusal is None


def test_patience_for_an_image_counts_from_the_end_of_the_init_containers() -> None:
    at = "2026-05-04T12:08:00Z"
    initialized = {"type": "Initialized", "status": "True", "lastTransitionTime": at}
    made = pod("Pending", waits("ImagePullBackOff"), init=[terminated(0, at=at)], conditions=[initialized])

    assert judge(job(), made).refusal is None
    assert isinstance(judge(job(), made, now=NOW + timedelta(minutes=4)).refusal, ImagePullError)


def test_owner_says_how_long_the_nodes_may_fail_to_get_an_image() -> None:
    made, waiting = job(), pod("Pending", waits("ErrImagePull"))
    made["metadata"]["annotations"][PULL_TIMEOUT] = "3600"

    assert judge(made, waiting).refusal is None
    made["metadata"]["annotations"][PULL_TIMEOUT] = "0"
    assert judge(made, waiting, now=datetime(2026, 5, 4, 12, tzinfo=timezone.utc)).refusal is not None


def test_pod_that_waits_beside_one_that_runs_is_told_and_given_up() -> None:
    runs = pod("Running", {"running": {"startedAt": STARTED}}, name="a")
    waiting = judge(job(), runs, pod("Pending", conditions=[UNSCHEDULABLE], name="b"))
    never = judge(job(), runs, pod("Pending", waits("CreateContainerConfigError", "secret not found"), name="b"))

    assert (waiting.state, waiting.reason) == (RemoteState.RUNNING, "Unschedulable: " + UNSCHEDULABLE["message"])
    assert (never.state, type(never.refusal)) == (RemoteState.RUNNING, SpecError)


def test_quota_that_keeps_later_pods_away_is_told() -> None:
    made, runs = job(), pod("Running", {"running": {"startedAt": STARTED}})
    event = {"type": "Warning", "reason": "FailedCreate", "message": 'pods "x" is forbidden: exceeded quota: q'}
    assert not is_short_of_pods(made, JOB, [runs])
    made["spec"].update(parallelism=2, completions=2)

    assert is_short_of_pods(made, JOB, [runs])
    assert judge(made, runs, events=[event]).reason == 'FailedCreate: pods "x" is forbidden: exceeded quota: q'
    other = {"type": "Warning", "reason": "RestartedWorker", "message": "worker 1"}
    assert judge(made, runs, events=[other]).reason == ""
    made["status"]["succeeded"] = 1
    assert not is_short_of_pods(made, JOB, [runs])


def test_warning_that_has_passed_is_no_reason() -> None:
    events = [
        {"type": "Warning", "reason": "FailedScheduling", "message": "no node"},
        {"type": "Normal", "reason": "Pulling", "message": "Pulling image"},
    ]

    assert judge(job(), pod("Pending", waits("ContainerCreating")), events=events).reason == ""


def test_running_pod_is_running_work() -> None:
    assert judge(job(), pod("Running", {"running": {"startedAt": STARTED}})).state is RemoteState.RUNNING


def test_first_pod_that_fails_does_not_end_a_job_that_may_try_again() -> None:
    again = pod("Pending", conditions=[UNSCHEDULABLE], name="b")

    assert judge(job(failed=1), pod("Failed", terminated(3))).state is RemoteState.RUNNING
    assert judge(job(failed=1), pod("Failed", terminated(3)), again).state is RemoteState.RUNNING


def test_job_of_several_completions_ends_by_its_own_condition() -> None:
    done = pod("Succeeded", terminated(0, "Completed"), name="a")
    complete = {"type": "Complete", "status": "True"}

    assert judge(job(succeeded=1), done, pod("Running", name="b")).state is RemoteState.RUNNING
    assert end_of(job(complete, completionTime=ENDED), done).succeeded


def test_success_after_a_failed_try_is_a_success() -> None:
    end = end_of(
        job({"type": "Complete", "status": "True"}), pod("Failed", terminated(3)), pod("Succeeded", terminated(0))
    )

    assert end.succeeded
    assert end.duration_seconds == 5


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (terminated(3), {"exit_code": 3, "signal": None, "oom_killed": False, "error": None}),
        (terminated(139), {"exit_code": 139, "signal": "SIGSEGV", "oom_killed": False, "error": None}),
        (terminated(137, "OOMKilled"), {"exit_code": 137, "signal": "SIGKILL", "oom_killed": True, "error": None}),
        (
            terminated(128, "ContainerCannotRun", "can't get final child's PID from pipe: EOF"),
            {
                "exit_code": 128,
                "signal": None,
                "oom_killed": False,
                "error": "the container could not be started: can't get final child's PID from pipe: EOF",
            },
        ),
        (
            terminated(128, "ContainerCannotRun", 'exec: "nope": executable file not found in $PATH'),
            {
                "exit_code": 127,
                "signal": None,
                "oom_killed": False,
                "error": 'the command cannot be run: exec: "nope": executable file not found in $PATH',
            },
        ),
    ],
)
def test_failed_job_ends_as_its_container_did(state: dict[str, Any], expected: dict[str, Any]) -> None:
    end = end_of(job(failed()), pod("Failed", state))

    assert end.model_dump(include=set(expected)) == expected
    assert end.preempted is False


def test_container_that_failed_first_is_the_one_that_is_named() -> None:
    first = terminated(7, at="2026-05-04T12:00:01Z")
    end = end_of(job(failed()), pod("Failed", terminated(143), first))

    assert end.exit_code == 7
    assert "the container 'c1' of the pod 'launch-x-1-abcde' failed first" in end.warnings[0]


def test_sidecar_that_ends_with_its_pod_is_not_taken_for_the_cause() -> None:
    made = pod("Failed", terminated(5), init=[terminated(137)])
    made["spec"] = {"initContainers": [{"name": "i0", "restartPolicy": "Always"}]}

    end = end_of(job(failed()), made)

    assert (end.exit_code, end.error) == (5, None)


def test_last_try_of_a_job_that_tries_again_says_how_it_ended() -> None:
    first, last = pod("Failed", terminated(3), name="a"), pod("Failed", terminated(4), name="b")
    first["metadata"]["creationTimestamp"], last["metadata"]["creationTimestamp"] = STARTED, ENDED

    assert end_of(job(failed(), failed=2), last, first).exit_code == 4


def test_init_container_that_fails_is_told() -> None:
    end = end_of(job(failed()), pod("Failed", waits("PodInitializing"), init=[terminated(2, message="no such host")]))

    assert end.exit_code == 2
    assert end.error == "the init container 'i0' failed with exit code 2: no such host"
    assert cause_of(end) is Cause.FAILED
    assert outcome_of_exit(end).state is ItemState.FAILED


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [DISRUPTED]},
        {"reason": "Evicted", "message": "The node was low on resource: memory."},
        {"reason": "NodeLost", "message": "Node n1 which was running pod x is unresponsive"},
        {"reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"},
    ],
)
def test_pod_whose_node_was_taken_away_is_no_fault_of_the_job(status: dict[str, Any]) -> None:
    end = end_of(job(failed()), pod("Failed", terminated(137), **status))

    assert end.preempted
    assert cause_of(end) is Cause.PREEMPTED
    assert outcome_of_exit(end).state is ItemState.CRASHED
    assert any(one["message"] in str(end.error) for one in [status, *status.get("conditions", [])] if "message" in one)


@pytest.mark.parametrize(
    "message",
    [
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        'Container main exceeded its local ephemeral storage limit "1Gi". ',
        'Usage of EmptyDir volume "scratch" exceeds the limit "10Mi". ',
    ],
)
def test_eviction_for_a_limit_of_its_own_is_the_jobs_own_doing(message: str) -> None:
    end = end_of(job(failed()), pod("Failed", terminated(137), reason="Evicted", message=message))

    assert not end.preempted
    assert message.strip() in str(end.error)
    assert cause_of(end) is Cause.FAILED
    assert outcome_of_exit(end).state is ItemState.FAILED


def test_deadline_of_the_pod_is_a_time_limit() -> None:
    message = "Pod was active on the node longer than the specified deadline"
    end = end_of(job(failed()), pod("Failed", terminated(143), reason="DeadlineExceeded", message=message))

    assert end.timed_out
    assert cause_of(end) is Cause.TIMEOUT
    assert message in end.describe()


def test_deadline_of_the_manifest_is_a_time_limit() -> None:
    end = end_of(job(failed("DeadlineExceeded", "Job was active longer than specified deadline")))

    assert end.timed_out
    assert cause_of(end) is Cause.TIMEOUT
    assert "longer than specified deadline" in end.describe()


def test_pod_that_somebody_deleted_is_told() -> None:
    of_pod = end_of(job(failed()), pod("Failed", terminated(143), deleted=ENDED))
    without = end_of(job(failed()))

    assert "somebody else deleted its pod" in str(of_pod.error)
    assert "none of its pods is left" in str(without.error)
    assert cause_of(without) is Cause.LOST


def test_named_results_are_the_last_message_of_the_job() -> None:
    done = pod("Succeeded", terminated(0, "Completed", '{"loss": 1}'), init=[terminated(0, message='{"no": 1}')])

    assert outputs_message([done]) == '{"loss": 1}'
    assert outputs_message([pod("Failed", terminated(1, message="no json"))]) is None


def handed_over(text: str, containers: int) -> dict[str, Any]:
    """Return a pod whose container wrote a text, as the kubelet hands it over."""
    whole = text.encode()[-4096:]
    states = [terminated(0, "Completed", whole[: 12_288 // containers].decode())]
    spec = {"containers": [{"name": f"c{i}"} for i in range(containers - 1)], "initContainers": [{"name": "i0"}]}
    return {**pod("Succeeded", *states), "spec": spec}


@pytest.mark.parametrize(("containers", "most"), [(2, 4096), (3, 4096), (4, 3072), (12, 1024)])
def test_named_results_that_the_kubelet_has_cut_off_are_told_with_what_it_hands_over(
    containers: int, most: int
) -> None:
    fits, cut = (json.dumps({"a": "x" * length}) for length in (most - 9, most - 8))

    assert len(fits) == most
    assert outputs_message([handed_over(fits, containers)]) == fits
    with pytest.raises(InfrastructureError, match=f"more than the {most:,} bytes"):
        outputs_message([handed_over(cut, containers)])
