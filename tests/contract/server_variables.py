"""The contract's rules for variables."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import anyio
import pytest

from prefect_launch.errors import SpecError
from tests.contract.server_place import Place


class VariableContract:
    """Small values by name."""

    async def test_variable_is_kept_changed_and_deleted(self, place: Place) -> None:
        server, name = place.server, f"v_{uuid4().hex[:8]}"
        assert await server.read_variable(name) is None
        await server.write_variable(name, {"state": "polling", "slots": 2, "running": []})
        assert await server.read_variable(name) == {"state": "polling", "slots": 2, "running": []}
        await server.write_variable(name, {"state": "running"})
        assert await server.read_variable(name) == {"state": "running"}
        assert await server.delete_variable(name)
        assert not await server.delete_variable(name)
        assert await server.read_variable(name) is None

    async def test_variable_is_made_by_the_first_who_asks(self, place: Place) -> None:
        server, name = place.server, f"v_{uuid4().hex[:8]}"
        assert await server.create_variable(name, 1, tags=["t"])
        assert not await server.create_variable(name, 2)
        assert await server.read_variable(name) == 1

    async def test_variables_are_listed_by_their_tag(self, place: Place) -> None:
        server, tag = place.server, f"t-{uuid4().hex[:8]}"
        names = [f"v_{uuid4().hex[:8]}" for _ in range(3)]
        for name in names:
            await server.write_variable(name, name.upper(), tags=[tag, "more"])
        await server.write_variable(f"v_{uuid4().hex[:8]}", 1)
        await server.write_variable(names[0], 0, tags=[tag])
        assert await server.list_variables(tag) == {name: name.upper() for name in names} | {names[0]: 0}
        assert await server.list_variables(tag, "more") == {name: name.upper() for name in names[1:]}

    async def test_of_many_makers_of_one_variable_exactly_one_wins(self, place: Place) -> None:
        server, name, won = place.server, f"v_{uuid4().hex[:8]}", []

        async def make(number: int) -> None:
            if await server.create_variable(name, number):
                won.append(number)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(make, number)
        assert won == [await server.read_variable(name)]

    async def test_more_variables_than_one_page_are_all_listed(self, place: Place) -> None:
        server, tag, stem = place.server, f"t-{uuid4().hex[:8]}", f"v_{uuid4().hex[:8]}"
        for number in range(205):
            await server.create_variable(f"{stem}_{number}", number, tags=[tag])
        assert sorted((await server.list_variables(tag)).values()) == list(range(205))

    async def test_change_of_a_variable_is_told_to_those_who_watch_it(self, place: Place) -> None:
        server, name, other = place.server, f"v_{uuid4().hex[:8]}", f"v_{uuid4().hex[:8]}"
        watch = server.watch_settings(name)
        assert await anext(watch) == ""
        with anyio.fail_after(60):
            await server.write_variable(other, 1)
            await server.write_variable(name, 1)
            assert await anext(watch) == name
            await server.delete_variable(name)
            assert await anext(watch) == name

    @pytest.mark.parametrize("change", [{"is_paused": True}, {"concurrency_limit": 3}])
    async def test_change_of_a_queue_is_told_to_those_who_watch_it(self, place: Place, change: dict[str, Any]) -> None:
        server, name = place.server, f"v_{uuid4().hex[:8]}"
        watch = server.watch_settings(name, place.pool)
        assert await anext(watch) == ""
        with anyio.fail_after(60):
            await server.update_pool(place.pool, **change)
            assert await anext(watch) == place.pool
            await server.update_pool(place.pool, is_paused=False, concurrency_limit=None)
            assert await anext(watch) == place.pool
            await server.write_variable(name, 1)
            while await anext(watch) != name:  # A pause that ends and a limit that goes are two events.
                pass

    async def test_variable_that_is_too_long_is_refused(self, place: Place) -> None:
        with pytest.raises(SpecError, match="refuses this"):
            await place.server.write_variable("v", "x" * 5_001)
