"""What the wrapper makes of refusals: which of them end its job, and what becomes of output that nobody takes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from prefect_launch.runners.remote.prefect import logs, wrapper, wrapper_api
from prefect_launch.server.values import LogRecord
from prefect_launch.testing import InMemoryServer
from tests.support.prefect_worker import PrefectApi
from tests.unit.runners.prefect.test_wrapper import start, watch
from tests.unit.runners.prefect.world import PrefectWorld

OWN = (404, b'{"detail": "Flow run not found"}')
OTHERS = [
    (401, b'{"exception_message": "Unauthorized"}'),
    (403, b"<html>Forbidden</html>"),
    (404, b"<html>no such page</html>"),
    (404, b'{"detail": "Not Found"}'),
    (404, b"null"),
    (405, b"{}"),
    (200, b"<html>Sign in</html>"),
    (500, b""),
]

Refuses = Callable[[str, str, bytes], "tuple[int, bytes] | None"]


@pytest.fixture
def server() -> Iterator[PrefectApi]:
    api = PrefectApi(InMemoryServer())
    yield api
    api.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the wrapper's requests, which take no time."""
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 1000.0 + sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(wrapper_api, "time", clock)
    return pauses


def api_of(server: PrefectApi, run_id: str = "") -> wrapper_api.Api:
    return wrapper_api.Api({"PREFECT_API_URL": server.url, "PREFECT__FLOW_RUN_ID": run_id or str(uuid4())})


def refusing(server: PrefectApi, *answers: tuple[int, bytes]) -> None:
    """Let the server give these answers, one after the other, and then do what is asked."""
    left = iter(answers)
    server.refuses = lambda method, path, body: next(left, None)


# --- which refusals end a job ---


async def test_refusal_that_is_not_the_servers_own_word_is_waited_out(world: PrefectWorld, slept: list[float]) -> None:
    world.fill()
    handle = await start(world.runner(), world.plan("exit 0"))
    api = api_of(world.api, handle.partition("@")[0])
    api.limit_patience(None)
    # With the server's own word between them: it has been said for a moment only, each time.
    refusing(world.api, *itertools.chain.from_iterable((*[one] * 20, OWN) for one in OTHERS))
    state = await asyncio.to_thread(api.state)
    assert state["type"] == "SCHEDULED"
    assert sum(slept) > 20 * wrapper_api.GONE_SECONDS


async def test_input_is_missing_when_the_server_itself_says_so_alone(world: PrefectWorld, slept: list[float]) -> None:
    world.fill()
    handle = await start(world.runner(), world.plan("exit 0"))
    api = api_of(world.api, handle.partition("@")[0])
    refusing(world.api, *OTHERS)
    assert await asyncio.to_thread(api.read_input, "launch-plan")
    assert await asyncio.to_thread(api.read_input, "no-such-input") is None


def test_flow_run_is_gone_once_the_server_has_said_so_for_a_minute(server: PrefectApi, slept: list[float]) -> None:
    with pytest.raises(wrapper_api.GoneError, match="Flow run not found"):
        api_of(server).state()
    assert 60 <= sum(slept) < 80


def test_server_that_refuses_all_is_given_up_once_the_job_has_ended_for_long(
    server: PrefectApi, slept: list[float]
) -> None:
    server.refuses = lambda method, path, body: (403, b"")
    api = api_of(server)
    api.limit_patience(300.0)
    with pytest.raises(wrapper_api.GoneError, match="403"):
        api.state()
    assert 300 <= sum(slept) < 320


# --- output that is refused ---


def sent(server: PrefectApi, run: UUID, *pieces: bytes) -> tuple[wrapper.Log, bytes, bytes]:
    """Send output as a wrapper does; return the log, and what can be read back of the output and of the errors."""
    log = wrapper.Log(api_of(server, str(run)))
    for piece in pieces:
        log.add(False, piece)
    log.finish()
    output, errors = (read_back(server.server._store.logs.get(run, []), stream) for stream in wrapper.STREAMS)
    return log, output, errors


def read_back(records: list[LogRecord], stream: str) -> bytes:
    mine = [one for one in records if one.name.startswith(stream)]
    assert mine == sorted(mine, key=lambda one: one.timestamp)
    return b"".join(logs._content(one, stream) for one in mine)


#: Six bytes each in JSON.
ODD = b"\x1b" * 300_000 + "漢".encode() * 100_000 + b"\xff" * 100_000


def test_requests_have_at_most_256_kib_however_their_text_is_encoded(server: PrefectApi) -> None:
    sizes: list[int] = []
    server.refuses = lambda method, path, body: sizes.append(len(body))
    log, output, errors = sent(server, uuid4(), ODD, b"end\n")
    assert (output, errors, log.lost_bytes) == (ODD + b"end\n", b"", 0)
    assert max(sizes) <= 256 * 1024


