"""Files of a Slurm job in its run's folder, which the agent and the node both see, as the agent uses them."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from prefect_launch.runners.remote.slurm import script


class WrittenExit(NamedTuple):
    """How a job ended, as its script wrote it down.

    Attributes:
        exit_code: as a shell gives it; None when nothing was started.
        stopped: whether a stop had been asked for.
        started_at: by the node's clock.
        ended_at: by the node's clock.
        written_at: when the file was written, in seconds since the epoch.
    """

    exit_code: int | None
    stopped: bool
    started_at: datetime | None
    ended_at: datetime | None
    written_at: float


class JobFolder(NamedTuple):
    """What the folder of a job holds, at one look.

    Attributes:
        node: where it was started; None when it was not.
        exit: how it ended; None while it has not, or when its script was killed.
        missing_program: its program, when that was not found on the node.
        is_stop_asked: whether a stop was asked for.
    """

    node: str | None = None
    exit: WrittenExit | None = None
    missing_program: str | None = None
    is_stop_asked: bool = False


def look(run_dir: Path) -> JobFolder:
    """Look at a job's folder; an empty one when there is none."""
    folder = run_dir / script.FOLDER
    try:
        names = set(os.listdir(folder))  # On a network file system this also asks the server anew.
    except OSError:
        return JobFolder()
    return JobFolder(
        node=_text(folder / script.STARTED).partition(" ")[0] if script.STARTED in names else None,
        exit=_exit(folder / script.EXIT) if script.EXIT in names else None,
        missing_program=_text(folder / script.NO_PROGRAM) if script.NO_PROGRAM in names else None,
        is_stop_asked=script.STOP in names,
    )


def write(run_dir: Path, files: dict[str, str]) -> None:
    """Write the files of a job, which only their owner may read; its folder is made."""
    folder = run_dir / script.FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        part = folder / f".{uuid4().hex}.part"  # Two agents may submit one job at once.
        with open(part, "wb", opener=lambda path, flags: os.open(path, flags | os.O_EXCL, 0o600)) as file:
            file.write(os.fsencode(content))
        part.replace(folder / name)


def ask_to_stop(run_dir: Path, grace_seconds: float) -> None:
    """Write down that the job is to end, and within which time."""
    if (run_dir / script.FOLDER).is_dir():
        write(run_dir, {script.STOP: f"{max(0.0, grace_seconds):g}\n"})


def drop_copied(run_dir: Path) -> None:
    """Remove what is copied elsewhere by now, and what is secret."""
    folder = run_dir / script.FOLDER
    left = folder.glob(".*.part")  # By an agent that was killed as it wrote.
    for path in (folder / script.STDOUT, folder / script.STDERR, folder / script.ENVIRONMENT, *left):
        path.unlink(missing_ok=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return ""


def _exit(path: Path) -> WrittenExit | None:
    try:
        written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return WrittenExit(
            exit_code=written["exit_code"],
            stopped=bool(written["stopped"]),
            started_at=_time(written["started_at"]),
            ended_at=_time(written["ended_at"]),
            written_at=path.stat().st_mtime,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(text.removesuffix(".%N").removesuffix(".N")), timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
