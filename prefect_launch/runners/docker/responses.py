"""What a Docker Engine answers about a container, as our values. Nothing is asked here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from prefect_launch.runners.docker.engine import Container

#: How the engine writes "has not happened".
_NEVER = "0001-01-01"


def read_inspected(found: Mapping[str, Any]) -> Container:
    """Read what the engine says when it is asked for one container."""
    state, config = found["State"], found["Config"]
    return Container(
        id=found["Id"],
        name=found["Name"].lstrip("/"),
        status=state["Status"],
        labels=config.get("Labels") or {},
        image=config.get("Image") or "",
        image_id=found.get("Image") or "",
        exit_code=state["ExitCode"],
        oom_killed=state.get("OOMKilled", False),
        error=state.get("Error") or "",
        stop_signal=config.get("StopSignal") or "SIGTERM",
        started_at=_time(state.get("StartedAt")),
        ended_at=_time(state.get("FinishedAt")),
    )


def read_listed(found: Mapping[str, Any]) -> Container:
    """Read one line of the engine's list of containers, which tells less."""
    return Container(
        id=found["Id"],
        name=(found.get("Names") or [""])[0].lstrip("/"),
        status=found["State"],
        labels=found.get("Labels") or {},
        image=found.get("Image") or "",
    )


def read_memory(found: Mapping[str, Any]) -> int | None:
    """Read what a container's processes hold, as `docker stats` counts it: what the kernel can drop of files at once is
    left out. A container that does not run has nothing to tell."""
    told = found.get("memory_stats") or {}
    if not told.get("usage"):
        return None
    parts = told.get("stats") or {}
    # The kernel's first version of control groups, and its second.
    droppable = parts.get("total_inactive_file", parts.get("inactive_file", 0))
    return int(told["usage"] - min(droppable, told["usage"]))


def _time(text: str | None) -> datetime | None:
    """Read the engine's time, whose nanoseconds Python 3.10 cannot."""
    if not text or text.startswith(_NEVER):
        return None
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{(fraction + '000000')[:6]}+00:00")
