"""Items that are due later, on a real server: an agent whose next poll is far away takes each in its time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import UUID

from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, prefect_client, run_deployment, until

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

#: Far beyond what a test waits for: what starts was not found by a poll.
POLL_SECONDS = 60.0
#: From the due time to the claim: a tenth of a second, and more on a machine that is busy.
LATE_SECONDS = 30.0


def states_of(run_id: str) -> list[State]:

    with prefect_client() as client:
        return client.read_flow_run_states(UUID(run_id))


def test_retry_starts_when_it_is_due(site: Site) -> None:
    site.job('test "$LAUNCH_ATTEMPT" = 2')
    (run,) = site.add(retries={"max": 1, "on": ["failed"], "delay": 3})
    with running(site.agent(poll_seconds=POLL_SECONDS)):
        run.wait_until_finished(timeout=DEADLINE_SECONDS)
    states = states_of(run.id)
    (retry,) = [number for number, state in enumerate(states) if state.name == "AwaitingRetry"]
    due = states[retry].state_details.scheduled_time
    assert due is not None
    assert states[retry + 1].name == "Pending"
    assert 0 <= (states[retry + 1].timestamp - due).total_seconds() < LATE_SECONDS


def test_run_that_was_made_for_later_in_the_ui_starts_when_it_is_due(site: Site) -> None:
    site.job("true")
    with running(site.agent(poll_seconds=POLL_SECONDS)):
        due = datetime.now(timezone.utc) + timedelta(seconds=3)
        made = run_deployment(f"launch/queue-{site.name}", parameters={"job": site.name}, scheduled_time=due)
        until(lambda: [state.name for state in states_of(str(made.id))][-1] == "Completed")
    claimed = next(state for state in states_of(str(made.id)) if state.name == "Pending")
    assert 0 <= (claimed.timestamp - due).total_seconds() < LATE_SECONDS
