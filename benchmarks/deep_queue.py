"""A deep queue: copies of waiting items, written straight into the database of a server.

The API makes 26 items a second, so that 100,000 would take an hour. A copy is a row of `flow_run` and a row of its
state, under ids and an idempotency key of its own, due a millisecond after the copy before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

_ROWS: Final = 5_000
#: All copies are due: the last of 100,000 a second ago.
_SINCE: Final = timedelta(seconds=101)
_APART: Final = timedelta(milliseconds=1)


def fill(database_url: str, templates: Sequence[UUID], numbers: range) -> None:
    """Copy waiting items in turn, one copy for each number.

    Args:
        database_url: of the server, as Prefect wants it.
        templates: ids of the items to copy.
        numbers: what tells the copies apart.
    """
    asyncio.run(_fill(database_url, templates, numbers))


async def _fill(database_url: str, templates: Sequence[UUID], numbers: range) -> None:
    from prefect.server.database.orm_models import FlowRun, FlowRunState

    runs: Any = FlowRun.__table__
    states: Any = FlowRunState.__table__
    due = dict.fromkeys(("expected_start_time", "next_scheduled_start_time"), "due")
    copied = sa.bindparam("template", type_=runs.c.id.type)
    statements = (
        _copy(runs, runs.c.id == copied, {"id": "run", "idempotency_key": "key", **due}, state_id=sa.null()),
        _copy(
            states,
            states.c.id == sa.select(runs.c.state_id).where(runs.c.id == copied).scalar_subquery(),
            {"id": "state", "flow_run_id": "run", "timestamp": "due"},
        ),
        sa.update(runs)
        .where(runs.c.id == sa.bindparam("run", type_=runs.c.id.type))
        .values(state_id=sa.bindparam("state", type_=runs.c.id.type), updated=runs.c.updated),
    )
    engine = create_async_engine(database_url)
    begun = datetime.now(timezone.utc) - _SINCE
    for start in range(0, len(numbers), _ROWS):
        rows = [
            {
                **{"template": templates[number % len(templates)], "run": uuid4(), "state": uuid4()},
                **{"key": f"copy-{number}", "due": begun + number * _APART},
            }
            for number in numbers[start : start + _ROWS]
        ]
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(statement, rows)
    if engine.dialect.name == "postgresql":  # Its server would do so by itself within a minute.
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(sa.text("ANALYZE flow_run, flow_run_state"))
    await engine.dispose()


def _copy(table: Any, of: Any, replaced: dict[str, str], **more: Any) -> Any:
    """Return the statement that copies a row of a table, but for some columns, by the names of their values."""
    given = {name: sa.bindparam(value, type_=table.c[name].type) for name, value in replaced.items()} | more
    columns = [given.get(column.name, column) for column in table.c]
    return sa.insert(table).from_select(list(table.c), sa.select(*columns).where(of), include_defaults=False)
