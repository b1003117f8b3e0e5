"""What a job has changed in its code folder: told, or kept among its outputs by a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.core.code_changes import CodeChanges
from prefect_launch.core.output_limits import LeftOut
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.runners.code_changes import note_code, with_code_changes

END = ExitStatus(exit_code=0)


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    """A run whose code has a program, a README and an ignore file, and that has the outputs of an earlier attempt."""
    plan = RunPlan(item_id=str(uuid4()), run_id="r", run_dir=tmp_path, code_dir=tmp_path / "code", attempt=2)
    write(plan.run_dir, {"code/main.py": "pass", "code/README": "read me", "code/.launchignore": "/data/\n"})
    write(plan.run_dir, {"code/.gitignore": "*.pt\n", "outputs/checkpoints/1.pt": "of the last attempt"})
    note_code(plan)
    return plan


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def code(plan: RunPlan) -> Path:
    assert plan.code_dir is not None
    return plan.code_dir


async def changes(plan: RunPlan) -> CodeChanges:
    end = await with_code_changes(END, plan)
    assert end.warnings == ()
    return end.code_changes


async def test_run_that_changes_nothing_is_told_nothing(plan: RunPlan) -> None:
    assert not await changes(plan)


async def test_new_and_changed_files_are_told_and_removed_and_equal_ones_are_not(plan: RunPlan) -> None:
    write(code(plan), {"checkpoints/2.pt": "new", "checkpoints/3.pt": "new", "README": "changed"})
    (code(plan) / "main.py").unlink()

    found = await changes(plan)

    assert found == CodeChanges(count=3, named=("README", "checkpoints/2.pt", "checkpoints/3.pt"))
    assert found.describe() == (
        "3 files changed in the code folder are not kept: README, checkpoints/2.pt, checkpoints/3.pt. Write to"
        " $LAUNCH_OUTPUT_DIR, or create the job with --keep 'README'."
    )


async def test_caches_run_data_and_what_launchignore_names_are_not_told(plan: RunPlan) -> None:
    ignored = ("__pycache__/main.pyc", "lib/__pycache__/a.pyc", "wandb/run-1.wandb", ".ipynb_checkpoints/a.ipynb")
    write(code(plan), dict.fromkeys((*ignored, "data/set.bin", ".git/index", "lib/data/told.bin"), "x"))
    (code(plan) / "link").symlink_to("main.py")

    assert (await changes(plan)).named == ("lib/data/told.bin",)


async def test_many_files_are_counted_and_the_first_are_named(plan: RunPlan) -> None:
    write(code(plan), {f"frames/{number:04}.png": "x" for number in range(1234)})

    told = (await changes(plan)).describe()

    assert told.startswith("1,234 files changed in the code folder are not kept: frames/0000.png, ")
    assert ", frames/0019.png and 1,214 more. " in told
    assert told.endswith("--keep 'frames/**'.")


async def test_name_that_is_no_text_is_told_as_a_log_can_hold_it(plan: RunPlan) -> None:
    (code(plan) / "odd\n\udcff").write_text("x")

    assert (await changes(plan)).named == ("odd\ufffd?",)


async def test_files_to_keep_that_changed_are_outputs_then_and_the_others_are_told(plan: RunPlan) -> None:
    plan = plan.model_copy(update={"keep": ("checkpoints/**", "*.py")})
    write(code(plan), {"checkpoints/1.pt": "one", "checkpoints/deep/2.pt": "two", "loss.csv": "1"})

    for _ in range(2):  # the agent may die in between
        assert (await changes(plan)).named == ("loss.csv",)
        outputs = {path.relative_to(plan.output_dir): path for path in plan.output_dir.rglob("*.*")}
        assert {name.as_posix(): path.read_text() for name, path in outputs.items()} == {
            "checkpoints/1.pt": "one",  # not that of the last attempt; and no main.py, which is as it was
            "checkpoints/deep/2.pt": "two",
        }


async def test_output_of_the_job_s_own_is_not_replaced_by_a_file_of_the_code_folder(plan: RunPlan) -> None:
    plan = plan.model_copy(update={"keep": ("*.pt",)})
    write(code(plan), {"checkpoints/1.pt": "beside", "2.pt": "beside", "in/3.pt": "beside"})
    write(plan.output_dir, {"checkpoints/1.pt": "its own", "2.pt": "its own", "in": "a file"})

    end = await with_code_changes(END, plan)

    assert (plan.output_dir / "checkpoints" / "1.pt").read_text() == "its own"
    assert (plan.output_dir / "2.pt").read_text() == "its own"
    why = "it is in the code folder, and the job has written an output of that name"
    assert sorted(end.left_out.named) == [
        f"2.pt: {why}",
        f"checkpoints/1.pt: {why}",
        "in/3.pt: it cannot be copied from the code folder: File exists",
    ]
    assert not end.code_changes


async def test_nothing_is_written_outside_of_the_outputs_by_a_link_among_them(plan: RunPlan, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"keep": ("out/**",)})
    write(code(plan), {"out/file": "x"})
    (tmp_path / "elsewhere").mkdir()
    (plan.output_dir / "out").symlink_to(tmp_path / "elsewhere")

    end = await with_code_changes(END, plan)

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert end.left_out.named == ("out/file: its folder among the outputs is a link that leads out of them",)


async def test_code_folder_that_the_job_has_removed_or_replaced_is_no_fault(plan: RunPlan, tmp_path: Path) -> None:
    code(plan).rename(tmp_path / "moved")
    assert await with_code_changes(END, plan) == END
    code(plan).symlink_to("/etc")
    assert await with_code_changes(END, plan) == END


async def test_ignore_file_that_cannot_be_read_is_a_warning(plan: RunPlan) -> None:
    (code(plan) / ".launchignore").write_bytes(b"\xff\xfe")

    end = await with_code_changes(END, plan)

    assert end.warnings[0].startswith("what has changed in the code folder is not kept: The ignore file")
    assert end.left_out == LeftOut()
