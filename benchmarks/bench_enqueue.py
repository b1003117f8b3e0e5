"""What `launch_add` and `launch_add_many` cost one caller, beside the bare requests that make the same items.

`launch_add` and its two floors take turns, so that a busy machine and a growing database slow all three. One floor is
our own client (patient with a busy server by its own rule), the other Prefect's client as anybody uses it.
The floor of `launch_add_many` is the server's bulk endpoint with as many items a request as it takes, every result
checked, and what a busy server left out sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from benchmarks.figures import Figure, at_least_times, at_most_times
from benchmarks.place import Place
from prefect_launch.client.api import Api, use_api
from prefect_launch.client.item_check import check_item
from prefect_launch.client.launch_add import launch_add, launch_add_many
from prefect_launch.queues.session import Session
from prefect_launch.server.values import ItemDraft
from prefect_launch.spec.launch_spec import parse_spec

_QUEUE = "enqueue"
_ITEMS = 100
_MANY = 1000
_SPEC: dict[str, Any] = {
    "docker": {"docker_image": "team/train:1"},
    "overrides": {"run_config": {"learning_rate": 0.1, "epochs": 3}},
}
_WARM_UP = 3
#: The server refuses more in one request.
_BULK_LIMIT = 100
_BULK_PAUSE_SECONDS = 0.2


def measure(place: Place) -> list[Figure]:
    """Measure single calls, then calls for many."""
    made = place.api.create_run_queue(_QUEUE, "local-container")
    with use_api(place.api):
        figures = [*_one_by_one(place), *_many_at_once(place)]
    made.delete()
    return figures


def _one_by_one(place: Place) -> list[Figure]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment_id, drafts = _drafts(place.api)
        ways: list[Callable[[], Any]] = [
            lambda: launch_add(config=_SPEC, queue_name=_QUEUE),
            lambda: place.api.call(lambda session: session.server.create_item(deployment_id, next(drafts))),
            lambda: _as_anybody(client, deployment_id, next(drafts)),
        ]
        for _ in range(_WARM_UP):
            for way in ways:
                way()
        times = [[_milliseconds(way) for way in ways] for _ in range(place.rounds(_ITEMS))]
    ours, ours_alone, anybody = (median(column) for column in zip(*times, strict=True))
    rate, client_rate, anybodys_rate = (len(column) * 1000 / sum(column) for column in zip(*times, strict=True))
    name = "launch_add, one caller"
    return [
        Figure(f"{name}, median", ours, "ms", ours_alone, "create_item alone", at_most_times(ours_alone, 1.3)),
        Figure(f"{name}, median", ours, "ms", anybody, "Prefect's client alone", at_most_times(anybody, 1.3)),
        Figure(name, rate, "calls/s", client_rate, "create_item alone", at_least_times(client_rate, 1 / 1.3)),
        Figure(
            f"{name}", rate, "calls/s", anybodys_rate, "Prefect's client alone", at_least_times(anybodys_rate, 1 / 1.3)
        ),
    ]


def _many_at_once(place: Place) -> list[Figure]:
    count = place.rounds(_MANY)
    deployment_id, drafts = _drafts(place.api)

    def bare() -> None:
        bodies = [_body(next(drafts)) for _ in range(count)]
        place.api.call(lambda session: _in_bulk(session, deployment_id, bodies))

    def ours() -> None:
        launch_add_many([_SPEC] * count, _QUEUE)

    # A B B A: the server slows down as its database grows.
    spent = [(way, _milliseconds(way)) for way in (bare, ours, ours, bare)]
    rate, floor = (2 * count * 1000 / sum(ms for done, ms in spent if done is way) for way in (ours, bare))
    goal = at_least_times(floor, 0.8)
    return [Figure(f"launch_add_many, {count} items", rate, "items/s", floor, "bulk endpoint alone", goal)]


def _drafts(api: Api) -> tuple[UUID, Iterator[ItemDraft]]:
    """Return what `launch_add` makes of the spec, under a new key each time."""

    async def prepare(session: Session) -> tuple[UUID, ItemDraft]:
        checked = await check_item(api, session, parse_spec(_SPEC), _QUEUE)
        return checked.queue.deployment_id, checked.draft

    deployment_id, draft = api.call(prepare)
    return deployment_id, (draft.model_copy(update={"idempotency_key": uuid4().hex}) for _ in iter(int, 1))


async def _in_bulk(session: Session, deployment_id: UUID, bodies: list[dict[str, Any]]) -> None:
    path = f"/deployments/{deployment_id}/create_flow_run/bulk"
    client: Any = session.server.client  # Its request() knows no bulk endpoint.
    for start in range(0, len(bodies), _BULK_LIMIT):
        left = bodies[start : start + _BULK_LIMIT]
        while left:
            response = await client.request("POST", path, json=left)
            results = response.json()["results"]
            left = [body for body, result in zip(left, results, strict=True) if not result.get("flow_run_id")]
            if left:
                await asyncio.sleep(_BULK_PAUSE_SECONDS)


def _body(draft: ItemDraft) -> dict[str, Any]:
    state = {"type": draft.state.type.value, "name": draft.state.name}
    return {**draft.model_dump(mode="json", exclude={"state"}, exclude_none=True), "state": state}


def _as_anybody(client: Any, deployment_id: UUID, draft: ItemDraft) -> None:
    from prefect.states import Scheduled

    client.create_flow_run_from_deployment(
        deployment_id,
        parameters=draft.parameters,
        job_variables=draft.job_variables,
        name=draft.name,
        tags=draft.tags,
        labels=draft.labels,
        idempotency_key=draft.idempotency_key,
        work_queue_name=draft.work_queue_name,
        state=Scheduled(name=draft.state.name),
    )


def _milliseconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000
