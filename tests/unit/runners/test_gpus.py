"""How a run comes to see its GPUs and no others: variables for a process, a device request for a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker.engine import Image
from prefect_launch.runners.docker.options import container_config
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.testing import InMemoryDocker, InMemoryEngine


def plan_of(folder: Path, **more: object) -> RunPlan:
    return RunPlan.model_validate({"item_id": "i", "run_id": "r", "run_dir": folder, "image": "busybox:1", **more})


def test_process_sees_its_gpus_under_the_numbers_that_nvidia_smi_shows(tmp_path: Path) -> None:
    plan = LocalProcessRunner(tmp_path).give_gpus(plan_of(tmp_path, env={"A": "b"}), ("0", "2"))
    assert plan.env == {
        "A": "b",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,2",
        "NVIDIA_VISIBLE_DEVICES": "0,2",
    }


def test_process_without_gpus_sees_none(tmp_path: Path) -> None:
    plan = LocalProcessRunner(tmp_path).give_gpus(plan_of(tmp_path), ())
    assert (plan.env["CUDA_VISIBLE_DEVICES"], plan.env["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")


@pytest.mark.parametrize("ids", [("1",), ("0", "3")])
def test_container_gets_a_request_for_its_devices(tmp_path: Path, ids: tuple[str, ...]) -> None:
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(InMemoryDocker()))
    plan = runner.give_gpus(plan_of(tmp_path, options={"gpus": 1}), ids)
    made = container_config(plan, Image(id="sha256:1"))
    assert [request["DeviceIDs"] for request in made["HostConfig"]["DeviceRequests"]] == [list(ids)]
    assert not [one for one in made["Env"] if one.startswith("CUDA")]  # inside, they are counted from 0


def test_container_without_gpus_sees_none_even_where_all_is_the_default(tmp_path: Path) -> None:
    plan = LocalContainerRunner(tmp_path, InMemoryEngine(InMemoryDocker())).give_gpus(plan_of(tmp_path), ())
    made = container_config(plan, Image(id="sha256:1"))
    assert "NVIDIA_VISIBLE_DEVICES=void" in made["Env"]
    assert "DeviceRequests" not in made["HostConfig"]


def test_process_takes_the_options_of_devices() -> None:
    options = {"gpus": "0,2", "cpus": 1.5, "m": "4g"}
    assert LocalProcessRunner.check_options(options) == {"gpus": "0,2", "cpus": 1.5, "memory": "4g"}


@pytest.mark.parametrize("wrong", [{"gpus": "two"}, {"cpus": 0}, {"memory": "much"}])
def test_wrong_option_of_a_process_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=f"local-process option '{next(iter(wrong))}'"):
        LocalProcessRunner.check_options(wrong)
