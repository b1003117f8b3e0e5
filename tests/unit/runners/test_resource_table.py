"""The table of all resources side by side in `docs/clusters.md` says what their classes say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from prefect_launch.runners.base import Runner
from prefect_launch.runners.registry import runner_class, runner_names
from prefect_launch.runners.remote.base import RemoteRunner

PAGE = Path(__file__).resolve().parents[3] / "docs" / "clusters.md"


def _is_told(runner: type[Runner]) -> str:
    if not issubclass(runner, RemoteRunner):
        return "at once"
    return "the cluster tells" if runner.tells_changes else "one poll for all"


def _start(runner: type[Runner]) -> str:
    if not issubclass(runner, RemoteRunner):
        return "created, then started"
    return "held, then released" if runner.can_hold else "submitted at the start"


def _sources(runner: type[Runner]) -> str:
    names = sorted(source.name.lower() for source in runner.sources)
    with_option = " (where the queue sets `container`)" if "container" in runner.options else ""
    return ", ".join(f"{name}{with_option}" if name == "image" else name for name in names)


#: What the table says of a resource, row by row.
ROWS: Final[dict[str, Callable[[type[Runner]], str]]] = {
    "Sources": _sources,
    "Image built of a job's code": lambda runner: "yes" if runner.needs_image else "no",
    "Devices": lambda runner: "the agent gives them out" if runner.uses_this_machine else "the cluster's own",
    "Log streams": lambda runner: "two" if runner.separates_streams else "one",
    "Log arrives": lambda runner: "byte for byte" if runner.keeps_log_bytes else "as text",
    "Outputs that come back": lambda runner: "all files" if runner.returns_files else "`outputs.json`",
    "Files changed beside the code": lambda runner: "told, or kept" if runner.keeps_code_changes else "lost",
    "Files of other items as inputs": lambda runner: "yes" if runner.input_dir(Path()) else "no",
    "CPU and memory of a run": lambda runner: "sampled" if runner.tells_usage else "not told",
    "Commands inside a run": lambda runner: "no" if runner.exec_plan is Runner.exec_plan else "yes",
    "Start": _start,
    "State is known": _is_told,
    "Waits there without a slot": lambda runner: f"up to {runner.max_submitted}" if runner.max_submitted else "-",
    "Stop": lambda runner: f"TERM, then KILL; {runner.removed_message}",
    "Found again by": lambda runner: "its labels",
}


def table() -> str:
    """Return the table, as the page has it."""
    names = [name for name in runner_names() if runner_class(name).__module__.startswith("prefect_launch.runners.")]
    heads = ["", *(f"`{name}`" for name in names)]
    lines = [heads, ["---"] * len(heads)]
    lines += [[row, *(says(runner_class(name)) for name in names)] for row, says in ROWS.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def test_table_of_all_resources_is_what_their_classes_say() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"docs/clusters.md is to have this table:\n{table()}"


@pytest.mark.parametrize("name", [name for name in runner_names() if "memory" not in name])
def test_each_resource_elsewhere_says_how_many_may_wait_there(name: str) -> None:
    runner = runner_class(name)
    assert issubclass(runner, RemoteRunner) is (runner.max_submitted > 0)
