"""Links among a run's outputs: which are a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.core.output_limits import OutputLimits, OutputLinks, Selection

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
def test_link_is_told_when_it_leads_out_or_to_nothing_that_is_kept(
    links: dict[str, str], told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.log").write_text("x")
    found, selection = OutputLinks(["/launch/outputs"]), Selection(OutputLimits())
    for name, target in links.items():
        found.add(name, target)

    found.leave_out(tmp_path, selection)

    assert list(selection.left_out.named) == told
