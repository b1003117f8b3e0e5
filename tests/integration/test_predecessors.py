"""Items of a real server that start after others, run by a real agent."""

from __future__ import annotations

from prefect_launch.core.states import StateType
from tests.support.live import Site


def test_items_start_after_others_and_end_when_one_of_those_has_failed(site: Site) -> None:
    bad = f"{site.name}-bad"
    site.job(f'[ "$LAUNCH_RUN_ID" != {bad} ]\n')
    first, failing = site.add({"run_id": f"{site.name}-good"}, {"run_id": bad})
    second, last = (site.add(after=[one.id])[0] for one in (first, failing))
    (never,) = site.add(after=[last.id, second.id], priority="high")
    first.set_priority("low")

    site.work_off(max_jobs=3)

    ends = [run.item for run in (first, second, failing, last, never)]
    assert [item.state_type for item in ends] == [
        *(StateType.COMPLETED, StateType.COMPLETED, StateType.FAILED),
        *(StateType.CANCELLED, StateType.CANCELLED),
    ]
    completed, started = ends[0].end_time, ends[1].start_time
    assert completed is not None
    assert started is not None
    assert completed <= started
    assert f"Its predecessor {failing.name}" in ends[3].message
    assert site.states(last) == ["Queued", "Cancelled", "Cancelled"]
