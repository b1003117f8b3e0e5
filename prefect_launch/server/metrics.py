"""Metrics of an item on the server: one artifact that is written in place, and is read by the item's id.

The values are an artifact of the type that both UIs hide among a run's results; the chart is one that they show.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.core.metric_chart import metrics_markdown
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.usage import usage_markdown
from prefect_launch.server.items import RESULT

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

#: Label of an item: the metric that it is run for, which is kept however many others it reports.
METRIC_LABEL: Final = "prefect-launch.metric"


#: Begins the keys of what a run reports, and of what was measured of it.
METRICS: Final = "metrics"
USAGE: Final = "usage"


def metrics_key(item_id: UUID, kind: str = METRICS) -> str:
    """Return the key of the artifact that holds an item's metrics."""
    return f"{kind}-{item_id}"


async def read_metrics(server: Server, item_ids: Collection[UUID], kind: str = METRICS) -> dict[UUID, Metrics]:
    """Return the metrics of those of these items that have any, in one request for each hundred.

    An artifact that holds something else, which a user may have put under the key, counts as missing.

    Args:
        server: the Prefect server.
        item_ids: of the items.
        kind: which metrics: those that a run reports, or its usage.
    """
    found = await server.read_artifacts([metrics_key(item_id, kind) for item_id in item_ids])
    read: dict[UUID, Metrics] = {}
    for item_id in item_ids:
        try:
            read[item_id] = Metrics.load(found[metrics_key(item_id, kind)])
        except (KeyError, ValueError):
            continue
    return read


async def write_metrics(server: Server, item_id: UUID, metrics: Metrics, artifact_id: UUID | None = None) -> UUID:
    """Write an item's metrics; returns the artifact's id, which saves the next call a lookup."""
    return await server.put_artifact(
        item_id, key=metrics_key(item_id), kind=RESULT, data=metrics.dump(), artifact_id=artifact_id
    )


async def draw_metrics(
    server: Server, item_id: UUID, metrics: Metrics, run_id: str, artifact_id: UUID | None = None
) -> UUID:
    """Draw the chart of an item's metrics on its page; returns the artifact's id, as `write_metrics`."""
    return await server.put_artifact(
        item_id,
        key=f"metrics-chart-{item_id}",
        kind="markdown",
        data=metrics_markdown(metrics, run_id),
        description=f"Charts of what run `{run_id}` reported.",
        artifact_id=artifact_id,
    )


async def write_usage(server: Server, item_id: UUID, usage: Metrics, run_id: str) -> None:
    """Write what a run has used, and its chart on the item's page."""
    key = metrics_key(item_id, USAGE)
    await server.put_artifact(item_id, key=key, kind=RESULT, data=usage.dump())
    chart = usage_markdown(usage, run_id)
    told = f"What run `{run_id}` used of its machine."
    await server.put_artifact(item_id, key=f"usage-chart-{item_id}", kind="markdown", data=chart, description=told)
