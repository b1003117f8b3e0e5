"""Each folder of `tests/examples` is a job: its image is built, and its `verify` runs in it, as the job would.

A `case.json` says what is not told by the files alone. Where an image cannot be built here, `verify` gets the
Dockerfile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.builds.dockerfile import Recipe, find_dependencies, write_dockerfile
from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.sources.fetch import GitCheckout
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.notebook import as_program, convert_in
from prefect_launch.spec.code_options import BuildRequest
from prefect_launch.testing.runner_contract import run
from tests.support.git_repository import Repository

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parents[1] / "examples"


def case_of(folder: Path) -> dict[str, Any]:
    file = folder / "case.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


CASES = {folder.name: case_of(folder) for folder in sorted(EXAMPLES.iterdir()) if folder.is_dir()}
BUILT = [
    (name, backend)
    for name, case in CASES.items()
    for backend in (["none"] if case.get("base_image") else ["engine", "buildkit"])
    if not case.get("dockerfile_only")
]
WRITTEN = [name for name, case in CASES.items() if case.get("dockerfile_only")]


async def lay_out(example: Path, submodules: Sequence[str], folder: Path) -> Path:
    """Bring an example's code to where an agent would: copied, or fetched from git when it has submodules."""
    code = folder / "code"
    if not submodules:
        return Path(shutil.copytree(example, code, ignore=shutil.ignore_patterns("__pycache__")))
    repository = Repository(folder / "remote")
    shutil.copytree(example, repository.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*submodules))
    for name in submodules:
        inner = Repository(folder / name)
        shutil.copytree(example / name, inner.path, dirs_exist_ok=True)
        inner.commit()
        repository.git("submodule", "--quiet", "add", inner.url, name)
    source = GitCheckout(folder / "home", git=Git(allowed_protocols=("file",)))
    await source.check_out(repository.url, repository.commit(), code)
    return code


@pytest.mark.parametrize(("name", "backend"), BUILT)
async def test_image_of_the_example_runs_it_as_it_wants(
    name: str, backend: str, tmp_path: Path, python_image: str
) -> None:
    case = CASES[name]
    code = await lay_out(EXAMPLES / name, case.get("submodules", ()), tmp_path)
    item = str(uuid4())
    command = as_program(case.get("entry_point", ("python", "verify")))
    convert_in(code, command, None)
    request = BuildRequest(entry_point=command, dockerfile=case.get("dockerfile"), python_version="3.11")
    plan = RunPlan(
        item_id=item,
        run_id=item[:8],
        run_dir=tmp_path,
        command=command,
        code_dir=code,
        image=case.get("base_image"),
        build_request=None if case.get("base_image") else request,
        labels={Labels.ITEM: item},
    )
    log: list[str] = []
    if plan.build_request is not None:
        settings = BuilderSettings.model_validate({"base_image": python_image, "backend": backend})
        builder = ImageBuilder(settings, tmp_path / "home", "the test")
        plan = await builder.ensure_image(plan, log.append)
        assert (
            await builder.find(plan.model_copy(update={"code_dir": code, "build_request": request}))
            == plan.model_copy()
        )
        await builder.aclose()
    runner = LocalContainerRunner(tmp_path / "home")
    try:
        end = await run(runner, plan)
    finally:
        await runner.aclose()
    assert end.succeeded, "".join(log) + plan.log_path.read_text()


@pytest.mark.parametrize("name", WRITTEN)
def test_dockerfile_of_the_example_is_as_it_wants(name: str, tmp_path: Path) -> None:
    needs = find_dependencies(EXAMPLES / name, 1024**3)
    settings = BuilderSettings()
    base = settings.conda_base_image if needs.conda else settings.base_image
    file = tmp_path / "Dockerfile"
    file.write_text(write_dockerfile(Recipe(base=base, conda=needs.conda)))
    subprocess.run([sys.executable, str(EXAMPLES / name / "verify"), str(file)], check=True)