@pytest.mark.parametrize("limit", [5_000, 30_000])
def test_log_that_is_too_large_for_a_proxy_arrives_in_smaller_parts(server: PrefectApi, limit: int) -> None:
    output = ODD[::10] + b"".join(b"line %d\n" % number for number in range(5_000)) + b"no end"
    server.refuses = lambda method, path, body: (413, b"<html>") if len(body) > limit else None
    log, found, errors = sent(server, uuid4(), output)
    assert (found, errors, log.lost_bytes) == (output, b"", 0)


def test_output_that_the_server_refuses_is_counted_and_told_in_the_log_at_its_place(server: PrefectApi) -> None:
    run = uuid4()
    before, after = b"before\n" * 5_000, b"after\n" * 5_000
    server.refuses = lambda method, path, body: (422, b"it has a bad word") if b"poison" in body else None
    log, output, errors = sent(server, run, before, b"poison\n", after)
    assert 7 <= log.lost_bytes <= 2_000
    assert len(output) == len(before + b"poison\n" + after) - log.lost_bytes
    assert output.startswith(b"before\n")
    assert output.endswith(b"after\n")
    [told] = errors.decode().splitlines()
    assert told.startswith(f"[prefect-launch: {log.lost_bytes:,} bytes of the output are not here: ")
    assert "it has a bad word" in told
    messages = [record.message[:6] for record in server.server._store.logs[run]]
    assert 0 < messages.index("[prefe") < len(messages) - 1


def test_log_that_is_refused_whole_keeps_no_job_from_its_end(server: PrefectApi) -> None:
    server.refuses = lambda method, path, body: (413, b"") if path == "/logs/" else None
    log, output, errors = sent(server, uuid4(), ODD[:50_000])
    assert (output, errors, log.lost_bytes) == (b"", b"", 50_000)


def test_contents_that_alone_are_forbidden_are_given_up_after_a_while(world: PrefectWorld, slept: list[float]) -> None:
    server, run = world.api, uuid4()
    server.refuses = lambda method, path, body: (
        (200, b"{}") if method == "GET" else (403, b"<html>blocked</html>") if b"bad" in body else None
    )
    log, output, _ = sent(server, run, b"bad\n")
    assert (output, log.lost_bytes) == (b"", 4)
    assert sum(slept) >= 60


def test_job_does_not_wait_while_nobody_takes_its_output_and_what_is_discarded_is_told(
    server: PrefectApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapper, "_MOST_PENDING_BYTES", 1_000)
    monkeypatch.setattr(wrapper, "_STALL_SECONDS", 0.0)
    run = uuid4()
    server.is_away = True
    log = wrapper.Log(api_of(server, str(run)))
    log.add(False, b"x" * 1_001)
    for _ in range(50):
        assert not log.is_full
        log.add(False, b"lost line\n")
    server.is_away = False
    log.finish()
    records = server.server._store.logs[run]
    assert read_back(records, wrapper.STREAMS[0]) == b"x" * 1_001
    assert b"[prefect-launch: 500 bytes of the output are not here" in read_back(records, wrapper.STREAMS[1])
    assert log.lost_bytes == 500


def test_job_waits_while_the_server_takes_its_output_slowly(
    server: PrefectApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapper, "_MOST_PENDING_BYTES", 1_000)
    server.is_away = True
    log = wrapper.Log(api_of(server))
    log.add(False, b"x" * 1_001)
    assert log.is_full
    server.is_away = False
    log.finish()
    assert not log.is_full


async def test_item_says_how_much_of_its_output_was_refused_and_ends_as_its_job_did(world: PrefectWorld) -> None:
    world.api.refuses = lambda method, path, body: (
        (413, b"too large") if path == "/logs/" and b"poison" in body else None
    )
    runner, plan = world.runner(), world.plan("echo one; echo poison; echo two; exit 3")
    handle = await start(runner, plan)
    end = await watch(runner, handle, plan)
    assert end.exit_code == 3
    [warning] = end.warnings
    assert "15 bytes of its output are lost: the Prefect server answers 413 too large" in warning
    assert "15 bytes of the output are not here" in plan.log_path.read_text()


async def test_outputs_that_are_too_large_for_a_proxy_are_named_as_left_out(world: PrefectWorld) -> None:
    world.api.refuses = lambda method, path, body: (
        (413, b"too large")
        if path.endswith("/input") and json.loads(body)["key"].startswith("launch-outputs")
        else None
    )
    runner, plan = world.runner(), world.plan('echo {} > "$LAUNCH_OUTPUT_DIR/outputs.json"')
    handle = await start(runner, plan)
    end = await watch(runner, handle, plan)
    assert end.succeeded
    assert end.left_out.named == ("all files: the Prefect server answers 413 too large",)
