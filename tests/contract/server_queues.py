"""The contract's rules for work pools, work queues, deployments and agents."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import QueueError, SpecError
from prefect_launch.server.secrets import as_stored, from_stored
from tests.contract.server_place import INPUTS, TEMPLATE, Place, draft

REFUSED_TEMPLATES: list[tuple[dict[str, Any], str]] = [
    ({"job_configuration": {"a": 1}}, "must contain both a `job_configuration` key and a `variables` key"),
    (
        {"job_configuration": {"a": "{{ nope }}"}, "variables": {"type": "object", "properties": {}}},
        "uses the following undeclared variable(s): nope.",
    ),
]
REFUSED_VARIABLES: list[tuple[dict[str, Any], str]] = [
    ({"type": "nonsense"}, "Invalid schema: 'nonsense' is not valid under any of the given schemas"),
    (
        {"type": "object", "properties": {"gpus": {"type": "integer", "default": "two"}}},
        "Validation failed for work pool's job variable defaults: Validation failed for field 'gpus'.",
    ),
]


class QueueContract:
    """What queues are made of."""

    # --- work pools ---

    async def test_pool_is_read_back_as_it_was_made(self, place: Place) -> None:
        name = f"{place.pool}-2"
        made = await place.server.create_pool(
            name, base_job_template=TEMPLATE, description="for tests", concurrency_limit=4
        )
        assert made is not None
        assert await place.server.read_pool(name) == made
        assert (made.name, made.type, made.description, made.concurrency_limit) == (name, "launch", "for tests", 4)
        assert made.base_job_template == TEMPLATE
        assert name in [pool.name for pool in await place.server.list_pools()]

    async def test_pool_of_a_name_that_is_taken_is_none_and_the_first_stays(self, place: Place) -> None:
        again = await place.server.create_pool(
            place.pool, base_job_template={}, description="other", concurrency_limit=1
        )
        first = await place.server.read_pool(place.pool)
        assert again is None
        assert first is not None
        assert (first.id, first.base_job_template, first.concurrency_limit) == (place.pool_id, TEMPLATE, None)

    @pytest.mark.parametrize(("template", "reason"), REFUSED_TEMPLATES)
    async def test_template_that_does_not_hold_together_is_refused(
        self, place: Place, template: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(QueueError) as at_first:
            await _make(place, template)
        with pytest.raises(QueueError) as later:
            await place.server.update_pool(place.pool, base_job_template=template)
        assert reason in str(at_first.value)
        assert reason in str(later.value)

    async def test_template_names_a_secret_in_a_form_that_is_no_placeholder(self, place: Place) -> None:
        def naming(secret: str) -> dict[str, Any]:
            return {"job_configuration": {"args": {"env": [secret]}}, "variables": {"type": "object"}}

        with pytest.raises(QueueError, match=r"undeclared variable\(s\): prefect\.blocks\.secret\.tok"):
            await place.server.update_pool(place.pool, base_job_template=naming("{{ prefect.blocks.secret.tok }}"))
        kept = as_stored(naming("{{ prefect.blocks.secret.tok }}"))
        await place.server.update_pool(place.pool, base_job_template=kept)
        pool = await place.server.read_pool(place.pool)
        assert pool is not None
        assert pool.base_job_template == kept
        assert from_stored(kept) == naming("{{ prefect.blocks.secret.tok }}")

    @pytest.mark.parametrize(("variables", "reason"), REFUSED_VARIABLES)
    async def test_schema_of_variables_is_checked_when_a_pool_is_made_but_not_when_it_is_changed(
        self, place: Place, variables: dict[str, Any], reason: str
    ) -> None:
        template = {"job_configuration": {"a": 1}, "variables": variables}
        with pytest.raises(QueueError) as refusal:
            await _make(place, template)
        assert reason in str(refusal.value)
        await place.server.update_pool(place.pool, base_job_template=template)

    async def test_change_of_pool_that_is_gone_is_refused(self, place: Place) -> None:
        with pytest.raises(QueueError, match=f'Work pool "{place.pool}-gone" not found'):
            await place.server.update_pool(f"{place.pool}-gone", is_paused=True)

    async def test_pool_is_changed_field_by_field(self, place: Place) -> None:
        await place.server.update_pool(place.pool, concurrency_limit=2, description="new")
        await place.server.update_pool(place.pool, is_paused=True)
        pool = await place.server.read_pool(place.pool)
        assert pool is not None
        assert (pool.concurrency_limit, pool.description, pool.is_paused, pool.status) == (2, "new", True, "PAUSED")
        assert pool.base_job_template == TEMPLATE

    async def test_deleted_pool_takes_its_work_queues_and_leaves_its_items_and_deployments(self, place: Place) -> None:
        item = await place.add()
        assert await place.server.delete_pool(place.pool) is True
        assert await place.server.delete_pool(place.pool) is False
        assert await place.server.read_pool(place.pool) is None
        assert await place.server.list_queues(place.pool) == []
        assert await place.server.list_items(pool=place.pool) == []
        left = await place.read(item)
        assert (left.state_type, left.work_pool_name, left.work_queue_id) == (StateType.SCHEDULED, None, None)
        deployment = await place.server.read_deployment(place.deployment_id)
        assert deployment is not None
        assert deployment.work_pool_name is None
        with pytest.raises(SpecError, match="is not associated with a work pool"):
            await place.server.create_item(place.deployment_id, draft())

    async def test_pool_made_anew_has_none_of_the_old_one_s_items_and_takes_its_deployment(self, place: Place) -> None:
        await place.add("old")
        await place.server.delete_pool(place.pool)
        await place.server.create_pool(place.pool, base_job_template=TEMPLATE, description=None, concurrency_limit=None)
        assert await place.deploy() == place.deployment_id
        await place.add("new")
        assert await place.poll() == ["new"]

    # --- work queues ---

    async def test_work_queues_have_unique_dense_priorities_that_move_down(self, place: Place) -> None:
        name = f"{place.pool}-2"
        await place.server.create_pool(name, base_job_template={}, description=None, concurrency_limit=None)
        seen = []
        for queue, priority in (("critical", 1), ("high", 2), ("low", 4), ("urgent", 2), ("last", 9)):
            await place.server.create_queue(name, queue, priority)
            seen.append(await _priorities(place, name))
        assert seen[:3] == [
            {"critical": 1, "default": 2},
            {"critical": 1, "high": 2, "default": 3},
            {"critical": 1, "high": 2, "default": 3, "low": 4},
        ]
        assert seen[3] == {"critical": 1, "urgent": 2, "high": 3, "default": 4, "low": 5}
        assert seen[4] == {**seen[3], "last": 9}

    async def test_work_queue_that_is_there_stays_as_it_is(self, place: Place) -> None:
        before = await place.server.list_queues(place.pool)
        await place.server.create_queue(place.pool, "low", 1)
        assert await place.server.list_queues(place.pool) == before

    async def test_work_queue_in_no_pool_is_refused(self, place: Place) -> None:
        with pytest.raises(QueueError, match=f"There is no queue '{place.pool}-gone'"):
            await place.server.create_queue(f"{place.pool}-gone", "high", 2)

    # --- deployments ---

    async def test_deployment_is_read_back_as_it_was_made(self, place: Place) -> None:
        made = await place.deploy(f"{place.pool}-job", version="v3", parameters={"lr": 0.5})
        deployment = await place.server.read_deployment(made)
        assert deployment is not None
        assert await place.server.find_deployment(f"{place.pool}-job") == deployment
        assert (deployment.name, deployment.version, deployment.parameters) == (f"{place.pool}-job", "v3", {"lr": 0.5})
        assert (deployment.parameter_openapi_schema, deployment.tags) == (INPUTS, ("from-deployment",))
        assert (deployment.work_pool_name, deployment.work_queue_name) == (place.pool, "default")
        assert deployment.labels is not None
        assert deployment.labels.items() >= {"origin": "deployment", "owner": "us"}.items()
        listed = await place.server.list_deployments(place.pool)
        assert {each.id for each in listed} == {made, place.deployment_id}

    @pytest.mark.parametrize("labels", [{"origin": "deployment"}, {"origin": "elsewhere"}])
    async def test_deployment_made_twice_is_one_and_the_last_word_holds(
        self, place: Place, labels: dict[str, Any]
    ) -> None:
        assert await place.deploy(parameters={"lr": 0.9}, version="v2", tags=[], labels=labels) == place.deployment_id
        deployment = await place.server.read_deployment(place.deployment_id)
        assert deployment is not None
        assert (deployment.parameters, deployment.version, deployment.tags) == ({"lr": 0.9}, "v2", ())
        assert deployment.labels is not None
        assert deployment.labels["origin"] == labels["origin"]

    async def test_deployments_of_one_name_in_two_flows_are_two(self, place: Place) -> None:
        other = await place.deploy(flow="launch-agent")
        assert other != place.deployment_id
        found = await place.server.find_deployment(place.pool, flow="launch-agent")
        assert found is not None
        assert found.id == other

    async def test_items_of_a_deployment_wait_in_the_work_queue_that_it_names_behind_the_more_urgent(
        self, place: Place
    ) -> None:
        await place.server.create_queue(place.pool, "sweeps", len(await place.server.list_queues(place.pool)) + 1)
        assert [queue.name for queue in await place.server.list_queues(place.pool)][-1] == "sweeps"
        made = await place.deploy("sweep", flow="launch-sweep", work_queue="sweeps")
        found = await place.server.find_deployment("sweep", flow="launch-sweep")
        assert found is not None
        assert (found.id, found.work_queue_name) == (made, "sweeps")
        sweep = await place.server.create_item(made, draft("sweep").model_copy(update={"work_queue_name": "sweeps"}))
        job = await place.add()
        assert sweep is not None
        now = datetime.now(timezone.utc) + timedelta(seconds=1)
        poll = partial(place.server.poll, place.pool, limit=10, before=now)
        assert [item.id for item in await poll()] == [job.id, sweep.id]
        assert [item.id for item in await poll(queues=["sweeps"])] == [sweep.id]
        assert await poll(queues=["no such"]) == []

    async def test_items_of_other_flows_are_no_items(self, place: Place) -> None:
        other = await place.deploy(flow="launch-agent")
        assert await place.server.create_item(other, draft("shift")) is not None
        assert await place.server.list_items(pool=place.pool) == []
        assert await place.server.count_items(pool=place.pool, state_types=[StateType.SCHEDULED]) == 0

    async def test_deployment_with_bad_schema_or_parameters_is_refused(self, place: Place) -> None:
        name = f"{place.pool}-bad"
        with pytest.raises(SpecError, match="The provided schema is not a valid json schema"):
            await place.deploy(name, parameter_schema={"type": "nonsense"}, parameters={})
        with pytest.raises(SpecError, match=r"field 'lr'\. Failure reason: 'fast' is not of type"):
            await place.deploy(name, parameters={"lr": "fast"})
        assert await place.server.find_deployment(name) is None
        await place.deploy(name, parameters={})  # what the schema requires may come with the item
        await place.deploy(f"{name}-2", parameters={"lr": "fast"}, enforce=False)

    async def test_deployment_on_queue_that_is_gone_is_refused(self, place: Place) -> None:
        with pytest.raises(QueueError, match=f"{place.pool}-gone"):
            await place.deploy(f"{place.pool}-job", pool=f"{place.pool}-gone")

    async def test_deployment_moved_to_queue_that_is_gone_is_refused(self, place: Place) -> None:
        with pytest.raises(QueueError, match=f"{place.pool}-gone"):
            await place.deploy(pool=f"{place.pool}-gone")

    async def test_deleted_deployment_takes_the_items_that_never_ran(self, place: Place) -> None:
        waiting, running, again = await place.add("waiting"), await place.add("running"), await place.add("again")
        await place.move(running, ItemState.CLAIMED, ItemState.RUNNING)
        await place.move(again, ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED, ItemState.QUEUED)
        await place.server.delete_deployment(place.deployment_id)
        await place.server.delete_deployment(place.deployment_id)
        assert await place.server.read_deployment(place.deployment_id) is None
        assert await place.server.find_deployment(place.pool) is None
        assert await place.server.read_item(waiting.id) is None
        assert (await place.read(running)).state_type is StateType.RUNNING
        assert (await place.read(again)).state_type is StateType.SCHEDULED
        assert (await place.move(running, ItemState.FAILED, ItemState.QUEUED)).accepted

    async def test_what_is_not_there_is_none(self, place: Place) -> None:
        assert await place.server.read_pool(f"{place.pool}-gone") is None
        assert await place.server.read_deployment(uuid4()) is None
        assert await place.server.find_deployment(f"{place.pool}-gone") is None
        assert await place.server.list_deployments(f"{place.pool}-gone") == []
        assert await place.server.read_item(uuid4()) is None

    # --- agents ---

    async def test_beating_agent_is_online_and_makes_its_pool_ready(self, place: Place) -> None:
        before = await place.server.read_pool(place.pool)
        await place.server.beat_worker(place.pool, "box-1", 15)
        await place.server.beat_worker(place.pool, "box-1", 30)
        (worker,) = await place.server.list_workers(place.pool)
        after = await place.server.read_pool(place.pool)
        assert before is not None
        assert after is not None
        assert (before.status, after.status) == ("NOT_READY", "READY")
        assert (worker.name, worker.status, worker.heartbeat_interval_seconds) == ("box-1", "ONLINE", 30)
        assert worker.last_heartbeat_time is not None

    async def test_agent_that_leaves_is_off_the_list_and_may_leave_twice(self, place: Place) -> None:
        await place.server.beat_worker(place.pool, "box-1", 15)
        await place.server.delete_worker(place.pool, "box-1")
        await place.server.delete_worker(place.pool, "box-1")
        assert await place.server.list_workers(place.pool) == []

    async def test_beat_for_pool_that_is_gone_does_nothing(self, place: Place) -> None:
        await place.server.beat_worker(f"{place.pool}-gone", "box-1", 15)
        assert await place.server.list_workers(f"{place.pool}-gone") == []


async def _make(place: Place, template: dict[str, Any]) -> None:
    name = f"{place.pool}-2"
    await place.server.create_pool(name, base_job_template=template, description=None, concurrency_limit=None)


async def _priorities(place: Place, pool: str) -> dict[str, int | None]:
    return {queue.name: queue.priority for queue in await place.server.list_queues(pool)}
