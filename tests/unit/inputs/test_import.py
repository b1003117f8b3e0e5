"""A job may import the inputs in any Python, with nothing else installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def _run(code: str) -> str:
    # -I -S: no site packages, so that only the standard library is there.
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_inputs_need_only_the_standard_library() -> None:
    assert _run("import prefect_launch.inputs as i; print(len(i.__all__))") == "10"


def test_inputs_import_neither_prefect_nor_pydantic() -> None:
    code = "import prefect_launch.inputs, sys; print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    for heavy in ("'prefect'", "'pydantic'", "'yaml'", "'jsonschema'", "'httpx'", "'anyio'"):
        assert heavy not in done.stdout


def test_job_without_yaml_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("x: 1")
    code = f"""
import os; os.chdir({str(tmp_path)!r})
from prefect_launch.inputs import LaunchError, manage_config_file, manage_wandb_config
for call in (lambda: manage_config_file("c.yaml"), lambda: manage_wandb_config(schema={{}})):
    try: call()
    except LaunchError as error: print(error)
"""
    yaml, jsonschema = _run(code).splitlines()

    assert "Add 'pyyaml' to the job's requirements" in yaml
    assert "Add 'jsonschema' to the job's requirements" in jsonschema
