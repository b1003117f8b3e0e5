"""A list of items of which PostgreSQL ends the transaction in its midst: all of them are made, and each once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import asyncpg
import pytest

from prefect_launch import Api, launch_add_many

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

#: Ends the first transaction that makes such an item, as a deadlock or an operator does. A sequence knows no rollback.
_ENDS_ONCE = """
CREATE SEQUENCE ended;
CREATE FUNCTION end_once() RETURNS trigger AS $$
BEGIN
    IF NEW.name = 'run-20' AND nextval('ended') = 1 THEN
        RAISE EXCEPTION 'ended' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END
$$ LANGUAGE plpgsql;
CREATE TRIGGER end_once BEFORE INSERT ON flow_run FOR EACH ROW EXECUTE FUNCTION end_once();
"""
_UNDO = "DROP TRIGGER end_once ON flow_run; DROP FUNCTION end_once; DROP SEQUENCE ended"


@pytest.mark.parametrize("code", ["40P01", "57014"], ids=["deadlock", "cancelled statement"])
async def test_items_of_a_transaction_that_postgresql_has_ended_are_all_made(
    postgres_prefect_server: PrefectServerProcess, unique: str, code: str
) -> None:
    api = Api(url=postgres_prefect_server.api_url)
    api.create_run_queue(unique, "local-container")
    specs = [{"docker": {"docker_image": "busybox:1"}, "name": f"run-{number}"} for number in range(40)]
    database = await asyncpg.connect(str(postgres_prefect_server.database_url).replace("+asyncpg", ""))
    try:
        await database.execute(_ENDS_ONCE.format(code=code))
        runs = launch_add_many(specs, unique, api=api)
        assert await database.fetchval("SELECT last_value FROM ended") > 1
    finally:
        await database.execute(_UNDO)
        await database.close()

    items = api.items(queue=unique, limit=None)
    assert Counter(item.name for item in items) == Counter(spec["name"] for spec in specs)
    assert {item.id for item in items} == {run.id for run in runs}
