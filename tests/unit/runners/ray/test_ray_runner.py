"""The runner of Ray jobs on an in-memory Jobs API: what the API may answer, and what the runner makes of it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_launch.agent.item.outcome import outcome_of_exit
from prefect_launch.core import supervision
from prefect_launch.core.masking import Mask
from prefect_launch.errors import InfrastructureError, LaunchError, QueueError, SpecError, UnreachableError
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.ray import cluster
from prefect_launch.runners.remote.ray.runner import RayRunner
from prefect_launch.spec.scheduling import Cause
from tests.unit.runners.ray.api import NODE, Fault, RayApi, plan_in, submitted


def answers(status: int, text: str = "", *, method: str = "GET", **headers: str) -> Fault:
    """Return a fault that answers one request of a method."""
    return lambda request: httpx.Response(status, text=text, headers=headers) if request.method == method else None


async def test_job_is_submitted_under_the_runs_name_with_its_labels_and_what_it_asks_for(tmp_path: Path) -> None:
    api = RayApi()
    options = {"cpus": 2, "memory": "1g", "resources": {"tpu": 1}, "env": {"A": "1"}}
    api.nodes[0]["tpu"] = 1.0
    plan = plan_in(tmp_path, "python", "a b.py", args=("it's",), options=options, stop_seconds=7.5)
    await submitted(api.runner(tmp_path), plan)
    [job] = api.jobs.values()
    assert job["submission_id"] == plan.name
    assert job["metadata"].items() >= plan.labels.items()
    assert job["entrypoint"].startswith("set -- python 'a b.py' 'it'\"'\"'s'\n")
    asked = {name: value for name, value in job.items() if name.startswith("entrypoint_")}
    assert asked == {"entrypoint_num_cpus": 2.0, "entrypoint_memory": 1024**3, "entrypoint_resources": {"tpu": 1.0}}
    env = job["runtime_env"]["env_vars"]
    assert (env["A"], env["RAY_JOB_STOP_WAIT_TIME_S"], env["RAY_JOB_STOP_SIGNAL"]) == ("1", "8", "SIGTERM")


async def test_grace_of_a_stop_is_the_agents_and_set_when_the_job_is_submitted(tmp_path: Path) -> None:
    api = RayApi()
    runner = api.runner(tmp_path)
    runner.stop_seconds = 45.0
    await submitted(runner, plan_in(tmp_path))
    [job] = api.jobs.values()
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "45"


async def test_variable_with_a_dollar_sign_is_set_by_the_job_since_ray_would_expand_it(tmp_path: Path) -> None:
    api = RayApi()
    await submitted(api.runner(tmp_path), plan_in(tmp_path, env={"PRICE": "5 $HOME", "B": "1"}))
    [job] = api.jobs.values()
    assert "PRICE" not in job["runtime_env"]["env_vars"]
    assert "export PRICE='5 $HOME'\n" in job["entrypoint"]


async def test_second_submission_of_a_name_finds_the_first_whatever_ray_answers(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    handle = await submitted(api.runner(tmp_path), plan)
    assert await submitted(api.runner(tmp_path), plan) == handle
    assert len(api.jobs) == 1


async def test_submission_whose_answer_was_lost_is_found_by_its_name(tmp_path: Path) -> None:
    api, runner, plan = RayApi(), None, plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await runner.create(plan)

    def lose(request: httpx.Request) -> httpx.Response | None:
        if request.method == "POST":
            api.faults.remove(lose)
            api.lost_answers = 1
        return None

    api.faults.append(lose)
    with pytest.raises(UnreachableError, match="lost"):
        await runner.start(handle)
    await runner.start(handle)
    assert len(api.jobs) == 1
    assert (await runner.find({}))[0].handle == handle


@pytest.mark.parametrize(
    ("status", "text", "kind", "said"),
    [
        (400, "Traceback\nTypeError: entrypoint must be a string", SpecError, "entrypoint must be a string"),
        (500, "RuntimeError: Request failed with status code 400: bad env", SpecError, "Correct its options"),
        (500, "No available agent to submit job, please try again later.", UnreachableError, "not ready"),
        (500, "Traceback\nRuntimeError: no space left", InfrastructureError, "no space left"),
        (503, "", UnreachableError, "HTTP 503"),
        (429, "", UnreachableError, "HTTP 429"),
    ],
)
async def test_refused_submission_says_why_and_whose_fault_it_is(
    tmp_path: Path, status: int, text: str, kind: type[LaunchError], said: str
) -> None:
    api = RayApi(faults=[answers(status, text, method="POST")])
    with pytest.raises(kind, match=said) as raised:
        await submitted(api.runner(tmp_path), plan_in(tmp_path))
    assert isinstance(raised.value, UnreachableError) is (kind is UnreachableError)
    assert not api.jobs


@pytest.mark.parametrize("status", [401, 403, 302, 502])
async def test_ping_says_that_the_cluster_lets_nobody_in(tmp_path: Path, status: int) -> None:
    api = RayApi(faults=[answers(status)])
    with pytest.raises(UnreachableError, match=f"HTTP {status}"):
        await api.runner(tmp_path).ping()


async def test_call_that_a_busy_head_refuses_is_made_again_when_it_asks_for_that(tmp_path: Path) -> None:
    api = RayApi(faults=[answers(429, **{"retry-after": "0"})])
    await api.runner(tmp_path).ping()
    assert len(api.calls) == 2


async def test_head_that_hangs_is_unreachable(tmp_path: Path) -> None:
    def hang(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    with pytest.raises(UnreachableError, match="ReadTimeout"):
        await RayApi(faults=[hang]).runner(tmp_path).ping()


async def test_something_else_at_the_address_is_told(tmp_path: Path) -> None:
    for page in ("<html>", '{"status": "ok"}'):
        with pytest.raises(InfrastructureError, match="is no Ray dashboard"):
            await RayApi(faults=[answers(200, page)]).runner(tmp_path).ping()


async def test_more_than_any_node_has_is_refused_before_it_waits_for_ever(tmp_path: Path) -> None:
    api = RayApi(nodes=[{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}], used=[{}, {}])
    with pytest.raises(
        SpecError, match=r"No node of the Ray cluster can give 8 GPU \(the most that one has is 1 GPU\)"
    ):
        await api.runner(tmp_path).create(plan_in(tmp_path, options={"gpus": 8}))
    with pytest.raises(SpecError, match="no node has all of it together"):
        await api.runner(tmp_path).create(plan_in(tmp_path, options={"gpus": 1, "cpus": 4}))
    assert not api.jobs
    api.node_types = ("ray.head.default", "ray.worker.gpu")  # An autoscaler may start one that has it.
    await submitted(api.runner(tmp_path), plan_in(tmp_path, options={"gpus": 8}))


async def test_waiting_job_says_what_it_waits_for(tmp_path: Path) -> None:
    api = RayApi(used=[{"CPU": 3.0}])
    runner, reasons = api.runner(tmp_path), asyncio.Queue[str]()
    handle = await submitted(runner, plan_in(tmp_path, options={"cpus": 4}))
    waiting = asyncio.create_task(runner.wait_running(handle, reasons.put))
    assert await asyncio.wait_for(reasons.get(), 30) == "PENDING: waits for 4 CPU; a node has at most 1 CPU free"
    api.jobs[RunHandle.parse(handle).job] |= {"status": "RUNNING", "driver_node_id": NODE}
    await asyncio.wait_for(waiting, 30)
    await runner.aclose()


async def test_one_call_tells_of_all_jobs_and_few_jobs_are_asked_for_one_by_one(tmp_path: Path) -> None:
    api = RayApi()
    runner = api.runner(tmp_path)
    first = RunHandle.parse(await submitted(runner, plan_in(tmp_path))).job
    api.calls.clear()
    assert list(await runner.poll({first})) == [first]
    assert api.calls == [f"GET /api/jobs/{first}"]
    handles = [await submitted(runner, plan_in(tmp_path)) for _ in range(20)]
    api.calls.clear()
    jobs = await runner.poll({RunHandle.parse(handle).job for handle in handles})
    assert (len(jobs), api.calls) == (20, ["GET /api/jobs/"])


async def test_nothing_is_kept_of_jobs_of_others_and_of_jobs_that_were_removed(tmp_path: Path) -> None:
    api = RayApi()
    runner = api.runner(tmp_path)
    for number in range(200):
        body = {"submission_id": f"old-{number}", "entrypoint": "x", "metadata": {"a": "b"}, "driver_node_id": NODE}
        api.jobs[f"old-{number}"] = {**body, "status": "SUCCEEDED"}
    plan = plan_in(tmp_path)
    handle = await submitted(runner, plan)
    api.end(plan.name, driver_node_id=NODE)
    assert [one.handle for one in await runner.find({})] == [handle]
    await runner.watch(handle, plan)
    await runner.remove(handle)
    assert not runner._cluster._known
    assert not runner._unanswered
    assert not [one for one in (tmp_path / "remote").rglob("*") if one.is_file()]
    await runner.aclose()


# --- logs and ends ---


def marked(name: str, content: bytes, *, end: str = "0", words: tuple[str, ...] = ()) -> bytes:
    """Return what a job's log has in Ray."""
    lines = "".join(f"\x1e[{name}@claim-1] {word}\n" for word in (*words, f"end {end}"))
    front = b"2026-01-01 INFO -- Runtime env is setting up.\nRunning entrypoint for job x: set -- a\n"
    return front + f"\x1e[{name}@claim-1] begin\n".encode() + content + lines.encode()


