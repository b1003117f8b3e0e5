"""A program written for W&B, unchanged, with the real `wandb` and no W&B server: as a process and in a container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from uv import find_uv_bin

from prefect_launch import create_job
from tests.support.live import Site

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

WANDB = "wandb==0.31.*"
TRAIN = """
import json, os, pathlib, wandb

run = wandb.init(config={"lr": 0.5, "layers": 3})
told = {"lr": run.config["lr"], "layers": run.config.layers, "id": run.id, "name": run.name}
told |= {"project": run.project, "entity": run.entity}
for step in range(3):
    wandb.log({"loss": 1 / (step + 1), "acc": step / 3, **{f"m{n}": n for n in range(20)}})
pathlib.Path("model.txt").write_text("weights")
artifact = wandb.Artifact("model", type="model")
artifact.add_file("model.txt")
run.log_artifact(artifact)
told["loss"] = run.summary["loss"]
wandb.finish()
pathlib.Path(os.environ["LAUNCH_OUTPUT_DIR"], "outputs.json").write_text(json.dumps(told))
"""


def check(site: Site, run: QueuedRun) -> None:
    """All has arrived, and what wandb has written is kept."""
    assert run.state == "completed", site.log(run)
    expected = {"lr": 0.1, "layers": 3, "id": site.name, "name": "my run", "project": "mnist", "entity": "team"}
    assert run.outputs() == {**expected, "loss": pytest.approx(1 / 3)}
    # The summary is not among the outputs: it is what wandb has printed.
    assert run.metrics().value("acc") == pytest.approx(2 / 3, abs=1e-5)
    assert run.metrics().value("m19") == 19
    kept: list[str] = site.api.call(lambda session: session.jobs.get_outputs(run.id, 1, site.folder / "kept"))
    assert "not kept" not in site.log(run), "the links that wandb leaves are no loss"
    (log,) = [name for name in kept if name.endswith(".wandb")]
    assert log.startswith("wandb/offline-run-")
    assert (site.folder / "kept" / log).stat().st_size > 0


def spec(site: Site, **more: Any) -> dict[str, Any]:
    names = {"run_id": site.name, "name": "my run", "project": "mnist", "entity": "team"}
    return {**names, "overrides": {"run_config": {"lr": 0.1}}, **more}


def test_program_of_wandb_runs_unchanged_as_a_process(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text(TRAIN)
    (code / "requirements.txt").write_text(f"{WANDB}\n")
    create_job(str(code), "code", name=site.name, entrypoint="python train.py", api=site.api)
    (run,) = site.add(spec(site))
    site.work_off()
    check(site, run)


@pytest.mark.engine
def test_program_of_wandb_runs_unchanged_in_a_container(
    prefect_server: PrefectServerProcess, engine: DockerEngine, python_image: str, tmp_path: Path, unique: str
) -> None:
    packages = tmp_path / "packages"
    command = [find_uv_bin(), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(packages), WANDB]
    subprocess.run(command, check=True)
    config = {"volume": [f"{packages}:/packages:ro"], "env": {"PYTHONPATH": "/packages"}}
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container", config=config)
    (run,) = site.add(
        spec(
            site,
            docker={"docker_image": python_image},
            overrides={"run_config": {"lr": 0.1}, "entry_point": ["python", "-c", TRAIN]},
        )
    )
    site.work_off()
    check(site, run)
