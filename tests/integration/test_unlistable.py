"""A real server that fails over every list of runs, since one holds an integer beyond 64 bits; and its recovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch.errors import ServerFailedError
from prefect_launch.queues.session import Session
from tests.support.live import Site
from tests.support.requests import send

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

HUGE = 2**70


def test_agent_ends_what_cannot_be_listed_and_deactivates_the_schedule_that_makes_it(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)

    async def deployment_of(session: Session) -> str:
        return str((await session.queue(unique)).deployment_id)

    deployment = site.api.call(deployment_of)

    def ask(method: str, path: str, body: Any = None) -> Any:
        # As any client of Prefect may: the last look before a request of ours leaves would not let it out.
        content = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json"}
        answer = send(method, f"{prefect_server.api_url}{path}", content=content, headers=headers)
        return answer.json() if answer.content else None

    schedule = {"interval": 86_400, "anchor_date": "2020-01-01T00:00:00Z"}
    of_schedule = {"schedule": schedule, "active": True, "parameters": {"overrides": {"run_config": {"seed": HUGE}}}}
    ask("POST", f"/deployments/{deployment}/schedules", [of_schedule])
    ask("POST", f"/deployments/{deployment}/schedule", {"min_runs": 3})
    parameters = {"job": "x", "overrides": {"run_config": {"seed": HUGE}}}
    unchecked = {"parameters": parameters, "enforce_parameter_schema": False, "state": {"type": "SCHEDULED"}}
    due = ask("POST", f"/deployments/{deployment}/create_flow_run", unchecked)["id"]
    with pytest.raises(ServerFailedError, match="A list of runs that the server cannot send"):
        site.api.items(queue=unique)

    site.work_off()

    items = site.api.read_items(queue=unique)
    assert {item.state_name for item in items} == {"Failed"}
    assert [item.parameters["overrides"]["run_config"]["seed"] for item in items] == [str(HUGE)] * 2
    assert due in {str(item.id) for item in items}
    [kept] = ask("GET", f"/deployments/{deployment}/schedules")
    assert kept["active"] is False
    assert len(ask("POST", "/flow_runs/paginate", {"deployments": {"id": {"any_": [deployment]}}})["results"]) == 2
