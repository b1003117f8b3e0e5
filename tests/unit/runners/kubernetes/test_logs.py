"""How far the log of a container is kept: no line twice, none left out."""

from __future__ import annotations

from prefect_launch.runners.remote.kubernetes.logs import LogMark, containers_of, in_order


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
