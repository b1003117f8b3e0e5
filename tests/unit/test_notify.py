"""Notifications: what is refused, and what its automation is about."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.client.notify import Notification
from prefect_launch.errors import NotFoundError, SpecError


def trigger_of(*causes: str, **more: Any) -> dict[str, Any]:
    automation = Notification(causes, "slack-webhook/ops", **more).automation(uuid4())
    trigger: dict[str, Any] = automation.model_dump(mode="json")["trigger"]
    return trigger


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"causes": ()}, "Name what to be told of: completed, failed, crashed, cancelled, stuck"),
        ({"causes": ("faild",)}, "Did you mean 'failed'"),
        ({"block": "ops"}, "such as slack-webhook/ops"),
        ({"block": "slack-webhook/"}, "such as slack-webhook/ops"),
        ({"wait_seconds": 5.0}, "takes 10 s or more"),
    ],
)
def test_notification_that_cannot_be_made_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises((SpecError, NotFoundError), match=said):
        Notification(**{"causes": ("failed",), "block": "slack-webhook/ops", **given})


def test_ends_are_told_as_they_come_of_items_alone() -> None:
    trigger = trigger_of("failed", "crashed")

    assert (trigger["type"], trigger["posture"]) == ("event", "Reactive")
    assert set(trigger["expect"]) == {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    assert trigger["match_related"] == {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "launch"}


def test_stuck_item_is_one_that_has_not_started_in_time_on_the_queue() -> None:
    trigger = trigger_of("stuck", queue="gpu", wait_seconds=900.0)

    assert (trigger["posture"], trigger["within"], trigger["after"]) == (
        "Proactive",
        900.0,
        ["prefect.flow-run.Queued"],
    )
    assert "prefect.flow-run.Running" in trigger["expect"]
    assert trigger["match_related"]["prefect.resource.name"] == "gpu"


def test_ends_and_stuck_items_are_one_automation() -> None:
    trigger = trigger_of("failed", "stuck")

    assert (trigger["type"], trigger["require"]) == ("compound", "any")
    assert [each["posture"] for each in trigger["triggers"]] == ["Reactive", "Proactive"]
