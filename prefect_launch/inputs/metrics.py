"""Metrics of a job while it runs: marked lines on its standard output, and `metrics.jsonl` among its outputs.

The agent follows the job's log wherever it runs, takes these lines out of what is shown, and keeps the values with the
run. A line is the mark and one JSON object: the step, and numbers by name. JSON has no NaN and no infinity: they are
written as texts.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from prefect_launch.errors import JobCodeError
from prefect_launch.inputs.outputs import output_dir, plain_number

#: Begins a line of metrics.
MARK = "::launch-metric "
#: Holds the same lines without the mark, as the kept copy.
METRICS_FILE = "metrics.jsonl"
#: The most bytes of one line with its end: a write of so many bytes to a pipe is atomic.
MAX_LINE_BYTES = 4096
#: The largest step: the integers that every JSON reader keeps exactly end here.
MAX_STEP = 2**53
MAX_NAME_CHARS = 100
#: The key of the step in a line.
STEP = "step"

_last_step = -1
_lock = threading.Lock()


def log_metrics(step: int | None = None, **values: Any) -> None:
    """Report metrics of the run, which are shown with it while it runs.

    The steps of a run are a set: of a step that is reported again, the last value of each metric counts. A call with
    many metrics writes several lines of the same step. In a program that launch did not start, the lines are written
    too.

    Args:
        step: a whole number from 0 to 2**53; by default one more than that of the last call in this process.
        **values: numbers, by the metric's name. A NumPy or torch scalar counts as its number, and a boolean as 0 or 1.
            NaN and infinity tell that the run has diverged. For a name such as `val/loss`, write
            `log_metrics(**{"val/loss": 0.3})`.

    Raises:
        JobCodeError: when the step, a name or a value is wrong, or `metrics.jsonl` cannot be written.
    """
    global _last_step
    numbers = {_checked_name(name): _plain(name, value) for name, value in values.items()}
    with _lock:
        step = _last_step = _last_step + 1 if step is None else _checked_step(step)
        lines = list(_lines(step, numbers))
        _append(lines)
        if sys.stdout is not None:
            # One write, so that lines of other threads and processes do not get into it.
            sys.stdout.write("".join(f"{MARK}{line}\n" for line in lines))
            sys.stdout.flush()


def written_number(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinity as text."""
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _plain(name: str, value: Any) -> float | str:
    number = plain_number(name, value)
    if number is None:
        raise JobCodeError(
            f"The metric {name!r} is a {type(value).__name__}; a metric is a number. Save anything else with"
            " save_outputs()."
        )
    if isinstance(number, int) and abs(number) > MAX_STEP:
        try:
            number = float(number)
        except OverflowError:
            number = math.inf if number > 0 else -math.inf
    return written_number(number)


def _checked_name(name: str) -> str:
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable() or name == STEP:
        raise JobCodeError(
            f"The name of a metric, {name[:MAX_NAME_CHARS]!r}, must have 1 to {MAX_NAME_CHARS} printable characters,"
            f" and not be {STEP!r}. Give it another name."
        )
    return name


def _checked_step(step: Any) -> int:
    number = plain_number(STEP, step)
    if not isinstance(number, int) or isinstance(step, bool) or not 0 <= number <= MAX_STEP:
        raise JobCodeError(f"The step {str(step)[:50]} must be a whole number from 0 to 2**53. Count steps or epochs.")
    return number


def _lines(step: int, numbers: Mapping[str, float | str]) -> Iterator[str]:
    """Yield JSON objects of the step that each fit into a line; an empty call yields none."""
    room = MAX_LINE_BYTES - len(MARK) - len("\n")
    part: dict[str, float | str] = {}
    for name, number in numbers.items():
        if part and len(json.dumps({STEP: step, **part, name: number})) > room:
            yield json.dumps({STEP: step, **part})
            part = {}
        part[name] = number
    if part:
        yield json.dumps({STEP: step, **part})


def _append(lines: list[str]) -> None:
    file = output_dir() / METRICS_FILE
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise JobCodeError(
            f"The metrics cannot be written to {str(file)!r}: {error.strerror}."
            " Make the folder writable, or free space."
        ) from None
