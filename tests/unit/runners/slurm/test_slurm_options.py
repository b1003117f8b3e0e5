"""Options of `slurm`: values, who may set them, and the arguments of sbatch made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import create_job, launch_add
from prefect_launch.errors import NotFoundError, SpecError, UnsafeSpecError
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.option_values import UNLIMITED
from prefect_launch.runners.remote.slurm.containers import command_of, variables_of_image
from prefect_launch.runners.remote.slurm.nodes import parse_nodes, shortage_among
from prefect_launch.runners.remote.slurm.options import minutes, sbatch_arguments, srun_arguments
from prefect_launch.runners.remote.slurm.runner import SlurmRunner
from prefect_launch.spec.item_outputs import ItemOutput
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["--mem-per-cpu=2048M"]),
        ({"cpus": 1.5, "memory": "1500k"}, ["--cpus-per-task=2", "--mem=2M"]),
        ({"memory": 0}, ["--mem=0M"]),
        ({"memory": "1g", "gpus": 2}, ["--mem=1024M", "--gres=gpu:2"]),
        ({"memory": "1g", "gres": "tmp:2", "gpus": "1"}, ["--mem=1024M", "--gres=tmp:2,gpu:1"]),
        ({"memory": "1g", "nodes": 2}, ["--mem=1024M", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]),
        ({"memory": "1g", "nodes": 2, "ntasks": 8}, ["--mem=1024M", "--nodes=2", "--ntasks=8"]),
        ({"memory": "1g", "time": "1-12:30:00", "qos": "high"}, ["--mem=1024M", "--qos=high", "--time=1-12:30:00"]),
        ({"memory": "1g", "exclusive": True}, ["--mem=1024M", "--exclusive"]),
        ({"memory": "1g", "sbatch": ["--switches=1"]}, ["--mem=1024M", "--switches=1"]),
    ],
)
def test_options_become_arguments_of_sbatch(given: dict[str, Any], expected: list[str]) -> None:
    assert sbatch_arguments(SlurmRunner.check_options(given)) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpus", "all"),
        ("gpus", ["0"]),
        ("cpus", 0),
        ("cpus", "many"),
        ("memory", "lots"),
        ("nodes", 0),
        ("nodes", 1.5),
        ("time", "soon"),
        ("time", 0),
        ("time", "0:00:00"),
        ("time", "1-"),
        ("partition", "a b"),
        ("partition", "--uid=0"),
        ("partition", "p" * 2_000),
        ("mail-user", "x y"),
        ("container", "docker"),
        ("sbatch", ["--array=0-9"]),
        ("sbatch", ["-a", "0-9"]),
        ("sbatch", ["--output=/etc/passwd"]),
        ("sbatch", ["--export=ALL"]),
        ("sbatch", ["rm"]),
        ("sbatch", ["--hold"]),
        ("sbatch", ["--part=expensive"]),
        ("sbatch", ["--partition=expensive"]),
        ("sbatch", ["--wra=rm"]),
        ("sbatch", ["--wrap=rm"]),
        ("sbatch", ["--ar=0-9"]),
        ("sbatch", ["--switch=1"]),
        ("sbatch", ["-p"]),
        ("sbatch", ["-pexpensive"]),
        ("sbatch", ["-wnode1"]),
        ("sbatch", ["-C", "a"]),
        ("sbatch", ["--"]),
        ("sbatch", ["--switches"]),
        ("sbatch", ["--contiguous=1"]),
        ("sbatch", ["--SWITCHES=1"]),
        ("sbatch", ["--mem=1G"]),
        ("sbatch", ["--uid=0"]),
        ("sbatch", ["--switches=1\n--uid=0"]),
        ("env", {"NOT A NAME": "x"}),
    ],
)
def test_wrong_value_is_refused_with_its_option(name: str, value: object) -> None:
    with pytest.raises(SpecError) as refused:
        SlurmRunner.check_options({name: value})
    assert "resource_args.slurm" in str(refused.value)


SUBMITTERS = ("HOME", "PATH", "OMP_NUM_THREADS", "CUDA_LAUNCH_BLOCKING", "LOADING", "ENVIRONMENT", "MY_LD_PATH")
OWNERS = (
    *("APPTAINER_BIND", "APPTAINERENV_X", "SINGULARITY_BINDPATH", "SINGULARITYENV_LD_PRELOAD", "SLURM_JOB_ID"),
    *("SLURM_CONF", "SBATCH_PARTITION", "SRUN_CONTAINER_IMAGE", "LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "ENV"),
    *("UID", "EUID", "IFS", "SHELLOPTS", "BASH_FUNC_x", "ENROOT_MOUNT_HOME", "MUNGE_SOCKET", "_SLURM_SPANK_OPTION_x"),
)


@pytest.mark.parametrize("name", OWNERS)
def test_variable_that_changes_what_slurm_or_a_container_does_is_the_owners(name: str) -> None:
    options = SlurmRunner.check_options({"env": {name: "x"}})
    with pytest.raises(UnsafeSpecError, match=f"{name}=…"):
        SlurmRunner.check_submitter_options(options)


@pytest.mark.parametrize("name", SUBMITTERS)
def test_variable_of_a_job_alone_is_the_submitters(name: str) -> None:
    SlurmRunner.check_submitter_options(SlurmRunner.check_options({"env": {name: "x"}}))


def test_path_that_was_given_finds_programs_in_the_image_and_not_the_one_that_runs_it(tmp_path: Path) -> None:
    plan = image_plan(tmp_path, "ubuntu", "true", container="apptainer", env={"PATH": "/mine"})
    found = variables_of_image(plan, {"PATH": "/mine", "LD_LIBRARY_PATH": "/x", "A": "b"})
    assert found == {"PATH": os.environ["PATH"], "APPTAINERENV_PATH": "/mine", "A": "b"}


def test_option_that_slurm_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="partition"):
        SlurmRunner.check_options({"partitoin": "gpu"})


@pytest.mark.parametrize(
    "together",
    [{"gpus": 1, "gres": "gpu:a100:1"}, {"nodes": 4, "ntasks": 2}, {"mount": ["/data"]}],
)
def test_options_that_do_not_go_together_are_refused(together: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        SlurmRunner.check_together(SlurmRunner.check_options(together))


def test_who_submits_may_not_name_what_costs_others() -> None:
    owners = {"partition", "qos", "account", "reservation", "nodelist", "sbatch", "container", "mount", "exclusive"}
    assert owners <= SlurmRunner.options - SlurmRunner.submitter_options
    assert {"cpus", "memory", "gpus", "time", "nodes", "env"} <= SlurmRunner.submitter_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90),
        ("90", 90),
        ("90:30", 90.5),
        ("2:30:00", 150),
        ("1-12", 2160),
        ("1-0:30", 1470),
        ("infinite", UNLIMITED),
    ],
)
def test_time_limit_is_read_as_slurm_writes_it(text: object, expected: float) -> None:
    assert minutes(text) == expected


def test_job_of_several_nodes_starts_one_task_on_each() -> None:
    options = SlurmRunner.check_options({"nodes": 2, "cpus": 4})
    assert srun_arguments(options) == [
        *("srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=4", "--kill-on-bad-exit=1", "--label"),
    ]
    assert srun_arguments({}) == []


def image_plan(folder: Path, image: str, *command: str, **options: Any) -> RunPlan:
    return RunPlan(
        item_id="i",
        run_id="r",
        run_dir=folder,
        image=image,
        command=command,
        options=SlurmRunner.check_options(options),
    )


def test_image_sees_the_outputs_of_other_items_that_are_its_inputs(tmp_path: Path) -> None:
    plan = image_plan(tmp_path, "a/b", "true", container="apptainer")
    plan = plan.model_copy(update={"input_files": (ItemOutput(item="i", path="model.pt"),)})

    assert SlurmRunner.input_dir(tmp_path) == str(plan.input_dir)
    assert f"--bind {plan.input_dir} " in " ".join(command_of(plan))


def test_image_runs_by_apptainer_with_its_outputs_bound(tmp_path: Path) -> None:
    plan = image_plan(tmp_path, "ghcr.io/a/b:1", "python", "x.py", container="apptainer", gpus=1)
    bind = ["--bind", str(tmp_path / "outputs"), "--bind", "/data:/data:ro"]
    assert command_of(plan, ["/data:/data:ro"]) == [
        *("apptainer", "exec", "--nv", *bind, "docker://ghcr.io/a/b:1", "python", "x.py"),
    ]


def test_image_without_a_command_runs_what_it_runs_itself(tmp_path: Path) -> None:
    command = command_of(image_plan(tmp_path, "a/b", container="singularity"))
    assert (command[:2], command[-1]) == (["singularity", "run"], "docker://a/b")


@pytest.mark.parametrize(
    ("image", "name"),
    [("ghcr.io/a/b:1", "ghcr.io#a/b:1"), ("host:5000/a", "host:5000#a"), ("team/b", "team/b"), ("ubuntu", "ubuntu")],
)
def test_image_runs_by_pyxis_under_its_name_there(tmp_path: Path, image: str, name: str) -> None:
    assert f"--container-image={name}" in command_of(image_plan(tmp_path, image, "true", container="pyxis"))


def test_image_on_a_queue_that_does_not_say_what_runs_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="container"):
        SlurmRunner(tmp_path).check(image_plan(tmp_path, "ubuntu", "true"))


def test_shortage_says_what_no_node_has_and_not_what_none_has_free() -> None:
    nodes = parse_nodes("a|8|16000|gpu:a100:4,gpu:2|\na|8|16000|gpu:a100:4,gpu:2|\nb|64|64000|(null)|\n")
    assert [(node.cpus, node.gpus) for node in nodes] == [(8, 6), (64, 0)]
    assert shortage_among(nodes, {"cpus": 64, "memory": "50g", "gpus": 6}) == ""
    assert "no node has more than 6" in shortage_among(nodes, {"gpus": 7})
    assert "the largest node has 64000" in shortage_among(nodes, {"memory": "1t"})
    assert shortage_among(nodes, {"nodes": 3}) == "3 nodes, and there are 2"
    assert shortage_among([], {"cpus": 4}) == ""


def test_image_is_refused_at_a_queue_that_does_not_say_what_runs_it(job_api: InMemoryApi, tmp_path: Path) -> None:
    code = tmp_path / "based"
    code.mkdir()
    (code / "run.py").write_text("")
    create_job(str(code), "code", name="based", entrypoint="python run.py", base_image="a:1", api=job_api)
    job_api.create_run_queue("bare", "slurm")
    job_api.create_run_queue("later", "slurm", config={"container": "${engine}"})

    asks: list[dict[str, Any]] = [{"docker_image": "a:1"}, {"job": "based"}]
    for asked in asks:
        with pytest.raises(
            SpecError, match=r"what runs the image 'a:1'.*A queue's owner sets resource_args\.slurm\.container"
        ):
            launch_add(queue_name="bare", **asked)
        assert launch_add(queue_name="later", **asked).queue_name == "later"
    assert all(item.work_pool_name == "later" for item in items(job_api))
