"""What the agent makes of answers of the Kubernetes API that are no success."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_launch.errors import (
    AgentConfigError,
    InfrastructureError,
    LaunchError,
    NoRoomError,
    QueueError,
    SpecError,
    UnreachableError,
)
from prefect_launch.runners.remote.kubernetes.errors import (
    Answer,
    ConflictError,
    ExpiredError,
    LoginError,
    NotReadyError,
    NotThereError,
    OverloadedError,
    TakenError,
    error_of,
)


def answer(code: int, message: str = "", reason: str = "", **more: Any) -> LaunchError:
    status = {"kind": "Status", "code": code, "message": message, "reason": reason, **more}
    return error_of(Answer.read(code, json.dumps(status).encode(), {}), "create the Job launch-1", "https://cluster")


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (401, "Unauthorized", LoginError),
        (404, "NotFound", NotThereError),
        (409, "AlreadyExists", TakenError),
        (409, "Conflict", NoRoomError),
        (410, "Expired", ExpiredError),
        (429, "TooManyRequests", OverloadedError),
        (418, "Teapot", InfrastructureError),
        (500, "InternalError", NoRoomError),
        (503, "ServiceUnavailable", UnreachableError),
    ],
)
def test_answer_is_the_error_of_who_must_act(code: int, reason: str, kind: type[LaunchError]) -> None:
    error = answer(code, "said the API", reason)
    assert type(error) is kind
    assert "said the API" in str(error)
    assert "https://cluster" in str(error)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (409, "the UID in the precondition (u1) does not match the UID in record (u2). The object might"),
        (409, "Precondition failed: UID in precondition: u1, UID in object meta: "),
        (422, 'Job.batch "x" is invalid: metadata.uid: Invalid value: "u1": field is immutable'),
    ],
)
def test_request_for_an_object_whose_name_another_has_now_is_told_from_one_that_has_raced(code: int, said: str) -> None:
    assert type(answer(code, said, "Invalid" if code == 422 else "Conflict")) is ConflictError


def test_namespace_that_is_being_deleted_is_the_matter_of_the_queues_owner() -> None:
    said = 'jobs.batch "x" is forbidden: unable to create new content in namespace team because it is being terminated'
    cause = {"reason": "NamespaceTerminating", "message": "namespace team is being terminated", "field": "metadata.x"}
    error = answer(403, said, "Forbidden", details={"causes": [cause]})
    assert isinstance(error, QueueError)
    assert "Name another namespace in the queue's config, or create this one again" in str(error)


def test_all_causes_of_a_refused_manifest_are_told_in_words() -> None:
    causes = [
        {
            "reason": "FieldValueInvalid",
            "message": 'Invalid value: "BAD": must be lower case',
            "field": "metadata.name",
        },
        {"reason": "FieldValueNotSupported", "message": 'Unsupported value: "Always"', "field": "spec.restartPolicy"},
    ]
    error = answer(422, 'Job.batch "BAD" is invalid: [...]', "Invalid", details={"causes": causes})
    assert isinstance(error, SpecError)
    assert 'metadata.name: Invalid value: "BAD": must be lower case; spec.restartPolicy: Unsupported' in str(error)


def test_missing_right_names_the_verb_and_the_resource_to_grant() -> None:
    said = (
        'jobs.batch is forbidden: User "agent" cannot create resource "jobs" in API group "batch" in the namespace "x"'
    )
    error = answer(403, said, "Forbidden")
    assert isinstance(error, AgentConfigError)
    assert "a Role with the verb 'create' on 'jobs'" in str(error)


def test_full_quota_makes_the_item_wait() -> None:
    error = answer(
        403, 'jobs.batch "launch-1" is forbidden: exceeded quota: few, requested: count/jobs.batch=1', "Forbidden"
    )
    assert isinstance(error, UnreachableError)
    assert "exceeded quota: few" in str(error)


def test_rule_of_the_cluster_is_told_as_such() -> None:
    error = answer(403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', "Forbidden")
    assert isinstance(error, SpecError)
    assert "A rule of the cluster" in str(error)


def test_log_of_a_container_that_has_not_started_is_not_ready() -> None:
    said = 'container "main" in pod "launch-1" is waiting to start: ContainerCreating'
    assert isinstance(answer(400, said, "BadRequest"), NotReadyError)


def test_page_of_a_proxy_is_shown_by_its_beginning() -> None:
    page = b"<html>\n<title>502 Bad Gateway</title>" + b"x" * 10_000
    error = error_of(Answer.read(502, page, {}), "list the jobs", "https://cluster")
    assert isinstance(error, UnreachableError)
    assert "502 Bad Gateway" in str(error)
    assert len(str(error)) < 600


def test_retry_after_is_read_from_the_header_or_the_status() -> None:
    assert Answer.read(429, b"{}", {"Retry-After": "7"}).retry_after == 7
    assert Answer.read(429, b'{"details": {"retryAfterSeconds": 3}}', {}).retry_after == 3
    assert Answer.read(429, b"{}", {}).retry_after is None
