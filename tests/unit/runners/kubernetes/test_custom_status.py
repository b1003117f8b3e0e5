"""How a custom resource stands: words of phases and conditions as the operators of four kinds write them."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.runners.remote.jobs import RemoteState
from prefect_launch.runners.remote.kubernetes.custom_status import CustomState, custom_status, state_of
from prefect_launch.runners.remote.kubernetes.kinds import CUSTOM_KINDS, ObjectKind, kind_of
from prefect_launch.runners.remote.kubernetes.pods import Waiting

PYTORCH, MPI, RAY, VOLCANO, JOB_SET = CUSTOM_KINDS


def conditions(*kinds: str, off: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a status with conditions that are true, and some that are not."""
    true = [{"type": kind, "status": "True", "reason": f"{kind}Reason", "message": f"it is {kind}"} for kind in kinds]
    return {"conditions": [*true, *({"type": kind, "status": "False"} for kind in off)]}


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        (PYTORCH, {}, None),
        (PYTORCH, conditions("Created"), CustomState.STARTING),
        (PYTORCH, conditions("Created", "Running"), CustomState.RUNNING),
        (PYTORCH, conditions("Created", "Suspended"), CustomState.STARTING),
        (PYTORCH, conditions("Created", "Succeeded", off=("Running",)), CustomState.FINISHED),
        (PYTORCH, conditions("Created", "Failed", off=("Running",)), CustomState.FAILED),
        (PYTORCH, conditions("Failed", "Succeeded"), CustomState.FINISHED),
        (RAY, {"jobDeploymentStatus": "Initializing"}, CustomState.STARTING),
        (RAY, {"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, CustomState.RUNNING),
        (RAY, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, CustomState.RUNNING),
        (RAY, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, CustomState.FINISHED),
        (RAY, {"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, CustomState.FAILED),
        (RAY, {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, CustomState.FAILED),
        (RAY, {"jobDeploymentStatus": "ValidationFailed", "message": "too long"}, CustomState.FAILED),
        (RAY, {"jobDeploymentStatus": "Suspending"}, CustomState.STARTING),
        (PYTORCH, conditions("Created", "Restarting", off=("Running",)), CustomState.STARTING),
        (MPI, conditions("Created", "Running"), CustomState.RUNNING),
        (MPI, conditions("Created", "Succeeded", off=("Running",)), CustomState.FINISHED),
        (VOLCANO, {"state": {"phase": "Pending"}}, CustomState.STARTING),
        (VOLCANO, {"state": {"phase": "Inqueue"}}, CustomState.STARTING),
        (VOLCANO, {"state": {"phase": "Completing"}}, CustomState.RUNNING),
        (VOLCANO, {"state": {"phase": "Aborting"}}, CustomState.STOPPING),
        (VOLCANO, {"state": {"phase": "Terminating"}}, CustomState.STOPPING),
        (VOLCANO, {"state": {"phase": "Aborted"}}, CustomState.FAILED),
        (VOLCANO, {"state": {"phase": "Terminated"}}, CustomState.FAILED),
        (VOLCANO, {"state": {"phase": "Completed"}}, CustomState.FINISHED),
        (JOB_SET, {"replicatedJobsStatus": [{"name": "w", "ready": 0, "active": 2}]}, CustomState.STARTING),
        (JOB_SET, {"replicatedJobsStatus": [{"name": "w", "ready": 1, "active": 2}]}, CustomState.RUNNING),
        (JOB_SET, {**conditions("Completed"), "replicatedJobsStatus": [{"ready": 1}]}, CustomState.FINISHED),
        (JOB_SET, {**conditions("Failed"), "terminalState": "Failed"}, CustomState.FAILED),
        (ObjectKind(kind="X"), {"phase": "Timeout"}, CustomState.FAILED),
        (ObjectKind(kind="X"), {"phase": "Weird"}, None),
        (ObjectKind(kind="X", states={"weird": "running"}), {"phase": "Weird"}, CustomState.RUNNING),
    ],
)
def test_words_of_a_kind_say_where_it_is(kind: ObjectKind, status: dict[str, Any], expected: Any) -> None:
    assert state_of({"status": status}, kind) is expected


def test_failed_resource_says_which_container_failed() -> None:
    ended = {"exitCode": 3, "reason": "Error", "finishedAt": "2026-05-04T12:00:00Z"}
    worker = {
        "metadata": {"name": "w-0"},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "pytorch", "state": {"terminated": ended}}]},
    }

    status = custom_status({"status": conditions("Failed")}, PYTORCH, [worker], Waiting(""))

    assert status.state is RemoteState.ENDED
    assert status.exit is not None
    assert status.exit.exit_code == 3


def test_failed_resource_without_pods_gives_its_operators_words() -> None:
    status = custom_status({"status": conditions("Failed")}, PYTORCH, [], Waiting(""))

    assert status.exit is not None
    assert status.exit.error == "PyTorchJob Failed: FailedReason: it is Failed"


def test_pod_that_runs_counts_before_the_word_of_a_slow_operator() -> None:
    running = {"metadata": {"name": "w"}, "status": {"phase": "Running"}}

    assert custom_status({}, PYTORCH, [running], Waiting("")).state is RemoteState.RUNNING


def test_resource_whose_operator_reached_its_deadline_has_timed_out() -> None:
    made = {"status": {"jobDeploymentStatus": "Failed", "message": "activeDeadlineSeconds: DeadlineExceeded"}}

    status = custom_status(made, RAY, [], Waiting(""))

    assert status.exit is not None
    assert status.exit.timed_out


def test_kind_is_found_by_its_group_whatever_its_version() -> None:
    assert kind_of("kubeflow.org/v2beta1", "PyTorchJob") is PYTORCH
    assert kind_of("batch.volcano.sh/v1alpha1", "Job") is VOLCANO
    assert kind_of("jobset.x-k8s.io/v1alpha2", "JobSet").resource == "jobsets"
