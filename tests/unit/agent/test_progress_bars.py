"""Progress bars in a job's log: their newest state now and then, their last one always, nothing twice."""

from __future__ import annotations

import asyncio
import time
from itertools import product
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from prefect_launch.agent.item import logs
from prefect_launch.agent.item.logs import CHUNK_BYTES, SHARE_BYTES, LogShipper, as_shown, newest_state, split_records
from prefect_launch.testing import InMemoryServer
from tests.support.bench import eventually

ITEM = uuid4()


@pytest.fixture
def server() -> InMemoryServer:
    return InMemoryServer()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.log"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are shown at every look."""
    monkeypatch.setattr(logs, "READ_SECONDS", 0.02)
    monkeypatch.setattr(logs, "BAR_SECONDS", 0.0)


async def shown(server: InMemoryServer, item_id: UUID = ITEM) -> list[str]:
    return [record.message for record in await server.read_logs(item_id, limit=1_000_000)]


async def until_shown(server: InMemoryServer, wanted: str) -> None:
    await eventually(lambda: shown(server), lambda seen: bool(seen) and wanted in seen[-1])


def bar(percent: int) -> bytes:
    """A state of a bar, as tqdm writes it."""
    return f"\rtrain: {percent:3d}%|{'█' * (percent // 10):<10}| {percent}/100 [00:{percent:02d}<?, 1.00it/s]".encode()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


# --- what a line shows ---


def step_by_step(data: bytes, *, complete: bool) -> tuple[int, int] | None:
    """Look for the newest state piece by piece."""
    end = max(data.rfind(b"\r", 0, max(len(data) - 1, 0)), 0) if complete else len(data)
    while end > 0:
        start = data.rfind(b"\r", 0, end) + 1
        if data[start:end].strip():
            return start, end
        end = start - 1
    return None


@pytest.mark.parametrize("complete", [True, False])
def test_newest_state_is_the_last_piece_that_is_not_blank(complete: bool) -> None:
    for length in range(8):
        for letters in product(b"\r ab", repeat=length):
            line = bytes(letters)
            assert newest_state(line, complete=complete) == step_by_step(line, complete=complete), line


def test_megabytes_that_are_blank_are_jumped_over_at_once() -> None:
    begun = time.monotonic()
    for data in (b"\r" * 20_000_000, b"x" + b"\r" * 20_000_000, b" \r" * 10_000_000):
        assert as_shown(data) == data[:1].strip()

    assert time.monotonic() - begun < 60  # Piece by piece it would be hours.


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        (b"1%\r50%\r100%\n", b"100%\n"),
        (b"\r1%\r100%\r\ndone\n", b"100%\ndone\n"),
        (b"one\r\n\r\ntwo\r\n", b"one\n\ntwo\n"),
        (b"\r90%\r         \rdone\n", b"done\n"),
        (b"\r90%\r         \r\n", b"90%\n"),
        (b"\r\r\r\n", b"\n"),
        (b"\r10%\r20%", b"20%"),
        (b"no bar\n", b"no bar\n"),
    ],
)
def test_line_that_was_drawn_again_shows_its_last_state(written: bytes, seen: bytes) -> None:
    assert as_shown(written) == seen


@pytest.mark.parametrize(
    ("written", "newest"),
    [(b"\r10%\r20%", b"10%"), (b"10%\r20%\r", b"10%"), (b"\r10%", b""), (b"10%\r", b""), (b"5%\r\r \r1", b"5%")],
)
def test_state_is_complete_once_it_was_drawn_over(written: bytes, newest: bytes) -> None:
    found = newest_state(written, complete=True)
    assert (written[slice(*found)] if found else b"") == newest


def test_only_a_line_feed_ends_a_line() -> None:
    assert [record.message for record in split_records("a\x0cb\u2028c\x85d\x1ce\nf\n")] == [
        "a\x0cb\u2028c\x85d\x1ce\nf"
    ]


# --- while it is drawn ---


@pytest.mark.usefixtures("often")
async def test_bar_is_shown_before_its_line_ends_and_its_end_once(server: InMemoryServer, path: Path) -> None:
    shipper = LogShipper(server, ITEM, path)
    shipper.follow()
    path.write_bytes(b"start\n" + bar(0))
    await until_shown(server, "  0%|")
    for percent in (10, 20, 30):
        append(path, bar(percent))
    await until_shown(server, " 30%|")
    append(path, bar(100) + b"\nend\n")
    await shipper.finish()
    seen = await shown(server)
    assert seen[0] == "start"
    assert seen[-1].splitlines()[-2:] == [bar(100).decode().strip(), "end"]
    assert [sum(f" {percent:3d}%|" in line for line in seen) for percent in (0, 30, 100)] == [1, 1, 1]


