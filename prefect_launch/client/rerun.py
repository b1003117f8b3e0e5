"""Rerun of an item: a new item of the same job version, image digest and template variables, with changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect_launch.client.launch_add import add_item
from prefect_launch.core.names import name_and_id
from prefect_launch.errors import SpecError
from prefect_launch.inputs.config_files import deep_merge
from prefect_launch.spec.item_parameters import JOB_LABEL, RERUN_LABEL, is_scheduler, spec_of
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item


def spec_again(item: Item) -> LaunchSpec:
    """Return the spec of a rerun: that of the item, with its version of the job, and no run id or sweep.

    Raises:
        SpecError: when the item is a sweep, or its parameters are no valid spec.
    """
    if is_scheduler(item):
        raise SpecError(
            f"Item {name_and_id(item)} is a sweep, which is not rerun as an item: 'prefect-launch sweep"
            " create' queues another one of its file."
        )
    spec = spec_of(item)
    changes: dict[str, Any] = {
        "run_id": None,
        "after": (),
        "sweep_id": None,  # The sweep did not choose it, and may have ended.
        # The digest is asked for now: a lookup would give what the tag means by now.
        "docker": spec.docker.model_copy(update={"resolved": False}),
    }
    job = item.labels.get(JOB_LABEL)
    if job:
        changes |= {"job": job, "uri": None}
    return spec.model_copy(update=changes)


async def rerun_item(
    api: Api,
    session: Session,
    item: Item,
    *,
    inputs: Mapping[str, Any] | None = None,
    args: Sequence[str] | None = None,
    template_variables: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    priority: int | str | None = None,
    name: str | None = None,
) -> QueuedRun:
    """Queue a rerun of an item; see `QueuedRun.rerun`."""
    queue = queue_name or item.work_pool_name
    if not queue:
        raise SpecError(
            f"Item {name_and_id(item)} is on no queue: it ran without one, or its queue was deleted. Name"
            " a queue to run it on."
        )
    data = spec_again(item).dump()
    overrides = data.get("overrides", {})
    data["overrides"] = {
        **overrides,
        "run_config": deep_merge(overrides.get("run_config", {}), inputs or {}),
        "args": list(overrides.get("args", ()) if args is None else args),
    }
    data["template_variables"] = {**data.get("template_variables", {}), **(template_variables or {})}
    data["priority"] = Priority.of_work_queue(item.work_queue_name) if priority is None else priority
    spec = parse_spec({**data, **({} if name is None else {"name": name})}).check_source()
    return await add_item(api, session, spec, queue, labels={RERUN_LABEL: str(item.id)})