async def test_log_that_ray_appended_to_that_of_an_older_claim_begins_where_its_own_job_does(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    await submitted(runner, plan)
    api.logs[plan.name] = marked(plan.name, b"old\n").replace(b"claim-1", b"lost") + marked(plan.name, b"new\n")
    api.end(plan.name, driver_node_id=NODE)
    assert b"".join([part.content async for part in runner.read_logs(plan.name, None)]) == b"new\n"
    await runner.aclose()


async def test_log_has_what_the_job_wrote_and_nothing_of_rays(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    content = b"one\nb\xffd \x1e[odd, no newline"
    api.logs[plan.name] = marked(plan.name, content, words=("outputs eyJhIjogMX0=", "files 2"))
    api.end(plan.name, driver_node_id=NODE)
    end = await runner.watch(handle, plan)
    assert (end.exit_code, end.succeeded, end.log_complete, end.warnings) == (0, True, True, ())
    assert plan.log_path.read_bytes() == content
    assert (plan.output_dir / "outputs.json").read_text() == '{"a": 1}'
    assert end.left_out.named == (
        "2 files beside outputs.json: not brought from the node: the queue has set no output_dir, a folder that nodes"
        " and agent share",
    )
    await runner.aclose()


async def test_log_goes_on_at_any_position_with_no_gap_and_no_repeat(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    await submitted(runner, plan)
    content = b"".join(b"line %d \x1e[x\n" % number for number in range(300))
    whole = marked(plan.name, content)
    api.end(plan.name, driver_node_id=NODE)
    got, position = b"", None
    for size in range(0, len(whole) + 37, 37):
        api.logs[plan.name] = whole[:size]
        async for part in runner.read_logs(plan.name, position):
            got, position = got + part.content, part.position
    assert got == content


async def test_log_of_two_hundred_thousand_lines_is_read_whole(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    content = b"".join(b"line %d\n" % number for number in range(200_000))
    api.logs[plan.name] = marked(plan.name, content)
    api.end(plan.name, driver_node_id=NODE)
    assert (await runner.watch(handle, plan)).log_complete
    assert plan.log_path.read_bytes() == content
    await runner.aclose()


@pytest.mark.parametrize(
    ("ended", "log", "expected"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, "0", {"exit_code": 0, "signal": None, "error": None}),
        (
            {"status": "FAILED", "driver_exit_code": 3, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"},
            "3",
            {"exit_code": 3, "signal": None, "error": None, "stopped": False},
        ),
        (
            {"status": "FAILED", "driver_exit_code": -9, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"},
            None,
            {"exit_code": 137, "signal": "SIGKILL", "error": None},
        ),
        (
            {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "The node died"},
            None,
            {"exit_code": None, "error": "Ray lost the job (JOB_SUPERVISOR_ACTOR_DIED): The node died"},
        ),
        (
            {"status": "STOPPED"},
            "143",
            {"exit_code": 143, "signal": "SIGTERM", "stopped": False, "ended_by_others": True},
        ),
        (
            {"status": "STOPPED"},
            None,
            {"exit_code": 137, "signal": "SIGKILL", "stopped": False, "ended_by_others": True},
        ),
    ],
)
async def test_end_is_told_as_a_shell_tells_it(
    tmp_path: Path, ended: dict[str, Any], log: str | None, expected: dict[str, Any]
) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    whole = marked(plan.name, b"x\n", end=log or "")
    api.logs[plan.name] = whole if log else whole[: whole.rindex(b"\x1e")]
    api.end(plan.name, driver_node_id=NODE, **ended)
    end = await runner.watch(handle, plan)
    assert {name: getattr(end, name) for name in expected} == expected
    assert end.duration_seconds == 2.0
    assert any("out of memory" in one for one in end.warnings) is (ended.get("driver_exit_code") == -9)
    await runner.aclose()


@pytest.mark.parametrize(("log", "code"), [("143", 143), (None, 137)])
async def test_stop_that_an_earlier_life_of_the_agent_asked_for_is_its_own(
    tmp_path: Path, log: str | None, code: int
) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.jobs[plan.name] |= {"status": "RUNNING", "driver_node_id": NODE}
    whole = marked(plan.name, b"x\n", end=log or "")
    api.logs[plan.name] = whole if log else whole[: whole.rindex(b"\x1e")]
    await runner.stop(handle, 1.0)
    await runner.aclose()
    successor = api.runner(tmp_path)
    end = await successor.watch(handle, plan)
    assert (end.stopped, end.exit_code, end.error) == (True, code, None)
    await successor.aclose()


async def test_stopped_job_whose_start_ray_does_not_tell_has_the_exit_code_of_its_log(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.jobs[plan.name] |= {"status": "RUNNING", "driver_node_id": NODE}
    api.logs[plan.name] = marked(plan.name, b"x\n", end="143")
    await runner.stop(handle, 1.0)
    api.jobs[plan.name]["start_time"] = None
    end = await runner.watch(handle, plan)
    assert (end.stopped, end.exit_code, end.error, end.started_at) == (True, 143, None, None)
    await runner.aclose()


async def test_job_that_somebody_stops_in_ray_is_told_as_that_and_lost(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.end(plan.name, "STOPPED", message="Job was intentionally stopped.")  # Before it had a process.
    end = await runner.watch(handle, plan)
    outcome = outcome_of_exit(end)
    assert (end.exit_code, outcome.state.name, outcome.cause) == (None, "CRASHED", Cause.LOST)
    assert outcome.message == "[run] STOPPED: somebody stopped it on ray, and not this agent"
    await runner.aclose()


async def test_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path, "no-such-program")
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    message = f"failed with exit code 127, last available logs:\n\x1e[{plan.name}@claim-1] end 127 no-program\n"
    kind = "JOB_ENTRYPOINT_COMMAND_ERROR"
    api.end(plan.name, "FAILED", driver_node_id=NODE, driver_exit_code=127, error_type=kind, message=message)
    end = await runner.watch(handle, plan)
    assert end.exit_code == 127
    assert "no-such-program is not there" in end.describe()
    await runner.aclose()


@pytest.mark.parametrize(
    ("error_type", "kind"),
    [("RUNTIME_ENV_SETUP_FAILURE", SpecError), ("JOB_SUPERVISOR_ACTOR_START_TIMEOUT", InfrastructureError)],
)
async def test_job_that_ray_could_not_start_says_whose_fault_it_is(
    tmp_path: Path, error_type: str, kind: type[LaunchError]
) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.end(plan.name, "FAILED", error_type=error_type, message="runtime_env setup failed: no such package")
    with pytest.raises(kind, match="no such package"):
        await runner.wait_running(handle, lambda reason: asyncio.sleep(0))
    await runner.aclose()


async def test_head_that_was_started_anew_is_told_as_the_loss_of_its_jobs(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.jobs.clear()
    api.session = "session-2"
    assert "the head of the Ray cluster was started anew" in await api.runner(tmp_path).why_gone(handle)
    end = await runner.watch(handle, plan)
    assert (end.exit_code, end.stopped) == (None, False)
    assert "the head of the Ray cluster was started anew" in end.describe()
    await runner.aclose()


async def test_job_that_somebody_deletes_is_told_as_such(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.jobs.clear()
    assert "somebody else removed it from ray" in (await runner.watch(handle, plan)).describe()
    await runner.aclose()


async def test_job_that_waits_is_stopped_by_killing_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_START_SECONDS", 0.0)
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)

    def kill(request: httpx.Request) -> httpx.Response | None:
        if request.method != "POST" or request.url.path != "/api/jobs/":
            return None
        body = json.loads(request.content)
        assert "ray.kill" in body["entrypoint"]
        api.jobs[body["submission_id"]] = {**body, "status": "SUCCEEDED"}
        api.end(plan.name, "FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message="killed")
        return httpx.Response(200, json={})

    api.faults.append(kill)
    await runner.stop(handle, 0.0)
    end = await runner.watch(handle, plan)
    assert (end.stopped, end.exit_code, end.describe()) == (True, None, "it had not started")
    until = time.monotonic() + 30
    while list(api.jobs) != [plan.name]:  # The job that killed it is removed.
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    await runner.aclose()


async def test_removal_that_fails_unforeseen_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.01)
    api = RayApi()
    runner, body = api.runner(tmp_path), {"submission_id": "killer", "entrypoint": "true", "metadata": {}}
    await runner._cluster.submit(body)
    api.end("killer")

    def fail(request: httpx.Request) -> httpx.Response | None:
        if request.method == "DELETE":
            api.faults.remove(fail)
            raise ValueError("not foreseen")
        return None

    api.faults.append(fail)
    runner._cluster.remove_killer("killer")
    await asyncio.wait_for(runner._cluster._removing.done(), 60)
    assert "task-failed removal of job killer of Ray (1 within 300 s): ValueError('not foreseen')" in caplog.text
    assert not api.jobs
    await runner.aclose()


async def test_ended_job_that_killed_another_is_removed_by_the_successor_of_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_START_SECONDS", 0.0)
    api, plan = RayApi(), plan_in(tmp_path)
    runner, successor = api.runner(tmp_path), api.runner(tmp_path)
    handle = await submitted(runner, plan)

    def is_killer(name: str) -> bool:
        return name.startswith(f"{plan.name}-stop-")

    stopping = asyncio.create_task(runner.stop(handle, 0.0))
    until = time.monotonic() + 30
    while not any(map(is_killer, api.jobs)):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    stopping.cancel()  # As by kill -9.
    await asyncio.wait({stopping})
    killer = next(filter(is_killer, api.jobs))
    assert [one.handle for one in await successor.find({})] == [handle]
    assert killer in api.jobs  # It has not ended.
    api.end(killer)
    while killer in api.jobs:
        assert time.monotonic() < until
        assert [one.handle for one in await successor.find({Labels.ITEM: plan.item_id})] == [handle]
        await asyncio.sleep(0.01)
    assert list(api.jobs) == [plan.name]
    await runner.aclose()
    await successor.aclose()


async def test_error_of_a_runtime_environment_is_told_without_rays_own_frames(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path, image="train:1")
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    message = (
        "runtime_env setup failed: Failed to set up runtime environment.\nTraceback (most recent call last):\n"
        '  File "/ray/plugin.py", line 255, in create\n    await plugin.create(uri)\n    ^^^^^^^^^\n'
        "FileNotFoundError: [Errno 2] No such file or directory: 'podman'\n"
    )
    api.end(plan.name, "FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message=message)
    with pytest.raises(SpecError) as raised:
        await runner.wait_running(handle, lambda reason: asyncio.sleep(0))
    assert str(raised.value) == (
        "Ray could not make the job's runtime environment. The image 'train:1' needs podman on the nodes, and the"
        " cluster's Ray in it. runtime_env setup failed: Failed to set up runtime environment.\n"
        "FileNotFoundError: [Errno 2] No such file or directory: 'podman'."
    )
    await runner.aclose()


# --- outputs in a shared folder ---


async def test_outputs_come_back_from_the_folder_that_nodes_and_agent_share(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path, options={"output-dir": str(tmp_path / "shared")})
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    folder = tmp_path / "shared" / f"{plan.name}-claim-1"
    assert f"LAUNCH_OUTPUT_DIR={folder}\n" in api.jobs[plan.name]["entrypoint"]
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file.txt").write_text("hello")
    api.logs[plan.name] = marked(plan.name, b"", words=("files 1",))
    api.end(plan.name, driver_node_id=NODE)
    end = await api.runner(tmp_path).watch(handle, plan.model_copy(update={"options": {}}))  # An agent's successor.
    assert not end.left_out
    assert (plan.output_dir / "deep" / "file.txt").read_text() == "hello"
    await runner.remove(handle)
    assert not folder.exists()
    await runner.aclose()


# --- secrets ---


async def test_secret_is_refused_until_the_queues_owner_lets_ray_show_it(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, env={"TOKEN": "x hunter22 y"}, mask=Mask(["hunter22"]))
    runner = RayApi().runner(tmp_path)
    with pytest.raises(QueueError, match=r"\(TOKEN\).*resource_args\.ray\.secrets = true") as raised:
        runner.check(plan)
    assert "hunter22" not in str(raised.value)
    runner.check(plan.model_copy(update={"options": {"secrets": True}}))
    with pytest.raises(QueueError, match="its arguments"):
        runner.check(plan.model_copy(update={"env": {}, "args": ("--token=hunter22",)}))


async def test_secret_in_a_runtime_environment_is_refused_too(tmp_path: Path) -> None:
    index = "--index-url https://user:hunter22@host/pypi"
    plan = plan_in(tmp_path, options={"runtime-env": {"pip": [index]}}, mask=Mask(["hunter22"]))
    with pytest.raises(QueueError, match=r"\(its runtime_env\)"):
        RayApi().runner(tmp_path).check(plan)


async def test_password_of_an_index_is_not_told_by_the_error_of_a_runtime_environment(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    message = "ERROR: Could not fetch https://user:hunter22@host/pypi/torch"
    api.end(plan.name, "FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message=message)
    with pytest.raises(SpecError) as raised:
        await runner.wait_running(handle, lambda reason: asyncio.sleep(0))
    assert "https://***@host/pypi/torch" in str(raised.value)
    await runner.aclose()


def test_refused_runtime_environment_is_told_without_its_values() -> None:
    options = {"runtime-env": {"env_vars": {"TOKEN": "hunter22"}, "pip": ["https://user:hunter22@host/x.whl"]}}
    with pytest.raises(SpecError) as raised:
        RayRunner.check_options(options)
    assert "the keys env_vars, pip" in str(raised.value)
    assert "hunter22" not in str(raised.value)


async def test_labels_of_an_older_claim_are_those_of_another_run(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    await submitted(api.runner(tmp_path), plan)
    api.end(plan.name)
    new = plan.model_copy(update={"labels": {**plan.labels, Labels.CLAIM: "claim-2"}})
    await submitted(api.runner(tmp_path), new)
    assert api.jobs[plan.name]["metadata"][Labels.CLAIM] == "claim-2"


# --- what is not Ray's own word ---

NOT_RAYS = [
    (404, "404: Not Found"),
    (404, "<html>The page that you have asked for does not exist</html>"),
    (200, "<html>Sign in</html>"),
    (200, "{}"),
    (500, "Traceback"),
]


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(("status", "text"), NOT_RAYS)
async def test_answer_that_is_not_rays_own_ends_no_run(tmp_path: Path, status: int, text: str, count: int) -> None:
    api = RayApi()
    runner = api.runner(tmp_path)
    plans = [plan_in(tmp_path) for _ in range(count)]
    handles = [await submitted(runner, plan) for plan in plans]
    asked, enough = list[float](), asyncio.Event()

    def proxy(request: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        # For far longer than a job may be left out.
        if len(asked) > 5 * count and asked[-1] - asked[0] > 5 * runner.lag_seconds:
            enough.set()
        return httpx.Response(status, text=text)

    api.proxy = proxy
    watching = [asyncio.create_task(runner.watch(*one)) for one in zip(handles, plans, strict=True)]
    await asyncio.wait_for(enough.wait(), 60)
    assert not any(task.done() for task in watching)
    api.proxy = lambda request: None
    for plan in plans:
        api.end(plan.name, driver_node_id=NODE)
    ends = await asyncio.wait_for(asyncio.gather(*watching), 60)
    assert [end.exit_code for end in ends] == [0] * count
    await runner.aclose()


async def test_head_that_was_started_anew_is_told_as_such_once_it_says_which_it_is(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.jobs.clear()
    api.session = "session-2"
    api.faults += [lambda request: httpx.Response(404) if request.url.path == "/api/version" else None] * 2
    end = await asyncio.wait_for(runner.watch(handle, plan), 60)
    assert "the head of the Ray cluster was started anew" in end.describe()
    assert not api.faults
    await runner.aclose()


@pytest.mark.parametrize(("status", "text"), [one for one in NOT_RAYS if one[0] != 200])
async def test_stop_that_ray_was_not_asked_for_is_not_taken_for_one(tmp_path: Path, status: int, text: str) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    api.jobs[plan.name]["status"] = "RUNNING"
    api.faults.append(lambda request: httpx.Response(status, text=text) if request.method == "POST" else None)
    with pytest.raises(UnreachableError):
        await runner.stop(handle, 0.0)
    await runner.stop(handle, 0.0)
    assert api.jobs[plan.name]["status"] == "STOPPED"
    await runner.aclose()


# --- a stop right after a submission that was not answered ---


async def test_submission_that_arrives_after_its_stop_starts_nothing(tmp_path: Path) -> None:
    api, plan, late = RayApi(), plan_in(tmp_path), list[httpx.Request]()
    runner = api.runner(tmp_path)
    handle = await runner.create(plan)

    def delay(request: httpx.Request) -> httpx.Response | None:
        if request.method != "POST" or late:
            return None
        late.append(request)
        raise httpx.ReadTimeout("no answer", request=request)

    api.proxy = delay
    with pytest.raises(UnreachableError):
        await runner.start(handle)
    assert not api.jobs

    def end(request: httpx.Request) -> httpx.Response | None:
        if request.method == "GET" and plan.name in api.jobs:
            api.end(plan.name, "FAILED", driver_exit_code=143, error_type="JOB_ENTRYPOINT_COMMAND_ERROR")
        return None

    api.proxy = end
    await runner.stop(handle, 0.0)
    assert api.answer(late[0]).status_code == 500
    assert api.jobs[plan.name]["entrypoint"] == "exit 143"
    told = await runner.watch(handle, plan)
    assert (told.stopped, told.exit_code, told.describe()) == (True, None, "it had not started")
    await runner.remove(handle)
    assert not api.jobs
    await runner.aclose()


@pytest.mark.parametrize("status", [401, 429, 302])
async def test_submission_that_never_came_to_ray_is_stopped_without_another_job(tmp_path: Path, status: int) -> None:
    api, plan = RayApi(faults=[answers(status, method="POST")]), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await runner.create(plan)
    with pytest.raises(UnreachableError):
        await runner.start(handle)
    await runner.stop(handle, 0.0)
    assert not api.jobs
    await runner.aclose()


async def test_job_whose_submission_was_answered_to_nobody_is_stopped(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path)
    runner = api.runner(tmp_path)
    handle = await runner.create(plan)
    taken = list[httpx.Response]()

    def lose(request: httpx.Request) -> httpx.Response | None:
        if request.method != "POST" or taken:
            return None
        taken.append(api._answer("POST", request.url.path, request))
        api.jobs[plan.name]["status"] = "RUNNING"
        return httpx.Response(504)

    api.proxy = lose
    with pytest.raises(UnreachableError):
        await runner.start(handle)
    await runner.stop(handle, 0.0)
    assert api.jobs[plan.name]["status"] == "STOPPED"
    assert "train.py" in api.jobs[plan.name]["entrypoint"]
    await runner.aclose()


# --- a folder of outputs that is another's ---


async def test_link_in_the_place_of_the_outputs_folder_is_not_followed(tmp_path: Path) -> None:
    api, plan = RayApi(), plan_in(tmp_path, options={"output-dir": str(tmp_path / "shared")})
    runner = api.runner(tmp_path)
    handle = await submitted(runner, plan)
    own = tmp_path / "agents-own"
    own.mkdir()
    (own / "key").write_text("secret")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / f"{plan.name}-claim-1").symlink_to(own)
    api.end(plan.name, driver_node_id=NODE)
    end = await runner.watch(handle, plan)
    assert not (plan.output_dir / "key").exists()
    assert "in its place is a link or a file" in str(end.left_out.named)
    await runner.remove(handle)
    assert (own / "key").read_text() == "secret"
    await runner.aclose()
