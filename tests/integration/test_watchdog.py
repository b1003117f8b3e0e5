"""The watchdog of docs/operations.md on a real server: it ends what is not heard of, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from prefect_launch.core.states import ItemState
from prefect_launch.server.values import Item, State
from tests.support.live import Site
from tests.support.prefect_server import warm_prefect

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server
    from tests.support.prefect_server import PrefectServerProcess

#: Long beside what a busy machine may do to a heartbeat on its way to the automation.
AFTER = "timedelta(seconds=30)"
DEADLINE_SECONDS = 180.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


def make_watchdog(api_url: str) -> None:
    """Run the block of code of the document, with a shorter time."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "prefect-launch watchdog" in block]
    code = code.replace("timedelta(minutes=10)", AFTER)
    assert AFTER in code
    environment = {**os.environ, "PREFECT_API_URL": api_url}
    done = warm_prefect().run(["-c", code], cwd=Path.cwd(), environment=environment, seconds=120)
    assert done.returncode == 0, done.stderr


async def in_work(server: Server, item_id: str) -> Item:
    for state in (ItemState.CLAIMED, ItemState.RUNNING):
        assert (await server.propose(UUID(item_id), State.of(state))).accepted
    item = await server.read_item(UUID(item_id))
    assert item is not None
    return item


async def state_name(server: Server, item: Item) -> str | None:
    found = await server.read_item(item.id)
    assert found is not None
    return found.state_name


@pytest.mark.postgres
def test_item_that_is_not_heard_of_is_crashed_and_no_other(
    own_postgres_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    # On SQLite the server's automations lose an event when the database is locked four times in a row.
    site = Site(own_postgres_prefect_server.api_url, tmp_path, unique)
    site.job("true")
    runs = site.add({}, {}, {}, {})

    make_watchdog(own_postgres_prefect_server.api_url)

    async def watch() -> None:
        async with site.api.connect() as server:
            silent, alive, ended, back = [await in_work(server, run.id) for run in runs]
            # The server takes an automation up a moment after it said that it made it: not one beat alone.
            for _ in range(3):
                await server.beat_items([silent, alive, ended, back])
                await asyncio.sleep(1)
            await server.propose(ended.id, State.of(ItemState.COMPLETED))
            await server.propose(back.id, State.of(ItemState.AWAITING_RETRY))
            deadline = monotonic() + DEADLINE_SECONDS
            while await state_name(server, silent) == "Running" and monotonic() < deadline:
                await server.beat_items([alive])
                await asyncio.sleep(1)
            await asyncio.sleep(3)  # Whatever it does to the others it does at the same time.
            told = await server.read_item(silent.id)
            assert told is not None
            assert (told.state_name, "not heard of any more" in told.message) == ("Crashed", True)
            others = [await state_name(server, item) for item in (alive, ended, back)]
            assert others == ["Running", "Completed", "AwaitingRetry"]

    asyncio.run(watch())
