"""Summary of an offline W&B run: the file that it has left, or what `wandb` prints at its end.

wandb 0.16 leaves a file. Versions from 0.19 to 0.31 keep the summary in a binary file of their own, and print it, with
5 decimals, when the program ends its run (`wandb.finish()`, or `with wandb.init()`).
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, Final

from prefect_launch.core.masking import Mask
from prefect_launch.core.metrics import numbers_in

#: A summary that is larger is not read.
_SUMMARY_BYTES: Final = 1_000_000
_SUMMARIES: Final = "wandb/*run-*/files/wandb-summary.json"
#: Where the printed one may be, from the end of the log.
_TAIL_BYTES: Final = 1 << 20
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;]*m")
_ROW: Final = re.compile(rb"^wandb: +(?:(?P<head>Run summary:)|(?P<name>\S.*) (?P<value>\S+))$|^wandb:(?P<end>) *$")


def read_wandb_summary(output_dir: Path, log_path: Path, mask: Mask, *, wanted: str | None = None) -> dict[str, float]:
    """Return the numbers of a run's summaries, of the newest first; what W&B says of the run itself is none.

    Args:
        output_dir: the run's outputs.
        log_path: the run's log.
        mask: hides the run's secrets in what is read of the log.
        wanted: the metric that is read however many others there are.
    """
    summary: dict[str, float] = {}
    for file in sorted(output_dir.glob(_SUMMARIES), key=_changed_at):
        summary |= dict(numbers_in(_in_file(file), wanted))
    return summary or dict(numbers_in(_printed(_tail(log_path, mask)), wanted))


def _in_file(file: Path) -> dict[str, Any]:
    try:
        about = file.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _SUMMARY_BYTES:
            return {}
        found = json.loads(file.read_bytes(), parse_constant=str)
    except (OSError, ValueError, RecursionError):
        return {}
    # What W&B reports on the run itself begins with an underscore.
    return {name: value for name, value in found.items() if name[:1] != "_"} if isinstance(found, dict) else {}


def _printed(log: bytes) -> dict[str, float]:
    """Return what `wandb` has printed as `wandb:     loss 0.2`, below a heading and up to an empty row."""
    found: dict[str, float] = {}
    is_inside = False
    for row in filter(None, map(_ROW.match, _COLOUR.sub(b"", log).splitlines())):
        if row["head"] or row["end"] is not None:
            is_inside = row["head"] is not None
        elif is_inside:
            try:
                found[row["name"].decode("utf-8", "replace")] = float(row["value"])
            except ValueError:
                continue  # a text, or how many more there are
    return found


def _tail(log_path: Path, mask: Mask) -> bytes:
    try:
        size = log_path.stat().st_size
        begin = max(0, size - _TAIL_BYTES)
        return mask.shown(mask.read(log_path, begin, size - begin))
    except OSError:
        return b""


def _changed_at(file: Path) -> float:
    try:
        return file.lstat().st_mtime
    except OSError:
        return 0.0
