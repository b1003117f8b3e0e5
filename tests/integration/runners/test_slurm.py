"""The runner of `slurm` on a real Slurm cluster: the contract, and what a cluster does to jobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.slurm import script
from prefect_launch.runners.remote.slurm.runner import SlurmRunner
from prefect_launch.testing.runner_contract import MISSING, ExecContract, RemoteRunnerContract
from tests.support.engine_cases import EngineContract, EnginePlace
from tests.support.live import REPORT_LOSS, Site
from tests.support.prefect_server import PrefectServerProcess
from tests.support.slurm import SlurmCluster, lossy_programs
from tests.support.waiting import until


class SlurmWorld:
    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self.home = folder / "home %j"
        self.runs = folder / "runs %j"
        self.cluster = cluster
        self.lost = folder / "lost"
        self.lost.mkdir()

    def runner(self) -> SlurmRunner:
        return SlurmRunner(self.home)

    def plan(
        self, text: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None, **options: Any
    ) -> RunPlan:
        item = str(uuid4())
        run_dir = self.runs / item
        (run_dir / "code").mkdir(parents=True)
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            code_dir=run_dir / "code",
            command=(MISSING,) if text == MISSING else ("sh", "-c", text, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            options={"memory": "100m", **options},
            labels={Labels.ITEM: item, Labels.AGENT: "contract"},
        )

    def fill(self) -> None:
        self.cluster.set_nodes("drain")

    def free(self) -> None:
        self.cluster.set_nodes("resume")

    def lose_answers(self, count: int) -> None:
        for number in range(count):
            (self.lost / str(number)).touch()


@pytest.fixture
def world(tmp_path: Path, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmWorld:
    made = SlurmWorld(tmp_path, slurm_cluster)
    monkeypatch.setenv("PATH", f"{lossy_programs(tmp_path / 'bin', made.lost)}:{os.environ['PATH']}")
    return made


class TestSlurm(RemoteRunnerContract, ExecContract):
    """Each promise of the contract, kept by jobs of Slurm."""


async def started(runner: SlurmRunner, plan: RunPlan) -> str:
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


def number(handle: str) -> str:
    return RunHandle.parse(handle).job


async def until_on(plan: RunPlan) -> None:
    """Wait until the job of `ON` runs."""
    said = plan.run_dir / script.FOLDER / script.STDOUT
    await until(lambda: said.exists() and said.read_text() == "on\n", ON_NODE_SECONDS)


#: A job waits for its node.
ON_NODE_SECONDS = 120.0
#: It runs until the file `go` is beside its code.
ON = "echo on; while [ ! -e ../go ]; do sleep 0.1; done; echo off; exit 4"


async def test_job_runs_on_while_its_controller_is_killed_and_its_end_is_known(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan(ON)
    handle = await started(runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until_on(plan)
    world.cluster.kill_controller()
    (plan.run_dir / "go").touch()
    await until((plan.run_dir / script.FOLDER / script.EXIT).exists, ON_NODE_SECONDS)
    world.cluster.start_controller()
    end = await asyncio.wait_for(watching, 200)
    assert (end.exit_code, end.stopped) == (4, False)
    assert plan.log_path.read_text() == "on\noff\n"
    world.cluster.revive()


async def test_job_that_somebody_cancels_in_slurm_says_so(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan(ON)
    handle = await started(runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until_on(plan)
    world.cluster.command("scancel", number(handle))
    end = await asyncio.wait_for(watching, 120)
    assert not end.stopped
    assert "somebody cancelled it in Slurm" in end.describe()  # It has no accounting, which would tell who.


async def test_job_that_is_cancelled_while_it_waits_says_so(world: SlurmWorld) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan(ON)
    handle = await started(runner, plan)
    world.cluster.command("scancel", number(handle))
    end = await asyncio.wait_for(runner.watch(handle, plan), 120)
    assert (end.exit_code, end.stopped) == (None, False)
    assert "cancelled in Slurm before it ran" in end.describe()


async def test_node_that_fails_is_the_machines_fault(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan(ON)
    handle = await started(runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until_on(plan)
    world.cluster.set_nodes("down")
    end = await asyncio.wait_for(watching, 120)
    (plan.run_dir / "go").touch()
    assert "NODE_FAIL" in end.describe()


async def test_job_that_ends_in_order_when_it_is_preempted_is_preempted(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan('trap "echo saved; exit 0" TERM; echo on; while :; do sleep 0.1; done')
    handle = await started(runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until_on(plan)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--mem=1", "--output=/dev/null", "--wrap=true")
    world.cluster.command("sbatch", *urgent)
    end = await asyncio.wait_for(watching, 120)
    assert (end.exit_code, end.preempted, end.succeeded) == (0, True, False)
    assert "saved" in plan.log_path.read_text()


async def test_two_jobs_of_one_name_become_one_that_runs_once(world: SlurmWorld) -> None:
    first, second, plan = world.runner(), world.runner(), world.plan("echo ran")
    await first.prepare(plan)
    handles = await asyncio.gather(first.create(plan), second.create(plan))
    assert handles[0] == handles[1]
    await first.start(handles[0])
    assert (await first.watch(handles[0], plan)).succeeded
    assert plan.log_path.read_text() == "ran\n"
    shown = world.cluster.command("squeue", "--noheader", "--states=PENDING", f"--name={plan.name}")
    assert shown == ""


async def test_job_that_its_agent_did_not_come_to_record_runs_once_and_is_followed(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan("echo ran; exit 4")
    await runner.prepare(plan)
    await runner.create(plan)
    record = runner._records.named(plan.name)
    assert record is not None
    runner._records.remove(record)  # As if it had died right after its sbatch.
    other = world.runner()
    [found] = await other.find({Labels.ITEM: plan.item_id})
    await other.start(found.handle)
    assert (await other.watch(found.handle, plan)).exit_code == 4
    assert plan.log_path.read_text() == "ran\n"


async def test_job_that_is_queued_again_by_hand_does_not_run_again(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan("echo ran; exit 4")
    await runner.prepare(plan)
    handle = await runner.create(plan)
    job = number(handle)
    world.cluster.command("scontrol", "update", f"jobid={job}", "requeue=1")  # Slurm refuses it otherwise.
    await runner.start(handle)
    assert (await runner.watch(handle, plan)).exit_code == 4
    world.cluster.command("scontrol", "requeue", job)
    world.cluster.command("scontrol", "update", f"jobid={job}", "starttime=now")  # It would wait for two minutes.
    await until(lambda: _has_started_again(world, job), ON_NODE_SECONDS)
    assert (await world.runner().watch(handle, plan)).exit_code == 4
    assert (plan.run_dir / script.FOLDER / script.STDOUT).read_text() == "ran\n"


def _has_started_again(world: SlurmWorld, job: str) -> bool:
    shown = world.cluster.command("scontrol", "show", "job", job)
    return "Restarts=1" in shown and f"ExitCode={script.SECOND_START}:0" in shown


async def test_job_on_two_nodes_runs_a_task_on_each_and_shows_both_in_its_log(world: SlurmWorld) -> None:
    text = 'echo "rank $RANK of $WORLD_SIZE on node $NODE_RANK of $NNODES, $MASTER_ADDR:$MASTER_PORT"'
    plan = world.plan(text, nodes=2)
    runner = world.runner()
    end = await runner.watch(await started(runner, plan), plan)
    assert end.succeeded, plan.log_path.read_text()
    lines = sorted(plan.log_path.read_text().splitlines())
    port = lines[0].rpartition(":")[2]
    assert lines == [f"{task}: rank {task} of 2 on node {task} of 2, node1:{port}" for task in (0, 1)]


async def test_task_that_fails_on_one_node_ends_the_job_with_its_code(world: SlurmWorld) -> None:
    plan = world.plan('[ "$RANK" = 0 ] && sleep 300; exit 7', nodes=2)
    runner = world.runner()
    end = await runner.watch(await started(runner, plan), plan)
    assert end.exit_code == 7, plan.log_path.read_text()


async def test_stop_gives_the_task_on_each_node_its_grace(world: SlurmWorld) -> None:
    text = 'trap "sleep $RANK; echo saved $RANK; exit 3" TERM; echo on; while :; do sleep 0.1; done'
    runner, plan = world.runner(), world.plan(text, nodes=2)
    handle = await started(runner, plan)
    said = plan.run_dir / script.FOLDER / script.STDOUT
    await until(lambda: said.exists() and said.read_text().count("on\n") == 2, ON_NODE_SECONDS)
    await runner.stop(handle, 60.0)
    end = await runner.watch(handle, plan)
    assert (end.exit_code, end.stopped) == (3, True)
    assert {"0: saved 0", "1: saved 1"} <= set(plan.log_path.read_text().splitlines())


async def test_tasks_that_ignore_a_stop_are_killed_after_the_grace(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan('trap "" TERM; echo on; while :; do sleep 0.1; done', nodes=2)
    handle = await started(runner, plan)
    said = plan.run_dir / script.FOLDER / script.STDOUT
    await until(lambda: said.exists() and said.read_text().count("on\n") == 2, ON_NODE_SECONDS)
    await runner.stop(handle, 0.5)
    end = await runner.watch(handle, plan)
    assert (end.exit_code, end.stopped) == (137, True)


async def test_log_of_two_hundred_thousand_lines_is_whole(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan("seq 200000")
    assert (await runner.watch(await started(runner, plan), plan)).succeeded
    assert plan.log_path.read_text() == "".join(f"{line}\n" for line in range(1, 200_001))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nope"}, "nvalid partition"),
        ({"memory": "999g"}, "the largest node has 8000"),
        ({"gpus": 9}, "no node has more than 2"),
        ({"nodes": 5}, "5 nodes, and there are 2"),
    ],
)
async def test_what_the_cluster_cannot_give_is_refused_and_nothing_is_left(
    world: SlurmWorld, options: dict[str, Any], words: str
) -> None:
    plan = world.plan("echo ran", **options)
    with pytest.raises(SpecError, match=words):
        await world.runner().create(plan)
    assert world.cluster.command("squeue", "--noheader", "--states=all", f"--name={plan.name}") == ""


async def test_job_that_its_partition_can_never_start_is_refused_with_the_reason(world: SlurmWorld) -> None:
    runner, plan = world.runner(), world.plan("echo ran", partition="short", time="60")
    handle = await started(runner, plan)
    reasons: list[str] = []

    async def note(reason: str) -> None:
        reasons.append(reason)

    with pytest.raises(SpecError, match="PartitionTimeLimit"):
        await runner.wait_running(handle, note)
    await runner.stop(handle, 1.0)


async def test_agent_check_finds_the_cluster_well(world: SlurmWorld) -> None:
    found = {one.name: one for one in await world.runner().diagnose({"partition": "main"})}
    assert {"commands", "controller", "clock", "partition", "shared home"} == set(found)
    assert all(one.is_ok for one in found.values()), found
    [bad] = [one for one in await world.runner().diagnose({"partition": "nope"}) if not one.is_ok]
    assert "there is: main short urgent" in bad.detail


# --- an agent on the cluster ---

JOB = """echo one; echo two >&2
printf '{"accuracy": 0.9}' > "$LAUNCH_OUTPUT_DIR/outputs.json"
echo "$LAUNCH_CONFIG" "$SLURM_JOB_NAME"
"""


def site(server: PrefectServerProcess, folder: Path, **queue: Any) -> Site:
    options = {"memory": "100m", **queue}
    name = f"slurm-{uuid4().hex[:6]}"
    return Site(server.api_url, folder, name, resource="slurm", config=options)


def test_item_of_a_slurm_queue_runs_with_its_log_and_outputs(
    prefect_server: PrefectServerProcess, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    place = site(prefect_server, tmp_path)
    place.job(REPORT_LOSS + JOB)
    [run] = place.add(overrides={"run_config": {"lr": 0.5}})
    place.work_off()
    assert place.states(run)[-1] == "Completed"
    log = place.log(run).splitlines()
    assert {"one", "two"} <= set(log)
    assert any('{"lr": 0.5}' in line and f"launch-{run.id}-1" in line for line in log)
    assert (run.outputs(), run.metrics().value("loss")) == ({"accuracy": 0.9}, 0.5)


@pytest.fixture
def engine_place(
    prefect_server: PrefectServerProcess, slurm_cluster: SlurmCluster, tmp_path: Path, unique: str
) -> EnginePlace:
    config = {"memory": "100m", "env": {"FOLDER": str(tmp_path), "COUNT": str(tmp_path)}}
    return EnginePlace(
        prefect_server,
        tmp_path,
        unique,
        "slurm",
        config,
        slurm_cluster.kill_controller,
        slurm_cluster.start_controller,
        away_seconds=20.0,
        many=40,
        more=["after sbatch 1"],  # Slurm has the job then, and the agent's home does not know it.
        delete=lambda run: slurm_cluster.command("scancel", f"--name=launch-{run.id}-1"),
        deleted="cancelled it in Slurm",
    )


class TestEngine(EngineContract):
    """An agent's promises, kept on a real cluster."""
