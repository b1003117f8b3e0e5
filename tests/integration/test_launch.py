"""`launch` and `launch_add` in plain code and in flows, sync and async, as Prefect's client sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import docker
import pytest
from prefect import flow, task

from prefect_launch import ExecutionError, alaunch, alaunch_add, launch, launch_add
from prefect_launch.client.api import use_api
from prefect_launch.direct.launch import launch_flow
from prefect_launch.errors import NotFoundError, SpecError
from prefect_launch.runners.base import Labels
from tests.support.live import Site, prefect_client, until

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from tests.support.prefect_server import PrefectServerProcess


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A queue with a job that says hello."""
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job('echo "hello $WANDB_NAME"; echo \'{"acc": 0.5}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"')
    return site


def flow_runs(**filters: Any) -> list[FlowRun]:
    from prefect.client.schemas.filters import FlowRunFilter

    with prefect_client() as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(filters))


def task_runs(flow_run_id: object, count: int) -> list[str]:
    """Return the names of a flow run's tasks once there are so many: they are told by events, some time later."""
    return cast(list[str], until(lambda: names if len(names := _task_runs(flow_run_id)) >= count else None))


def _task_runs(flow_run_id: object) -> list[str]:
    from prefect.client.schemas.filters import FlowRunFilter

    with prefect_client() as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}}))
    return sorted(run.name.rpartition("-")[0] or run.name for run in found)


def subflows(parent: object) -> list[FlowRun]:
    return flow_runs(parent_flow_run_id={"any_": [parent]})


# --- launch ---


def test_launch_runs_the_job_here_and_now(site: Site) -> None:
    run = launch(site.api, job=site.name, name="me", run_id="r1")
    assert run.id == "r1"
    assert run.status == "finished"
    assert asyncio.run(run.get_logs()) == "hello me\n"


def test_launch_is_a_flow_run_with_its_tasks_log_and_outputs(site: Site) -> None:
    @flow
    def parent() -> str:
        from prefect.context import get_run_context

        launch(site.api, job=site.name, name="me")
        return str(get_run_context().flow_run.id)  # type: ignore[union-attr]

    (child,) = subflows(parent())
    assert child.state_name == "Completed"
    assert {"prepare", "run"} <= set(task_runs(child.id, 2))
    item = site.api.queued_run(child.id)
    assert "hello me" in site.log(item)
    assert any("0.5" in str(artifact.data) for artifact in site.artifacts(item))


def test_launch_has_a_chart_of_what_its_run_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.item.usage.CHARTED_SECONDS", 1.0)
    site.job("sleep 3")
    launch(site.api, job=site.name, name=f"{site.name} used")
    (run,) = flow_runs(name={"any_": [f"{site.name} used"]})

    (chart,) = site.usage_charts(site.api.queued_run(run.id))

    assert chart.key == f"usage-chart-{run.id}"
    assert "data:image/svg+xml;base64," in chart.data


async def test_alaunch_is_a_subflow_of_an_async_flow(site: Site) -> None:
    @flow
    async def parent() -> str:
        from prefect.context import get_run_context

        run = await alaunch(site.api, job=site.name)
        assert run.status == "finished"
        return str(get_run_context().flow_run.id)  # type: ignore[union-attr]

    (child,) = await asyncio.to_thread(subflows, await parent())
    assert child.state_name == "Completed"


async def test_launch_is_called_from_async_code_too(site: Site) -> None:
    assert launch(site.api, job=site.name).status == "finished"


def test_failing_launch_raises_with_the_exit_code_and_the_last_lines(site: Site) -> None:
    site.job("echo one; echo two; exit 4")
    with pytest.raises(ExecutionError) as raised:
        launch(site.api, job=site.name, name=f"{{two}} {site.name}")
    assert raised.value.exit_code == 4
    assert raised.value.last_lines == ("one", "two")
    (run,) = flow_runs(name={"any_": [f"{{two}} {site.name}"]})
    assert run.state_name == "Failed"


def test_failing_launch_is_run_again_as_its_retries_say_with_its_outputs_there_again(site: Site) -> None:
    twice = 'cd "$LAUNCH_OUTPUT_DIR" && echo x >> tries && [ "$(wc -l < tries)" = 2 ]'
    site.job(f'echo "try $LAUNCH_ATTEMPT"; {twice}')
    run = launch(site.api, job=site.name, config={"retries": {"max": 3, "on": ["failed"], "delay": 0}})
    assert run.status == "finished"
    assert asyncio.run(run.get_logs()) == "try 2\n"
    with pytest.raises(ExecutionError) as failed:
        launch(site.api, job=site.name, config={"retries": {"max": 3, "on": ["oom"], "delay": 0}})
    assert (failed.value.exit_code, failed.value.cause) == (1, "failed")


