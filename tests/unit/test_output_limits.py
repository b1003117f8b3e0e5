"""Limits of outputs, and the links among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_launch.core.output_limits import DEFAULT_OUTPUT_LIMITS, LeftOut, OutputLimits, OutputLinks, Selection
from prefect_launch.errors import AgentConfigError, QueueError
from prefect_launch.policy.template import QueueConfig
from prefect_launch.settings.agent_config import parse_agent_config
from tests.support.queue_config import make_config

GIBIBYTE = 1024**3


def test_agent_has_limits_unless_it_says_that_it_has_none() -> None:
    assert parse_agent_config({}).outputs == OutputLimits(max_bytes=20 * GIBIBYTE, max_files=10_000)
    assert parse_agent_config({"outputs": {"max_bytes": "1g"}}).outputs == OutputLimits(
        max_bytes=GIBIBYTE, max_files=DEFAULT_OUTPUT_LIMITS.max_files
    )
    none = {"outputs": {"max_bytes": "none", "max_files": "none"}}
    assert parse_agent_config(none).machine.outputs == OutputLimits(max_bytes=None, max_files=None)


@pytest.mark.parametrize(
    "outputs", [{"max_bytes": "many"}, {"max_files": "x"}, {"max_files": -1}, {"max_files": True}, {"max_size": 1}, 5]
)
def test_wrong_limits_are_refused_by_agent_and_queue(outputs: Any) -> None:
    with pytest.raises(AgentConfigError, match="outputs"):
        parse_agent_config({"outputs": outputs})
    with pytest.raises(QueueError, match="outputs"):
        make_config("local-process", {"outputs": outputs}, None)


def test_queue_keeps_its_limits_beside_its_options() -> None:
    config = make_config("local-process", {"nice": 5, "outputs": {"max_bytes": "2k", "max_files": 3}}, None)

    assert config.resource_args == {"nice": 5}
    again = QueueConfig.from_template("gpu", config.to_template())
    assert again == config
    assert again.outputs == OutputLimits(max_bytes=2048, max_files=3)
    assert "outputs" not in make_config("local-process", {}, None).to_template()["job_configuration"]


def test_narrower_of_two_limits_holds_each_by_itself() -> None:
    ours, theirs = OutputLimits(max_bytes=10, max_files=None), OutputLimits(max_bytes=20, max_files=5)

    assert ours.within(theirs) == theirs.within(ours) == OutputLimits(max_bytes=10, max_files=5)
    assert OutputLimits().within(OutputLimits()) == OutputLimits()


def test_file_that_does_not_fit_is_left_out_and_smaller_ones_after_it_are_kept() -> None:
    selection = Selection(OutputLimits(max_bytes=3000, max_files=3))

    taken = [selection.takes(name, size) for name, size in (("a", 1000), ("b", 2001), ("c", 2000), ("d", 0), ("e", 0))]

    assert taken == [True, False, True, True, False]
    assert selection.left_out.named == (
        "b: it has 2.0 KiB, and 1000 B are kept already",
        "e: it is over the limit of 3 files",
    )


def test_what_is_left_out_is_reported_in_a_few_lines_however_much_it_is() -> None:
    selection = Selection(OutputLimits(max_files=0))
    for number in range(1000):
        selection.takes(f"file-{number}\n\x1b[31m\udcff", 1)

    told = selection.left_out.describe(OutputLimits(max_bytes=GIBIBYTE, max_files=0))

    lines = told.splitlines()
    assert len(lines) == 23
    assert lines[0] == "1,000 of the run's outputs are not kept:"
    assert lines[1] == "  file-0\ufffd\ufffd[31m?: it is over the limit of 0 files"
    assert lines[-2] == "  and 980 more"
    assert lines[-1].startswith("At most 1.0 GiB and 0 files are kept of a run")
    links = LeftOut(count=1, named=("x: it is a link",))
    assert links.describe(OutputLimits(max_files=5)) == "1 of the run's outputs is not kept:\n  x: it is a link"
    assert LeftOut(count=1, named=("x: it is a link",)).summary() == "1 of the run's outputs is not kept"


OUT = "it is a link that leads out of the outputs folder"
NOTHING = "it is a link to what is not kept"


@pytest.mark.parametrize(
    ("links", "told"),
    [
        ({"latest": "run"}, []),
        ({"latest": "run", "log": "latest/a.log"}, []),
        ({"deep/log": "../run/a.log"}, []),
        ({"all": "."}, []),
        ({"log": "/launch/outputs/run/a.log"}, []),
        ({"core": "/root/.cache/wandb/logs/core-debug-1.log"}, []),
        ({"log": "run/b.log"}, [f"log: {NOTHING}"]),
        ({"one": "two", "two": "one"}, [f"one: {NOTHING}", f"two: {NOTHING}"]),
        ({"passwd": "/etc/passwd"}, [f"passwd: {OUT}"]),
        ({"up": "../other"}, [f"up: {OUT}"]),
        ({"other": "/launch/outputs-of-another/run"}, [f"other: {OUT}"]),
        ({"deep/up": "../../x", "on": "deep/up/y"}, [f"deep/up: {OUT}", f"on: {OUT}"]),
        ({"back": "/launch/outputs/../x"}, [f"back: {OUT}"]),
    ],
)
def test_link_is_reported_when_it_leads_out_or_to_nothing_that_is_kept(
    links: dict[str, str], told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.log").write_text("x")
    found, selection = OutputLinks(["/launch/outputs"]), Selection(OutputLimits())
    for name, target in links.items():
        found.add(name, target)

    found.leave_out(tmp_path, selection)

    assert list(selection.left_out.named) == told
