"""Copying an engine's log: positions, repeats, and the newline that an engine loses."""

from __future__ import annotations

import pytest

from prefect_launch.runners.docker.logs import LogPosition

S1, S2, S9 = b"2026-01-01T00:00:01.5Z ", b"2026-01-01T00:00:02.5Z ", b"2026-01-01T00:00:09.5Z "
FULL = b"x" * 16384


def written(*pieces: bytes) -> bytes:
    position = LogPosition()
    return b"".join(position.add(piece) for piece in pieces)


def test_position_counts_the_pieces_of_its_last_seconds_only() -> None:
    position = LogPosition()
    assert (position.since, position.pieces) == (0, 0)
    for second in range(1, 9):
        position.add(b"2026-01-01T00:00:0%d.1Z a\n" % second)
        position.add(b"2026-01-01T00:00:0%d.2Z b\n" % second)
    again = LogPosition(position.value)
    assert (again.since, again.pieces) == (1767225606, 6)


def test_late_piece_of_a_second_that_is_no_longer_read_is_not_counted() -> None:
    position = LogPosition()
    for second in range(3, 9):
        position.add(b"2026-01-01T00:00:0%d.1Z a\n" % second)
    before = position.pieces
    position.add(S1 + b"late\n")
    assert position.pieces == before


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((S1 + FULL, S1 + b"end", S1 + b"next\n"), FULL + b"end\nnext\n"),
        ((S1 + FULL, S1 + b"end\n", S1 + b"next\n"), FULL + b"end\nnext\n"),
        ((S1 + FULL, S1 + b"", S1 + b"next\n"), FULL + b"\nnext\n"),
        ((S1 + FULL, S1 + FULL, S1 + b"end", S1 + FULL, S1 + b"e2"), FULL + FULL + b"end\n" + FULL + b"e2"),
        ((S1 + FULL, S1 + b"end of all"), FULL + b"end of all"),
        ((S1 + b"no newline", S2 + b"other stream\n"), b"no newlineother stream\n"),
        ((S1 + b"a b\n", S9 + b"\n"), b"a b\n\n"),
    ],
)
def test_line_that_was_cut_into_pieces_keeps_its_newline(pieces: tuple[bytes, ...], expected: bytes) -> None:
    assert written(*pieces) == expected


def test_newline_that_is_owed_is_remembered_by_the_next_copier() -> None:
    position = LogPosition()
    position.add(S1 + FULL)
    position = LogPosition(position.value)
    position.add(S1 + b"end")
    assert LogPosition(position.value).add(S1 + b"next\n") == b"\nnext\n"
