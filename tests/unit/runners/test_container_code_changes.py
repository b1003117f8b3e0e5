"""What a job has changed in the code folder of its container: told, or kept among its outputs by a pattern."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.errors import UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan
from prefect_launch.runners.docker import code_changes
from prefect_launch.runners.docker.engine import Image
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing import Script
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine
from prefect_launch.testing.runner_contract import run

CODE = {"main.py": "pass", "lib/util.py": "pass", ".launchignore": "/data/\n", ".gitignore": "*.pt\n"}


class Box:
    """An engine whose containers write these files into their code folder, and these outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = Script()
        self.docker = InMemoryDocker(lambda config: self.script, images={"python": {}})
        self.engine = InMemoryEngine(self.docker)

    def plan(self, **more: object) -> RunPlan:
        run_dir = self.folder / str(uuid4())
        for name, text in CODE.items():
            (run_dir / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            (run_dir / "code" / name).write_text(text)
        values = {"item_id": run_dir.name, "run_id": "r", "run_dir": run_dir, "image": "python", "command": ("python",)}
        labels = {Labels.ITEM: run_dir.name}
        return RunPlan.model_validate({**values, "code_dir": run_dir / "code", "labels": labels, **more})

    async def run(self, plan: RunPlan) -> ExitStatus:
        return await run(LocalContainerRunner(self.folder, self.engine), plan)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


async def test_new_and_changed_files_are_told_and_the_code_that_was_put_in_is_not(box: Box) -> None:
    told = {"main.py": b"changed", "checkpoints/1.pt": b"one", "lib/new.py": b"new"}
    caches = {"data/set": b"x", "lib/__pycache__/util.pyc": b"x", ".cache/torch/x": b"x", "wandb/run": b"x"}
    box.script = Script(code={**told, **caches})

    end = await box.run(box.plan())

    assert end.code_changes.named == tuple(sorted(told))
    assert (await box.run(box.plan(code_dir=None))).code_changes.count == 0


async def test_files_to_keep_come_back_with_the_outputs_within_their_limits(box: Box) -> None:
    box.script = Script(code={"ckpt/1.pt": b"one", "ckpt/2.pt": b"x" * 5000, "loss.csv": b"1"}, outputs={"a": b"a"})
    plan = box.plan(keep=("ckpt/**", "*.py"), output_limits=OutputLimits(max_bytes=1000))

    end = await box.run(plan)

    kept = {path.relative_to(plan.output_dir).as_posix() for path in plan.output_dir.rglob("*") if path.is_file()}
    assert kept == {"a", "ckpt/1.pt"}
    assert end.left_out.named == ("ckpt/2.pt: it has 4.9 KiB, and 3 B are kept already",)
    assert end.code_changes.named == ("loss.csv",)


async def test_output_of_the_job_s_own_stays_and_one_of_the_last_attempt_does_not(box: Box) -> None:
    box.script = Script(code={"ckpt/1.pt": b"beside", "ckpt/2.pt": b"beside"}, outputs={"ckpt/2.pt": b"its own"})
    plan = box.plan(keep=("ckpt/**",))
    (plan.output_dir / "ckpt").mkdir(parents=True)
    (plan.output_dir / "ckpt" / "1.pt").write_text("of the last attempt")

    end = await box.run(plan)

    assert (plan.output_dir / "ckpt" / "1.pt").read_text() == "beside"
    assert (plan.output_dir / "ckpt" / "2.pt").read_text() == "its own"
    assert [each.partition(":")[0] for each in end.left_out.named] == ["ckpt/2.pt"]


async def test_files_of_an_image_that_was_built_of_a_part_of_the_code_have_their_names_in_the_code(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def image(name: str) -> Image:
        return Image(id="sha256:python", working_dir="/workspace")

    monkeypatch.setattr(box.engine, "image", image)
    box.script = Script(code={"ckpt/1.pt": b"one", "loss.csv": b"1", ".cache/x": b"x"})
    plan = box.plan(keep=("lib/ckpt/**",))
    assert plan.code_dir is not None

    end = await box.run(plan.model_copy(update={"code_dir": None, "built_code_dir": plan.code_dir / "lib"}))

    assert (plan.output_dir / "lib" / "ckpt" / "1.pt").read_text() == "one"
    assert end.code_changes.named == ("lib/loss.csv",)


async def test_of_very_many_files_the_new_ones_are_counted(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_changes, "_LOOKED_AT", 3)
    box.script = Script(code={f"frames/{number}.png": b"x" for number in range(20)})

    assert (await box.run(box.plan())).code_changes.count == 20


async def test_engine_that_does_not_tell_is_a_warning_and_no_failure(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(container_id: str) -> list[str]:
        raise UnreachableError("The Docker Engine does not answer.")

    monkeypatch.setattr(box.engine, "changes", fails)

    end = await box.run(box.plan())

    assert end.succeeded
    assert end.warnings == ("what has changed in the code folder is not kept: The Docker Engine does not answer.",)
