"""Failure report: what is known about a run that did not complete, on one page of the UI.

A frozen value that is made from the run's end, and shown as a markdown artifact of its item. It holds only what the
item's log and parameters hold already, and no paths of the agent's machine.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio
from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.agent.item.outcome import ADVICE, Category, Outcome, diagnose
from prefect_launch.core.masking import Mask
from prefect_launch.core.metric_lines import from_first_whole_line, without_metrics
from prefect_launch.core.states import ItemState
from prefect_launch.core.terminal import printable
from prefect_launch.core.units import counted, utc_time
from prefect_launch.core.validation import clean_text
from prefect_launch.errors import LaunchError
from prefect_launch.planning.image_pinning import digest_in
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item
from prefect_launch.spec.item_parameters import run_id_of

log = logging.getLogger(__name__)

#: As many as a screen shows.
LAST_LINES: Final = 50
#: What is read of the log's end for them.
_TAIL_BYTES: Final = 64_000
_LINE_CHARS: Final = 500
_MEBIBYTE: Final = 1024 * 1024


class Facts(BaseModel):
    """What an agent knows about the end of an attempt; all of it may be unknown."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    agent: str | None = Field(default=None, description="The agent that had the item.")
    queue: str | None = None
    attempt: int | None = None
    plan: RunPlan | None = None
    home: Path | None = Field(default=None, description="Of the agent; what people read says <home> in its place.")
    end: ExitStatus | None = Field(default=None, description="How its process ended; None: it never came to run.")
    error: BaseException | None = Field(default=None, description="Why it did not come to run.")
    image: str | None = Field(default=None, description="The image that it ran, by its digest.")
    last_lines: tuple[str, ...] = ()


class FailureReport(BaseModel):
    """Why a run did not complete, and what to do."""

    model_config = ConfigDict(frozen=True)

    level: str = Field(description="error, or info for what somebody asked for.")
    summary: str
    detail: str
    next_step: str
    facts: dict[str, str] = Field(default_factory=dict, description="What is known, by what it is.")
    last_lines: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Draw it."""
        rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in self.facts.items())
        parts = [
            f"## {self.summary}",
            _text(self.detail),
            f"**Next step:** {_text(self.next_step)}",
            f"| | |\n|---|---|\n{rows}".rstrip(),
        ]
        if self.last_lines:
            parts += [f"### The end of its log, {counted(len(self.last_lines), 'line')}", _fenced(self.last_lines)]
        return clean_text("\n\n".join(parts) + "\n")


def build_report(item: Item, outcome: Outcome, facts: Facts, *, comes_back: str | None = None) -> FailureReport:
    """Build the report of an attempt that did not complete.

    Args:
        item: what was attempted.
        outcome: how the attempt ended.
        facts: what is known.
        comes_back: when it is run again, in words, if it is.
    """
    category = diagnose(outcome, facts.end, facts.error, facts.last_lines)
    advice = ADVICE[category]
    mask = facts.plan.mask if facts.plan else Mask()
    detail = outcome.message if facts.home is None else without_home(outcome.message, facts.home)
    known = {name: str(value) for name, value in _known(item, category, facts).items() if value is not None}
    next_step = f"{comes_back} {advice.next_step}" if comes_back else advice.next_step
    return FailureReport(
        level="info" if outcome.state is ItemState.CANCELLED else "error",
        summary=advice.summary,
        detail=mask.text(detail),
        next_step=next_step,
        facts={name: mask.text(value) for name, value in known.items()},
        last_lines=facts.last_lines,
    )


async def publish_report(server: Server, item: Item, report: FailureReport, *, once: str | None = None) -> None:
    """Attach a report to its item, one for each claim. A server that refuses it does not keep it from its end."""
    key = re.sub(r"[^a-z0-9]+", "-", f"failure-report-{run_id_of(item)}".lower()).strip("-")

    async def create() -> None:
        await server.create_artifact(
            item.id,
            key=key,
            kind="markdown",
            data=report.markdown(),
            description=clean_text(report.summary),
            once=once,
        )

    try:
        await retry_until_available(f"show why {item.id} did not complete", create)
    except LaunchError as error:
        log.warning("%s no-failure-report: %s", item.id, error)


async def read_last_lines(path: Path, mask: Mask | None = None, count: int = LAST_LINES) -> tuple[str, ...]:
    """Return the last lines of a log, without colours, control characters and secrets; none when there is no log."""
    data = await anyio.to_thread.run_sync(_tail, path, mask or Mask())
    # A progress bar writes one line again and again; what counts is how it stood last.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in data.decode("utf-8", "replace").split("\n")]
    clean = [printable(line).rstrip() for line in lines]
    while clean and not clean[-1]:
        clean.pop()
    return tuple(line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]} …" for line in clean[-count:])


def _known(item: Item, category: Category, facts: Facts) -> dict[str, Any]:
    end, plan = facts.end, facts.plan
    known: dict[str, Any] = {"category": category.value}
    if end is not None:
        known |= {
            "exit code": end.exit_code,
            "signal": end.signal,
            "out of memory": "yes, says the kernel" if end.oom_killed else "no",
            "duration": None if end.duration_seconds is None else f"{end.duration_seconds:.1f} s",
            "peak memory": None if end.peak_memory_bytes is None else f"{end.peak_memory_bytes / _MEBIBYTE:,.0f} MiB",
            "started": None if end.started_at is None else utc_time(end.started_at),
        }
    if plan is not None:
        known |= {"command": shlex.join([*plan.command, *plan.args]) or None, "image": plan.image}
        if plan.resolved_image is not None and (facts.image is None or is_other_image(plan, facts.image)):
            known["image when queued"] = plan.resolved_image + (", not to be had here" if facts.image else "")
    known |= {
        "image digest": facts.image,
        "attempt": facts.attempt or (plan.attempt if plan else None),
        "queue": facts.queue or item.work_pool_name,
        "agent": facts.agent,
        "run folder": without_home(str(plan.run_dir), facts.home) if plan and facts.home else None,
    }
    return known


def is_other_image(plan: RunPlan, image: str | None) -> bool:
    """Whether a run is of another image than its tag meant at the enqueue.

    Args:
        plan: of the run.
        image: that it runs, by its digest; None when that is not known.
    """
    wanted = plan.resolved_image
    return wanted is not None and image is not None and digest_in(image) != digest_in(wanted)


def without_home(text: str, home: Path) -> str:
    """Leave out where on its machine an agent keeps its things: `<home>/runs/<item>/<attempt>` is what users see."""
    return re.sub(rf"{re.escape(str(home))}(?=/|[^\w.-]|$)", "<home>", text)


def _tail(path: Path, mask: Mask) -> bytes:
    try:
        size = path.stat().st_size
        start = max(0, size - _TAIL_BYTES)
        data = mask.shown(mask.read(path, start, _TAIL_BYTES))
        return without_metrics(from_first_whole_line(data) if start else data)
    except OSError:
        return b""


def _text(text: str) -> str:
    return re.sub(r"([*_`<>\[\]#|\\])", r"\\\1", text)


def _cell(value: str) -> str:
    # In a table, a bar ends the cell even inside of backticks.
    one_line = " ".join(value.split()).replace("|", "\\|")
    return one_line if "`" in one_line else f"`{one_line}`"


def _fenced(lines: Sequence[str]) -> str:
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *lines, fence])
