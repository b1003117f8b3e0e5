"""How many requests one more item costs the server, and one more container the engine. docs/performance.md has both."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent import LaunchAgent
from prefect_launch.runners.docker.engine import LogStream
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing import InMemoryDocker, InMemoryEngine, Script
from tests.support.bench import QUEUE, RESOURCE, Bench

#: Calls that the agent makes now and then, for all its items.
_NOW_AND_THEN = {
    "poll",
    "beat_worker",
    "write_variable",
    "read_variable",
    "list_items",
    "count_items",
    "count_due",
    "read_pool",
}


class _CountedEngine(InMemoryEngine):
    """Counts the calls of an engine by their names; its containers end at their start, or once their log is read."""

    def __init__(self, docker: InMemoryDocker, *, ends_at_start: bool) -> None:
        super().__init__(docker)
        self.calls: Counter[str] = Counter()
        self._ends_at_start = ends_at_start
        self._loop = asyncio.get_running_loop()

    def __getattribute__(self, name: str) -> Any:
        if name in _ASKED:
            self.calls[name] += 1
        return super().__getattribute__(name)

    async def start(self, container_id: str) -> None:
        await super().start(container_id)
        if self._ends_at_start:
            self._finish(container_id)
            await self.docker.containers[container_id].ended.wait()

    def open_log(self, container_id: str, since: int, *, follow: bool) -> LogStream:
        self._loop.call_soon_threadsafe(self._finish, container_id)
        return super().open_log(container_id, since, follow=follow)

    def _finish(self, container_id: str) -> None:
        process = self.docker.containers[container_id].process
        assert process is not None
        process.finish()


_ASKED = {"image", "create", "container", "start", "ended", "remove", "changed_at", "put_archive", "open_log", "kill"}


async def _calls_of_server(bench: Bench, items: int) -> Counter[str]:
    calls: Counter[str] = Counter()

    async def count(method: str) -> None:
        calls[method] += 1

    await bench.add(items)
    bench.server.before_call = count
    await bench.agent(poll_seconds=30).loop(until_empty=True)
    return calls


def _more(one: Mapping[str, int], several: Mapping[str, int]) -> dict[str, int]:
    grown = {name: several[name] - one.get(name, 0) for name in several if name not in _NOW_AND_THEN}
    return {name: count for name, count in grown.items() if count}


async def test_silent_item_costs_the_server_four_writes_and_no_read(tmp_path: Path) -> None:
    one = await _calls_of_server(Bench(tmp_path / "one"), 1)
    four = await _calls_of_server(Bench(tmp_path / "four"), 4)
    # Pending, Running and its end are proposed.
    assert _more(one, four) == {"propose": 3 * 3, "record_infrastructure": 3}


async def test_busy_agent_polls_far_less_than_once_for_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.polling.candidates.SURE_SECONDS", 60.0)  # however slow the machine is
    calls = await _calls_of_server(Bench(tmp_path), 64)
    assert calls["poll"] <= 64 / 8


async def test_item_that_prints_costs_one_write_more_for_all_its_lines(tmp_path: Path) -> None:
    benches = {count: Bench(tmp_path / str(count)) for count in (1, 4)}
    for bench in benches.values():
        bench.plays(Script(log=(b"one\n", b"two\n")))
    calls = {count: await _calls_of_server(bench, count) for count, bench in benches.items()}
    more = _more(calls[1], calls[4])
    assert more.pop("write_logs") == 3
    assert more == {"propose": 3 * 3, "record_infrastructure": 3}


@pytest.mark.parametrize(
    ("ends_at_start", "wanted"),
    [
        (True, {"open_log": 1}),
        (False, {"open_log": 2}),  # It is followed, and what is left is read at the end.
    ],
)
async def test_container_costs_the_engine_few_calls(
    bench: Bench, tmp_path: Path, ends_at_start: bool, wanted: Mapping[str, int]
) -> None:
    docker = InMemoryDocker()
    docker.images["busybox:1"] = {}
    docker.script = lambda config: Script(seconds=60)
    engine = _CountedEngine(docker, ends_at_start=ends_at_start)
    runner = LocalContainerRunner(tmp_path, engine)
    await bench.add()
    agent = LaunchAgent(
        bench.api, {"name": "box", "queues": [QUEUE], "home": tmp_path, "poll_seconds": 30}, runners={RESOURCE: runner}
    )
    await agent.loop(until_empty=True)
    usual = {"image": 1, "create": 1, "changed_at": 2, "put_archive": 0, "start": 1, "ended": 1, "remove": 1}
    assert {name: count for name, count in engine.calls.items() if count} == {
        name: count for name, count in {**usual, **wanted}.items() if count
    }
