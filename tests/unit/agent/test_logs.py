"""A job's log on its way to the UI: whole, in few and bounded records, once."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from prefect_launch.agent.item import logs
from prefect_launch.agent.item.logs import RECORD_CHARS, SHARE_BYTES, TAIL_BYTES, LogShipper, by_level, split_records
from prefect_launch.errors import ServerUnavailableError
from prefect_launch.runners.log_streams import Marks
from prefect_launch.server.values import LogRecord
from prefect_launch.testing import InMemoryServer
from tests.support.bench import eventually


@pytest.fixture
def server() -> InMemoryServer:
    return InMemoryServer()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.log"


@pytest.fixture
def item_id() -> UUID:
    return uuid4()


async def records(server: InMemoryServer, item_id: UUID) -> list[LogRecord]:
    return await server.read_logs(item_id, limit=1_000_000)


async def text(server: InMemoryServer, item_id: UUID) -> str:
    return "\n".join(record.message for record in await records(server, item_id))


async def send_whole(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    await LogShipper(server, item_id, path).finish()


async def until_sent(server: InMemoryServer, item_id: UUID, wanted: str) -> None:
    await eventually(lambda: text(server, item_id), lambda seen: wanted in seen)


async def test_lines_are_joined_into_one_record(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    path.write_text("one\ntwo\nthree\n")
    await send_whole(server, item_id, path)
    assert [record.message for record in await records(server, item_id)] == ["one\ntwo\nthree"]


async def test_lines_are_shown_while_the_job_runs(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    shipper = LogShipper(server, item_id, path)
    shipper.follow()
    path.write_text("one\nhalf a li")
    await until_sent(server, item_id, "one")
    assert await text(server, item_id) == "one"
    with path.open("a") as file:
        file.write("ne\n")
    await until_sent(server, item_id, "half a line")
    await shipper.finish()
    assert await text(server, item_id) == "one\nhalf a line"


async def test_last_line_without_its_end_is_sent_when_the_job_has_ended(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    path.write_text("one\nlast")
    await send_whole(server, item_id, path)
    assert await text(server, item_id) == "one\nlast"


@pytest.mark.parametrize("broken", ["", "{", "[]", "3", '{"bytes": null}', '{"bytes": 1, "asked": 2, "since": 5}'])
async def test_log_whose_position_cannot_be_read_is_sent_from_its_start(
    server: InMemoryServer, item_id: UUID, path: Path, broken: str
) -> None:
    path.write_text("one\ntwo\n")
    (path.parent / "log-sent.json").write_text(broken)
    await send_whole(server, item_id, path)
    assert await text(server, item_id) == "one\ntwo"


async def test_job_without_a_log_sends_nothing(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    await send_whole(server, item_id, path)
    assert await records(server, item_id) == []


async def test_no_record_is_longer_than_what_prefect_takes_and_none_has_the_time_of_another(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    path.write_text("".join(f"{number:06d} {'x' * 90}\n" for number in range(10_000)))
    await send_whole(server, item_id, path)
    sent = await records(server, item_id)
    assert max(len(record.message) for record in sent) <= RECORD_CHARS
    assert len({record.timestamp for record in sent}) == len(sent)
    assert await text(server, item_id) + "\n" == path.read_text()


@pytest.mark.parametrize("offset", range(4))
async def test_character_of_four_bytes_is_whole_wherever_a_chunk_ends(
    server: InMemoryServer, item_id: UUID, path: Path, offset: int
) -> None:
    line = "a" * offset + "🙂" * 100_000
    path.write_text(line, encoding="utf-8")
    shipper = LogShipper(server, item_id, path)
    shipper.follow()
    await shipper.finish()
    assert "".join(record.message for record in await records(server, item_id)) == line


async def test_line_of_5_mb_is_bounded_to_the_share_and_its_end(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    path.write_bytes(b"x" * 5_000_000 + b"END\n")
    await send_whole(server, item_id, path)
    sent = await records(server, item_id)
    total = sum(len(record.message) for record in sent)
    assert SHARE_BYTES <= total <= SHARE_BYTES + TAIL_BYTES + 200
    assert max(len(record.message) for record in sent) <= RECORD_CHARS
    assert sent[-1].message.endswith("END")


async def test_200_000_lines_are_bounded_to_the_share_a_note_and_the_tail(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    path.write_text("".join(f"line {number:06d} of a chatty job\n" for number in range(200_000)))
    await send_whole(server, item_id, path)
    shown = await text(server, item_id)
    assert len(shown) <= SHARE_BYTES + TAIL_BYTES + 200
    assert shown.startswith("line 000000 ")
    assert shown.endswith("line 199999 of a chatty job")
    left_out = path.stat().st_size - SHARE_BYTES - TAIL_BYTES
    assert "bytes left out here; the whole log is kept with the run's outputs" in shown
    note = next(line for line in shown.splitlines() if "left out" in line)
    assert abs(int(note.split()[1].replace(",", "")) - left_out) < 100
    assert server.calls["write_logs"] < 15


async def test_nul_and_bytes_that_are_not_utf8_are_shown_as_such(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    path.write_bytes(b"a\0b\n\xff\xfe\nc\n")
    await send_whole(server, item_id, path)
    assert await text(server, item_id) == "a\ufffdb\n\ufffd\ufffd\nc"


async def test_agent_that_leaves_does_not_wait_for_a_server_that_is_away_and_the_next_one_sends_all_once(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    async def lose_answer_and_go_away(method: str) -> None:
        if method == "write_logs":
            server.after_call = None
            server.down()
            raise ServerUnavailableError("the answer was lost")

    server.after_call = lose_answer_and_go_away
    path.write_text("one\n")
    first = LogShipper(server, item_id, path)
    first.follow()
    await eventually(lambda: asyncio.sleep(0, server.calls["read_logs"]), lambda count: count > 0)
    await asyncio.wait_for(first.let_go(), 60)
    server.up()
    await send_whole(server, item_id, path)
    assert await text(server, item_id) == "one"


async def test_next_agent_goes_on_where_the_last_one_stopped(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    path.write_text("one\n")
    first = LogShipper(server, item_id, path)
    first.follow()
    await until_sent(server, item_id, "one")
    await first.let_go()
    with path.open("a") as file:
        file.write("two\n")
    second = LogShipper(server, item_id, path)
    second.follow()
    await until_sent(server, item_id, "two")
    await second.finish()
    assert await text(server, item_id) == "one\ntwo"


@pytest.mark.parametrize("arrived", [True, False])
async def test_agent_that_dies_in_the_middle_of_a_request_leaves_no_gap_and_no_repeat(
    server: InMemoryServer, item_id: UUID, path: Path, arrived: bool
) -> None:
    path.write_text("one\n")

    async def die(method: str) -> None:
        if method == "write_logs":
            await asyncio.Event().wait()

    if arrived:
        server.after_call = die
    else:
        server.before_call = die
    dying = asyncio.create_task(LogShipper(server, item_id, path).finish())
    await asyncio.sleep(0.3)
    server.after_call = server.before_call = None
    with path.open("a") as file:
        file.write("two\n")
    await send_whole(server, item_id, path)
    assert await text(server, item_id) == "one\ntwo"
    server.down()  # what the dead one still tries comes to nothing
    dying.cancel()


async def test_answer_that_was_lost_leads_to_no_repeat(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    async def lose_first_answer(method: str) -> None:
        if method == "write_logs" and server.calls[method] == 1:
            raise ServerUnavailableError("the answer was lost")

    server.after_call = lose_first_answer
    path.write_text("one\n")
    await send_whole(server, item_id, path)
    assert await text(server, item_id) == "one"


async def test_request_that_was_lost_is_sent_again_though_others_have_written_to_the_log_since(
    server: InMemoryServer, item_id: UUID, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SETTLE_SECONDS", (0.0,))

    async def lose_first_request(method: str) -> None:
        if method == "write_logs" and server.calls[method] == 1:
            server.before_call = None
            soon = datetime.now(timezone.utc) + timedelta(seconds=1)
            await server.write_logs(item_id, [LogRecord(name="somebody", message="else", timestamp=soon)])
            raise ServerUnavailableError("the request was lost")

    server.before_call = lose_first_request
    path.write_text("one\n")
    await send_whole(server, item_id, path)
    assert sorted(record.message for record in await records(server, item_id)) == ["else", "one"]


async def test_server_that_is_away_gets_the_log_when_it_is_back(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    shipper = LogShipper(server, item_id, path)
    server.down()
    path.write_text("one\ntwo\n")
    shipper.follow()
    asyncio.get_running_loop().call_later(0.3, server.up)
    await shipper.finish()
    assert await text(server, item_id) == "one\ntwo"


async def test_last_lines_are_those_of_the_file(server: InMemoryServer, item_id: UUID, path: Path) -> None:
    path.write_text("".join(f"{number}\n" for number in range(100)))
    assert await LogShipper(server, item_id, path).last_lines(3) == ["97", "98", "99"]


def test_empty_lines_inside_stay_and_a_blank_log_is_no_record() -> None:
    assert [record.message for record in split_records("a\n\nb\n")] == ["a\n\nb"]
    assert split_records("\n \n") == []


async def test_lines_stay_in_order_when_the_clock_is_set_back_between_two_agents(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    path.write_text("one\n")
    await send_whole(server, item_id, path)
    ahead = datetime.now(timezone.utc) + timedelta(hours=2)
    kept = path.parent / "log-sent.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "last": ahead.isoformat()}))
    with path.open("a") as file:
        file.write("two\nthree\n")
    await send_whole(server, item_id, path)
    assert [record.timestamp > ahead for record in await records(server, item_id)] == [False, True]


# --- levels ---

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    main()
KeyError: 'lr'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 5, in <module>
ValueError: bad
"""


