"""An item that runs another image than its tag meant when it was queued says so."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import AsyncMock
from uuid import UUID

import pytest

from prefect_launch.agent.item.failure_report import Facts, build_report
from prefect_launch.agent.item.hooks import warn_of_other_image
from prefect_launch.agent.item.outcome import outcome_of_exit
from prefect_launch.core.states import StateType
from prefect_launch.errors import UnreachableError
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.server.protocol import Server
from tests.support.bench import Bench

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
NAME = "registry.example:5000/team/train"
WANTED = f"{NAME}@{OLD}"


def plan(folder: Path, wanted: str | None = WANTED) -> RunPlan:
    run_dir = folder / "runs" / "i" / "1"
    return RunPlan(item_id="i", run_id="r", run_dir=run_dir, image=f"{NAME}:1", resolved_image=wanted)


@pytest.mark.parametrize("ran", [f"{NAME}@{NEW}", "sha256:" + "c" * 64])
async def test_item_is_told_which_image_was_meant_and_which_one_runs(bench: Bench, tmp_path: Path, ran: str) -> None:
    (item,) = await bench.add()

    await warn_of_other_image(bench.server, item.id, plan(tmp_path), ran)

    (line,) = (await bench.log(item)).splitlines()
    assert f"{NAME}:1 meant {OLD} when this was queued" in line
    assert line.endswith(f"the image of that name, {ran}.")


@pytest.mark.parametrize(("wanted", "ran"), [(WANTED, WANTED), (None, f"{NAME}@{NEW}"), (WANTED, None)])
async def test_item_of_the_image_that_was_meant_is_told_nothing(
    bench: Bench, tmp_path: Path, wanted: str | None, ran: str | None
) -> None:
    (item,) = await bench.add()

    await warn_of_other_image(bench.server, item.id, plan(tmp_path, wanted), ran)

    assert await bench.log(item) == ""


async def test_item_is_running_before_it_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def tell(_: Server, item_id: UUID, *__: object) -> None:
        seen.append((await bench.read(item_id)).state_type)

    monkeypatch.setattr("prefect_launch.agent.item.hooks.warn_of_other_image", tell)
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.COMPLETED)

    assert seen == [StateType.RUNNING]


@pytest.mark.parametrize("error", [UnreachableError("away"), RuntimeError("a fault of ours")])
async def test_line_that_cannot_be_written_is_no_fault(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (item,) = await bench.add()
    monkeypatch.setattr(bench.server, "write_logs", AsyncMock(side_effect=error))

    await warn_of_other_image(bench.server, item.id, plan(tmp_path), f"{NAME}@{NEW}")


@pytest.mark.parametrize(
    ("ran", "row"),
    [
        (f"{NAME}@{NEW}", f"| image when queued | `{WANTED}, not to be had here` |"),
        (None, f"| image when queued | `{WANTED}` |"),
        (WANTED, None),
    ],
)
async def test_certificate_tells_both_images_when_they_are_two(
    bench: Bench, tmp_path: Path, ran: str | None, row: str | None
) -> None:
    (item,) = await bench.add()
    end = ExitStatus(exit_code=3)

    page = build_report(item, outcome_of_exit(end), Facts(plan=plan(tmp_path), end=end, image=ran), comes_back=None)

    assert ("image when queued" in page.markdown()) == (row is not None)
    assert row is None or row in page.markdown()
    assert ran is None or f"| image digest | `{ran}` |" in page.markdown()