async def test_bar_that_is_drawn_fast_is_one_record_in_a_while(
    server: InMemoryServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "READ_SECONDS", 0.01)
    shipper = LogShipper(server, ITEM, path)
    shipper.follow()
    for percent in range(100):
        append(path, bar(percent))
        await asyncio.sleep(0.005)
    assert len(await shown(server)) == 1
    await shipper.finish()  # its line never ends: the job was killed
    assert [line.strip() for line in await shown(server)][1:] == [bar(99).decode().strip()]


@pytest.mark.usefixtures("often")
async def test_end_of_a_line_that_was_shown_as_a_bar_is_no_empty_line(server: InMemoryServer, path: Path) -> None:
    shipper = LogShipper(server, ITEM, path)
    shipper.follow()
    path.write_bytes(b"\r50%\r100%")
    await until_shown(server, "100%")
    append(path, b"\nnext\n\nlast\n")
    await shipper.finish()
    assert (await shown(server))[-1] == "next\n\nlast"
    assert sum("100%" in line for line in await shown(server)) == 1


@pytest.mark.usefixtures("often")
async def test_next_agent_shows_each_state_of_a_bar_once(server: InMemoryServer, path: Path) -> None:
    path.write_bytes(bar(10) + bar(20))
    first = LogShipper(server, ITEM, path)
    first.follow()
    await until_shown(server, " 20%|")
    await first.let_go()
    second = LogShipper(server, ITEM, path)
    second.follow()
    await asyncio.sleep(0.1)
    append(path, bar(30) + b"\n")
    await second.finish()
    seen = "\n".join(await shown(server))
    assert [seen.count(f" {percent}%|") for percent in (20, 30)] == [1, 1]
    assert seen.splitlines()[-1] == bar(30).decode().strip()


@pytest.mark.usefixtures("often")
async def test_waiting_text_without_a_bar_is_not_torn(server: InMemoryServer, path: Path) -> None:
    shipper = LogShipper(server, ITEM, path)
    shipper.follow()
    path.write_bytes(b"half a li")
    await asyncio.sleep(0.2)
    assert await shown(server) == []
    append(path, b"ne\r")  # of \r\n
    await asyncio.sleep(0.01)
    append(path, b"\n")
    await shipper.finish()
    assert (await shown(server))[-1] == "half a line"


# --- a bar of hours ---


async def test_hours_of_a_bar_do_not_use_up_the_share_of_the_lines_behind_it(
    server: InMemoryServer, path: Path
) -> None:
    states = b"".join(bar(number % 100) for number in range(2 * SHARE_BYTES // len(bar(50))))
    path.write_bytes(states + bar(100) + b"\nafter\n")
    size = path.stat().st_size
    await LogShipper(server, ITEM, path).finish()
    seen = "\n".join(await shown(server))
    assert seen.endswith(f"{bar(100).decode().strip()}\nafter")
    assert "left out" not in seen
    assert len(seen) < 1000
    assert path.stat().st_size == size


async def test_long_text_in_front_of_a_bar_is_passed_over_without_standing_still(
    server: InMemoryServer, path: Path
) -> None:
    path.write_bytes(b"x" * (CHUNK_BYTES + 5) + b"\r" * (2 * CHUNK_BYTES) + b"\r" + b"y" * CHUNK_BYTES + b"\n")
    shipper = LogShipper(server, ITEM, path)
    shipper.follow()
    await asyncio.wait_for(shipper.finish(), 60)
    seen = "".join(await shown(server))
    assert seen.count("y") == CHUNK_BYTES
    assert set(seen) <= {"x", "y", "\n"}


async def test_last_lines_are_those_that_a_terminal_shows(server: InMemoryServer, path: Path) -> None:
    path.write_bytes(b"one\n" + b"".join(bar(n) for n in range(100)) + b"\nValueError: x\n")
    assert await LogShipper(server, ITEM, path).last_lines(2) == [bar(99).decode().strip(), "ValueError: x"]
    assert await LogShipper(server, ITEM, path.with_name("none")).last_lines(2) == []
