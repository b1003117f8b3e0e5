"""The deployment of a queue: what its items are made from."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from prefect_launch.jobs.schema import value_definitions, within_64_bits
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.base import Labels
from prefect_launch.server.protocol import Server
from prefect_launch.spec.launch_spec import LaunchSpec

#: Label of deployments and items: the queue that they belong to.
QUEUE_LABEL: Final = Labels.QUEUE


def deployment_name(queue: str) -> str:
    """Return the name of the deployment (of the flow `launch`) that a queue's items are made from."""
    return f"queue-{queue}"


def queue_tag(queue: str) -> str:
    """Return the tag of what belongs to a queue: its deployment, and the agents that serve it."""
    return f"queue:{queue}"


async def ensure_deployment(server: Server, name: str, config: QueueConfig) -> UUID:
    """Return the id of the deployment that a queue's items are made from; it is made when it is missing."""
    wanted = deployment_name(name)
    there = await server.find_deployment(wanted)
    if there is not None and there.work_pool_name == name:
        return there.id
    return await server.upsert_deployment(
        wanted,
        pool=name,
        parameters={},
        parameter_schema=_item_schema(),
        description=f"Any job on the queue **{name}** ({config.resource}). `launch_add` makes its items from it.",
        tags=["launch", queue_tag(name)],
        labels={QUEUE_LABEL: name},
        enforce=True,
    )


def _item_schema() -> dict[str, Any]:
    """Return the schema of an item's parameters, its numbers bounded by what the server can send.

    The server checks by it what comes straight to it, such as by `prefect deployment run`.
    """
    schema = within_64_bits(LaunchSpec.model_json_schema())
    for given_elsewhere in ("priority", "template_variables"):  # By the work queue, and as job variables.
        schema["properties"].pop(given_elsewhere)
    parts = {name: within_64_bits(part) for name, part in schema.pop("$defs").items()}
    return {**schema, "$defs": parts, "definitions": value_definitions()}