def test_wrong_launch_is_refused_before_anything_runs(site: Site) -> None:
    with pytest.raises(NotFoundError, match="Unknown job"):
        launch(site.api, job=f"{site.name}x")
    with pytest.raises(SpecError, match="Exactly one of"):
        launch(site.api)
    with pytest.raises(SpecError, match="cannot run on the resource"):
        launch(site.api, docker_image="busybox", resource="local-process")
    assert not (site.folder / "home" / "runs").exists()


def test_flow_run_of_a_refused_launch_says_in_its_state_what_the_error_says(site: Site) -> None:
    name = f"refused-{site.name}"

    async def refuse() -> None:
        await launch_flow.with_options(flow_run_name=name)(site.api, docker_image="a b")

    with pytest.raises(SpecError) as refused:
        asyncio.run(refuse())
    (run,) = flow_runs(name={"any_": [name]})
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Failed", str(refused.value))


@pytest.mark.engine
def test_launch_runs_a_container(site: Site, shell_image: str) -> None:
    run = launch(site.api, docker_image=shell_image, entry_point=["sh", "-c", "echo from inside"])
    assert asyncio.run(run.get_logs()) == "from inside\n"


@pytest.mark.engine
async def test_launch_that_is_interrupted_leaves_no_container_and_a_whole_log(site: Site, shell_image: str) -> None:
    name = f"interrupted-{site.name}"
    command = ["sh", "-c", "trap 'echo ended; exit 3' TERM; echo begun; while true; do sleep 0.1; done"]
    work = asyncio.ensure_future(
        launch_flow.with_options(flow_run_name=name)(site.api, docker_image=shell_image, entry_point=command)
    )

    def begun() -> FlowRun | None:
        runs = flow_runs(name={"any_": [name]})
        return next((run for run in runs if "begun" in site.log(site.api.queued_run(run.id))), None)

    while (found := await asyncio.to_thread(begun)) is None:
        assert not work.done()
        await asyncio.sleep(0.1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not docker.from_env().containers.list(all=True, filters={"label": f"{Labels.ITEM}={found.id}"})
    assert await asyncio.to_thread(site.log, site.api.queued_run(found.id)) == "begun\nended"


# --- launch_add ---


def test_launch_add_in_a_flow_is_a_task_of_it(site: Site) -> None:
    @flow
    def parent() -> tuple[str, list[str]]:
        from prefect.context import get_run_context

        runs = [launch_add(job=site.name, queue_name=site.name) for _ in range(2)]
        return str(get_run_context().flow_run.id), [run.id for run in runs]  # type: ignore[union-attr]

    with use_api(site.api):
        flow_run_id, ids = parent()
    assert task_runs(flow_run_id, 2) == ["launch_add", "launch_add"]
    assert {run.id for run in site.queue.items} == set(ids)
    assert len(ids) == 2


async def test_alaunch_add_in_an_async_flow_is_a_task_of_it(site: Site) -> None:
    @flow
    async def parent() -> str:
        from prefect.context import get_run_context

        await alaunch_add(job=site.name, queue_name=site.name)
        return str(get_run_context().flow_run.id)  # type: ignore[union-attr]

    with use_api(site.api):
        assert await asyncio.to_thread(task_runs, await parent(), 1) == ["launch_add"]


def test_retry_of_a_flow_finds_the_item_that_its_first_try_made(site: Site) -> None:
    tries: list[str] = []

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> str:
        tries.append(launch_add(job=site.name, queue_name=site.name).id)
        if len(tries) == 1:
            raise RuntimeError("something else went wrong")
        return tries[-1]

    with use_api(site.api):
        parent()
    assert len(tries) == 2
    assert len(set(tries)) == len(site.queue.items) == 1


@pytest.mark.parametrize("run_id", [None, "named"])
def test_retry_of_a_users_task_finds_the_items_that_its_first_try_made(site: Site, run_id: str | None) -> None:
    tries: list[list[str]] = []

    @task(retries=1, retry_delay_seconds=0)
    def submit() -> None:
        ids = [None, None] if run_id is None else ["a", "b"]
        tries.append([launch_add(job=site.name, queue_name=site.name, run_id=one).id for one in ids])
        if len(tries) == 1:
            raise RuntimeError("something else went wrong")

    @flow
    def parent() -> None:
        submit()

    with use_api(site.api.model_copy(update={"project": site.name})):
        parent()
    assert len(tries) == 2
    assert tries[0] == tries[1]
    assert len(site.queue.items) == 2


def test_retry_of_a_flow_runs_an_item_that_failed_once_more(site: Site) -> None:
    tries: list[str] = []

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> None:
        run = launch_add(job=site.name, queue_name=site.name)
        tries.append(run.id)
        if len(tries) == 1:
            run.cancel()
            run.wait_until_finished(timeout=60)

    with use_api(site.api):
        parent()
    assert len(set(tries)) == len(site.queue.items) == 2


def test_equal_items_of_one_flow_are_apart(site: Site) -> None:
    @flow
    def parent() -> set[str]:
        return {launch_add(job=site.name, queue_name=site.name).id for _ in range(3)}

    with use_api(site.api):
        assert len(parent()) == 3