GROUP = "  + Exception Group Traceback (most recent call last):\n  |   File\n  | ExceptionGroup: x\n  +----\n"


def write_streams(path: Path, *pieces: tuple[bool, str]) -> None:
    size = path.stat().st_size if path.exists() else 0
    with closing(Marks(str(path), size)) as marks, path.open("ab") as file:
        for is_error, piece in pieces:
            marks.mark(file.tell(), is_error)
            file.write(piece.encode())


async def test_standard_error_is_a_warning_and_a_traceback_an_error_and_no_record_mixes_them(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    text = f"loading\n{TRACEBACK}bye\n"
    write_streams(path, (False, "one\ntwo\n"), (True, text), (False, "three\n"))

    await send_whole(server, item_id, path)

    assert [(record.level, record.message) for record in await records(server, item_id)] == [
        (logging.INFO, "one\ntwo"),
        (logging.WARNING, "loading"),
        (logging.ERROR, TRACEBACK.removesuffix("\n")),
        (logging.WARNING, "bye"),
        (logging.INFO, "three"),
    ]


async def test_traceback_that_is_read_while_it_is_written_is_one_error(
    server: InMemoryServer, item_id: UUID, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "READ_SECONDS", 3600)  # It reads once, and again at the end.
    start, end = TRACEBACK[: TRACEBACK.index("KeyError")], TRACEBACK[TRACEBACK.index("KeyError") :]
    write_streams(path, (True, f"loading\n{start}"))
    shipper = LogShipper(server, item_id, path)
    shipper.follow()
    await until_sent(server, item_id, "loading")
    assert "Traceback" not in await text(server, item_id)
    write_streams(path, (True, f"{end}bye\n"))
    await shipper.finish()

    assert [(record.level, record.message) for record in await records(server, item_id)] == [
        (logging.WARNING, "loading"),
        (logging.ERROR, TRACEBACK.removesuffix("\n")),
        (logging.WARNING, "bye"),
    ]


async def test_traceback_that_does_not_go_on_is_sent_while_the_job_runs(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    write_streams(path, (True, GROUP))
    shipper = LogShipper(server, item_id, path)
    shipper.follow()
    await until_sent(server, item_id, "ExceptionGroup")
    await shipper.finish()

    assert [record.level for record in await records(server, item_id)] == [logging.ERROR]


async def test_levels_are_right_after_an_agent_that_died_in_the_middle_of_a_stream(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    write_streams(path, (False, "out\n"), (True, "err 1\n"))
    first = LogShipper(server, item_id, path)
    first.follow()
    await until_sent(server, item_id, "err 1")
    await first.let_go()
    write_streams(path, (True, "err 2\n"), (False, "out 2\n"))

    await send_whole(server, item_id, path)

    assert [(record.level, record.message) for record in await records(server, item_id)] == [
        (logging.INFO, "out"),
        (logging.WARNING, "err 1"),
        (logging.WARNING, "err 2"),
        (logging.INFO, "out 2"),
    ]


async def test_streams_that_change_at_each_line_cost_few_records(
    server: InMemoryServer, item_id: UUID, path: Path
) -> None:
    lines = [(bool(number % 2), f"line {number}\n") for number in range(5000)]
    write_streams(path, *lines)

    await send_whole(server, item_id, path)

    sent = await records(server, item_id)
    assert len(sent) < 10
    for level, is_error in ((logging.INFO, False), (logging.WARNING, True)):
        told = "".join(f"{record.message}\n" for record in sent if record.level == level)
        assert told == "".join(line for of_error, line in lines if of_error is is_error)


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("a\nb\n", []),
        (f"a\n{TRACEBACK}", [TRACEBACK]),
        ("Traceback (most recent call last):\n  File\n", ["Traceback (most recent call last):\n  File\n"]),
        (f"{GROUP}end\n", [GROUP]),
        ("he said: Traceback (most recent call last):\n", []),
    ],
)
def test_tracebacks_are_found_on_either_stream(text: str, errors: list[str]) -> None:
    for is_error, usual in ((False, logging.INFO), (True, logging.WARNING)):
        pieces = by_level(text, is_error=is_error)
        assert "".join(piece for _, piece in pieces) == text
        assert [piece for level, piece in pieces if level == logging.ERROR] == errors
        assert {level for level, _ in pieces} <= {usual, logging.ERROR}
