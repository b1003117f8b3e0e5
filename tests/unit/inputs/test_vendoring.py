"""A job finds its inputs in an environment of its own, which holds no prefect-launch."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from prefect_launch.inputs.vendoring import vendor_inputs


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty virtual environment with the inputs carried into it; its `site-packages`."""
    venv.create(tmp_path / "made", symlinks=True)
    site = tmp_path / "made" / f"lib/python{sysconfig.get_python_version()}/site-packages"
    vendor_inputs(site)
    # Published as environments are: by a rename.
    os.rename(tmp_path / "made", tmp_path / "env")
    return tmp_path / "env" / site.relative_to(tmp_path / "made")


def _run(site: Path, code: str) -> str:
    python = site.parents[2] / "bin/python"
    env = {"LAUNCH_CONFIG": '{"lr": 1}'}
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_job_reads_its_config_in_an_environment_of_its_own(environment: Path) -> None:
    code = "import prefect_launch as p; from prefect_launch.inputs import load_config as l; print(l(), p.load_config())"

    assert _run(environment, code) == "{'lr': 1} {'lr': 1}"


def test_job_that_requires_prefect_launch_gets_the_one_it_asked_for(environment: Path) -> None:
    (environment / "prefect_launch").mkdir()
    (environment / "prefect_launch/__init__.py").write_text("who = 'the real one'")

    assert _run(environment, "import prefect_launch; print(prefect_launch.who)") == "the real one"


def test_carrying_twice_writes_nothing_and_repairs_what_is_old(environment: Path) -> None:
    carried = environment / "_prefect_launch_inputs/prefect_launch/errors.py"
    before = carried.stat().st_ino
    vendor_inputs(environment)
    assert carried.stat().st_ino == before

    carried.write_text("old")
    vendor_inputs(environment)
    assert (
        _run(environment, "from prefect_launch.errors import LaunchError; print(LaunchError.__name__)") == "LaunchError"
    )


def test_nothing_else_of_this_environment_reaches_the_job(environment: Path) -> None:
    packages = _run(environment, "import importlib.util as u; print(u.find_spec('prefect'), u.find_spec('pytest'))")

    assert packages == "None None"
    assert sys.prefix not in _run(environment, "import sys; print(sys.path)")
