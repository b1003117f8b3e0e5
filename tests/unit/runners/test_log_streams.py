"""Two streams in one log file: what came from the standard error is told by marks beside it."""

from __future__ import annotations

import itertools
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from prefect_launch.runners.log_streams import CopiedLog, LogWriter, Marks, parts


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "job.log")


class _Job:
    """The writing ends of a job's streams."""

    def __init__(self, log: str) -> None:
        output, self.output = os.pipe()
        error, self.error = os.pipe()
        self.writer = LogWriter(log, output, error)

    def end(self) -> None:
        os.close(self.output)
        os.close(self.error)
        self.writer.finish(10)


def all_parts(log: str) -> list[tuple[bool, bytes]]:
    return parts(log, 0, Path(log).read_bytes())


def until_written(log: str, size: int) -> None:
    while os.path.getsize(log) < size:
        os.sched_yield()


def test_both_streams_are_in_one_file_in_their_order_and_told_apart(log: str) -> None:
    Path(log).write_text("made before\n")
    job = _Job(log)
    size = len("made before\n")
    for stream, piece in ((job.error, b"warning\n"), (job.output, b"one\n"), (job.output, b"two\n"), (job.error, b"e")):
        os.write(stream, piece)
        size += len(piece)
        until_written(log, size)
    job.end()

    assert all_parts(log) == [(False, b"made before\n"), (True, b"warning\n"), (False, b"one\ntwo\n"), (True, b"e")]


def test_streams_of_a_part_are_reported_wherever_it_begins_and_ends(log: str) -> None:
    chance = random.Random(7)
    pieces = [(chance.random() < 0.5, os.urandom(chance.randrange(1, 20))) for _ in range(300)]
    data = b"".join(piece for _, piece in pieces)
    marks, size = Marks(log, 0), 0
    for is_error, piece in pieces:
        marks.mark(size, is_error)
        size += len(piece)
    of_bytes = [is_error for is_error, piece in pieces for _ in piece]

    for _ in range(200):
        start = chance.randrange(size)
        end = chance.randrange(start, size) + 1
        found = parts(log, start, data[start:end])
        assert b"".join(piece for _, piece in found) == data[start:end]
        assert [is_error for is_error, piece in found for _ in piece] == of_bytes[start:end]
        assert all(one[0] is not other[0] for one, other in itertools.pairwise(found))


def test_log_without_marks_is_of_the_standard_output(log: str) -> None:
    assert parts(log, 0, b"x") == [(False, b"x")]
    assert parts(log, 0, b"") == []


def test_marks_of_what_was_never_written_are_forgotten_by_the_next_writer(log: str) -> None:
    first = Marks(log, 0)
    first.mark(3, True)
    first.mark(10, False)
    first.close()
    with open(f"{log}.streams", "ab") as file:
        file.write(b"half")  # of a writer that was killed

    second = Marks(log, 8)  # the log was cut there
    second.mark(8, False)
    second.mark(9, True)

    assert parts(log, 0, b"outerror-ox") == [(False, b"out"), (True, b"error"), (False, b"-"), (True, b"ox")]


def test_log_of_a_job_whose_streams_stay_open_elsewhere_is_whole_at_its_end(log: str) -> None:
    job = _Job(log)
    elsewhere = os.dup(job.error)
    os.write(job.error, b"last words\n")
    job.end()
    os.close(elsewhere)

    assert all_parts(log) == [(True, b"last words\n")]


def test_what_a_full_disk_does_not_take_is_lost_and_told_and_the_job_goes_on(log: str) -> None:
    job = _Job(log)
    room = job.writer._log
    full = os.open("/dev/full", os.O_WRONLY)
    os.write(job.output, b"before\n")
    until_written(log, 7)
    kept = os.dup(room)
    os.dup2(full, room)
    os.write(job.error, b"x" * 1_000_000)  # more than a pipe holds: it is read
    while job.writer._lost < 1_000_000:
        os.sched_yield()
    os.dup2(kept, room)
    os.write(job.output, b"after\n")
    job.end()

    lost = "[prefect-launch] 1000000 bytes of the log are lost: there was no room for them"
    assert Path(log).read_text() == f"before\n\n{lost}\nafter\n"


def test_bytes_that_the_position_does_not_know_are_cut_off_and_copied_again(tmp_path: Path) -> None:
    path, position = tmp_path / "job.log", tmp_path / "position.json"
    with closing(CopiedLog(str(path), str(position))) as log:
        log.append(b"one\n", is_error=False)
        log.save("1")
        log.append(b"two\n", is_error=False)  # As a writer leaves it that was killed before it saved the position.
    with closing(CopiedLog(str(path), str(position))) as again:
        assert again.position == "1"
        again.append(b"two\n", is_error=True)
        again.save("2")
    assert path.read_bytes() == b"one\ntwo\n"
    assert parts(str(path), 0, path.read_bytes()) == [(False, b"one\n"), (True, b"two\n")]


def test_log_that_the_machine_has_lost_is_copied_from_its_beginning(tmp_path: Path) -> None:
    path, position = tmp_path / "job.log", tmp_path / "position.json"
    with closing(CopiedLog(str(path), str(position))) as log:
        log.append(b"one\n", is_error=False)
        log.save("1")
    path.write_bytes(b"o")
    with closing(CopiedLog(str(path), str(position))) as again:
        assert again.position is None
