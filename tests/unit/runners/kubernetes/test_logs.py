"""How far the log of a container is kept: no line twice, none left out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from prefect_launch.runners.remote.kubernetes.client import lines
from prefect_launch.runners.remote.kubernetes.log_marks import END, LogMark, in_order
from prefect_launch.runners.remote.kubernetes.logs import containers_of


def _line(second: int, fraction: str, text: str) -> bytes:
    return f"2026-11-27T10:00:{second:02d}.{fraction}Z {text}".encode()


LINES = [
    _line(1, "5", "a\n"),
    _line(1, "500000001", "b\n"),
    _line(2, "1", "c\n"),
    _line(2, "1", "d\n"),
    _line(2, "05", "a little late\n"),
    _line(7, "9", "e\n"),
]


def _read(mark: LogMark, lines: list[bytes]) -> bytes:
    """Read as the kubelet gives it: from the mark's second on."""
    mark.rewind()
    kept = [line for line in lines if not mark.since or line[:19] + b"Z" >= mark.since.encode()]
    return b"".join(mark.take(line) for line in kept)


def test_log_that_is_read_on_from_any_line_has_no_gap_and_no_repeat() -> None:
    for count in range(len(LINES) + 1):
        mark = LogMark()
        first = _read(mark, LINES[:count])
        second = _read(LogMark(mark.value), LINES)
        assert first + second == b"a\nb\nc\nd\na little late\ne\n", count


def test_line_that_was_cut_off_in_the_middle_is_completed() -> None:
    mark = LogMark()
    assert _read(mark, [LINES[0], _line(2, "1", "c and m")]) == b"a\nc and m"
    assert _read(LogMark(mark.value), [LINES[0], _line(2, "1", "c and more\n"), LINES[5]]) == b"ore\ne\n"


def test_rotation_that_took_kept_lines_is_told_in_the_log() -> None:
    mark = LogMark()
    _read(mark, LINES[:4])
    rest = _read(LogMark(mark.value), [LINES[5]])
    assert b"rotated" in rest
    assert b"between 2026-11-27T10:00:02.100000000 and 2026-11-27T10:00:07.900000000" in rest
    assert rest.endswith(b"\ne\n")


def test_stamps_inside_a_long_line_are_taken_out() -> None:
    piece = b"x" * 16384
    stamp = b"2026-11-27T10:00:01.5Z "
    assert LogMark().take(stamp + piece + stamp + piece + stamp + b"end\n") == piece + piece + b"end\n"


def test_words_of_the_node_in_the_place_of_a_log_are_told_once_and_apart_from_its_lines() -> None:
    words = b"failed to create fsnotify watcher: too many open files"
    mark = LogMark()
    first = _read(mark, [LINES[0], words])
    again = _read(mark, [LINES[0], words])
    rest = _read(mark, LINES[:2])
    assert first + again + rest == b"a\n[prefect-launch] the node says of this log: %s\nb\n" % words


def test_container_that_went_with_its_log_leaves_no_line_in_it() -> None:
    gone = b"unable to retrieve container logs for docker://d74348797d94ba42"
    assert _read(LogMark(), [gone]) == b""
    assert _read(LogMark(), [LINES[0], gone]) == b"a\n"


PIECE = 16384
INNER = b"2026-11-27T10:00:01.5Z "
LONG = b"a" * PIECE + b"b" * PIECE + b"c" * 100
STAMPED = INNER + b"a" * PIECE + INNER + b"b" * PIECE + INNER + b"c" * 100


@pytest.mark.parametrize("size", [1, 7, 100, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
@pytest.mark.parametrize("written", [STAMPED, INNER + LONG])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_line_that_comes_in_parts_is_whole(size: int, written: bytes, end: bytes) -> None:
    first, rest = written[:40], written[40:] + end
    mark = LogMark()
    parts = [first, *(rest[at : at + size] for at in range(0, len(rest), size)), END]
    assert b"".join(map(mark.take, parts)) == LONG + end


@pytest.mark.parametrize("cut", [41, PIECE, PIECE + 30, 2 * PIECE + 60, len(STAMPED) - 1])
def test_long_line_that_was_cut_off_between_its_parts_is_completed(cut: int) -> None:
    mark = LogMark()
    kept = mark.take(LINES[0]) + mark.take(STAMPED[:40]) + mark.take(STAMPED[40:cut])
    again = LogMark(mark.value)
    again.rewind()
    pieces = [LINES[0], STAMPED[:1000], STAMPED[1000:], b"more\n", LINES[2], END]
    assert kept + b"".join(map(again.take, pieces)) == b"a\n" + LONG + b"more\nc\n"


async def test_line_without_an_end_is_handed_on_in_parts() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one\ntwo"
        for _ in range(1000):
            yield b"x" * 1000
        yield b"\nthree"

    found = [line async for batch in lines(pieces(), 10_000) for line in batch]
    assert max(map(len, found)) < 12_000
    assert b"".join(found) == b"one\ntwo" + b"x" * 1_000_000 + b"\nthree"
    assert [line async for batch in lines(pieces()) for line in batch][1] == b"two" + b"x" * 1_000_000 + b"\n"


def test_stamps_are_in_the_order_of_time_whatever_their_zone_and_length() -> None:
    stamps = ["2026-11-27T10:00:01Z", "2026-11-27T12:00:01.1+02:00", "2026-11-27T10:00:01.12Z", "2026-11-27T10:00:02Z"]
    assert sorted(map(in_order, stamps)) == [in_order(stamp) for stamp in stamps]
    assert in_order("no stamp") == ""


def test_lines_of_one_container_have_no_prefix_and_those_of_several_name_theirs() -> None:
    pod = {
        "metadata": {"name": "p-1", "uid": "u"},
        "status": {
            "initContainerStatuses": [{"name": "init", "state": {"terminated": {}}}],
            "containerStatuses": [
                {"name": "main", "state": {"running": {}}},
                {"name": "late", "state": {"waiting": {}}},
            ],
        },
    }
    assert [(one.name, one.prefix, one.has_ended) for one in containers_of([pod], is_one=True)] == [
        ("init", b"[init] ", True),
        ("main", b"", False),
    ]
    assert [one.prefix for one in containers_of([pod], is_one=False)] == [b"[p-1 init] ", b"[p-1 main] "]
