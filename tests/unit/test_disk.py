"""A full disk: known by its errors, told with the next step, and no reason to lose what a job did."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pytest

from prefect_launch.agent.item.diagnosis import Category, diagnose
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.outcome import outcome_of_error, outcome_of_exit
from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.image_builder import explaining_full_disks
from prefect_launch.core.filesystem import has_room, is_disk_full
from prefect_launch.core.states import ItemState
from prefect_launch.errors import BuildDiskError, BuildError, InfrastructureError, RegistryError, SourceError
from prefect_launch.runners.base import ExitStatus, Phase
from prefect_launch.runners.docker import logs as engine_logs
from prefect_launch.spec.retry import Cause
from prefect_launch.testing import InMemoryDocker, InMemoryEngine, InMemoryServer, Script

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/x")


def wrapped(error: Exception) -> Exception:
    try:
        raise SourceError("The code cannot be unpacked.") from error
    except SourceError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (wrapped(FULL), True),
        (InfrastructureError("uv says: error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("space"), False),
    ],
)
def test_full_disk_is_known_by_the_error_or_what_led_to_it(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full


@pytest.mark.parametrize("error", [FULL, wrapped(FULL)])
def test_full_disk_is_the_machines_fault_whatever_failed_over_it(error: Exception) -> None:
    outcome = outcome_of_error(error, Phase.AGENT)
    assert (outcome.state, outcome.cause) == (ItemState.CRASHED, Cause.CRASHED)
    assert outcome.message.startswith("[agent] No space left on device: ")
    assert "prefect-launch agent clean" in outcome.message
    assert diagnose(outcome, None, error, []) is Category.DISK_FULL


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (wrapped(FULL), "the disk of the machine that builds is full."),
        (InfrastructureError("write /x: no space left on device"), "the disk of the Docker Engine at unix:///nobody"),
    ],
)
async def test_full_disk_of_a_build_is_a_failed_build_that_tells_whose_disk_it_is(error: Exception, whose: str) -> None:
    engine = BuildEngine("unix:///nobody.sock")
    with pytest.raises(BuildDiskError) as told:
        async with explaining_full_disks(engine), explaining_full_disks(engine):
            raise error
    outcome = outcome_of_error(told.value, Phase.BUILD)
    assert (outcome.state, outcome.cause) == (ItemState.FAILED, Cause.CRASHED)
    assert outcome.message.startswith(f"[build] No space left on device: {whose}")
    assert outcome.message.count("Free space there") == 1
    assert str(error) in outcome.message
    assert diagnose(outcome, None, told.value, []) is Category.DISK_FULL


@pytest.mark.parametrize("error", [RegistryError("500: no space left on device"), BuildError("exit code 1")])
async def test_what_is_no_full_disk_of_a_build_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as told:
        async with explaining_full_disks(BuildEngine("unix:///nobody.sock")):
            raise error
    assert told.value is error


def test_process_that_was_never_started_for_want_of_room_says_so() -> None:
    end = ExitStatus(exit_code=None, error="it was never started: no space left on device.")
    assert diagnose(outcome_of_exit(end), end, None, []) is Category.DISK_FULL


def test_room_is_seen(tmp_path: Path) -> None:
    assert has_room(tmp_path)


async def test_log_is_sent_when_it_cannot_be_noted_how_far(tmp_path: Path) -> None:
    server, item = InMemoryServer(), uuid4()
    (tmp_path / "job.log").write_text("one\ntwo\n")
    (tmp_path / "log-sent.part").mkdir()  # what is written there fails
    await LogShipper(server, item, tmp_path / "job.log").finish()
    assert [record.message for record in await server.read_logs(item)] == ["one\ntwo"]


async def test_copier_that_finds_no_room_goes_on_where_the_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([False, False, True, True, False])
    write = engine_logs._write

    def write_or_refuse(file: BinaryIO, content: bytes) -> None:
        if next(refusals, False):
            write(file, content[:2])  # a part of it came through
            raise FULL
        write(file, content)

    monkeypatch.setattr("prefect_launch.runners.docker.logs._write", write_or_refuse)
    lines = tuple(f"line {number}\n".encode() for number in range(9))
    engine = InMemoryEngine(InMemoryDocker(lambda config: Script(log=lines), images={"i": {}}))
    container = await engine.create("c", {"Image": "i", "Labels": {}})
    await engine.start(container)
    await engine.ended(container)
    log = tmp_path / "job.log"
    copier = engine_logs.LogCopier(engine, container, log)
    assert [copier._copy(follow=False) for _ in range(2)] == [False, False]
    assert "No space left on device" in str(copier.problem)
    copier.start()
    copier.finish(5)
    assert copier.problem is None
    assert log.read_bytes() == b"".join(lines)
