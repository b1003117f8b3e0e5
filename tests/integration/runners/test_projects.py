"""What people bring as a project: each build backend, and requirements files as pip reads them, in local processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest
from uv import find_uv_bin

from prefect_launch.errors import SourceError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.testing.runner_contract import run

#: The program of each project: it is run by its name, and needs six.
CLI = "import six, trainer; print('six', six.__version__, 'data', open(trainer.DATA).read())"
INIT = "from pathlib import Path; DATA = Path(__file__).parents[2] / 'data.txt'"
PROJECT = '[project]\nname = "trainer"\nversion = "0.1"\n'
SIX = 'dependencies = ["six==1.16.0"]\n'


def backend(requires: str, name: str) -> str:
    return f'[build-system]\nrequires = ["{requires}"]\nbuild-backend = "{name}"\n'


SETUPTOOLS = backend("setuptools", "setuptools.build_meta")
#: What a project is told by, beside `src/trainer`.
PROJECTS: Mapping[str, Mapping[str, str]] = {
    "setuptools, dynamic": {
        "pyproject.toml": f'{SETUPTOOLS}{PROJECT}dynamic = ["dependencies"]\n[tool.setuptools.dynamic]\n'
        'dependencies = { file = ["requirements/base.txt"] }\n',
        "requirements/base.txt": "six==1.16.0\n",
    },
    "setup.py": {
        "setup.py": "from setuptools import setup\nsetup(name='trainer', packages=['trainer'],"
        " package_dir={'': 'src'}, install_requires=['six==1.16.0'])\n"
    },
    "hatchling": {
        "pyproject.toml": '[build-system]\nrequires = ["hatchling", "hatch-vcs"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "trainer"\ndynamic = ["version"]\n{SIX}[tool.hatch.version]\nsource = "vcs"\n'
    },
    "flit": {
        "pyproject.toml": f"{backend('flit_core', 'flit_core.buildapi')}{PROJECT}{SIX}description = 'it trains'\n"
    },
    "pdm": {"pyproject.toml": f"{backend('pdm-backend', 'pdm.backend')}{PROJECT}{SIX}"},
    "poetry": {
        "pyproject.toml": '[tool.poetry]\nname = "trainer"\nversion = "0.1"\ndescription = ""\nauthors = []\n'
        '[[tool.poetry.packages]]\ninclude = "trainer"\nfrom = "src"\n[tool.poetry.dependencies]\npython = ">=3.10"\n'
        f'six = "1.16.0"\n{backend("poetry-core", "poetry.core.masonry.api")}'
    },
}


@pytest.fixture
def runner(tmp_path: Path) -> LocalProcessRunner:
    return LocalProcessRunner(tmp_path / "home")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a folder `served` on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def make_plan(folder: Path, files: Mapping[str, str | bytes], *command: str, **more: object) -> RunPlan:
    item = str(uuid4())
    code = folder / "runs" / item / "code"
    for name, content in files.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    values = {"item_id": item, "run_id": item[:8], "run_dir": code.parent, "code_dir": code, "command": command}
    return RunPlan.model_validate({**values, "labels": {Labels.ITEM: item}, **more})


async def log_of(runner: LocalProcessRunner, plan: RunPlan) -> str:
    end = await run(runner, plan)
    log = plan.log_path.read_text()
    assert end.succeeded, log
    return log


@pytest.mark.parametrize("name", PROJECTS)
async def test_project_of_any_build_backend_is_installed_with_what_it_needs(
    name: str, runner: LocalProcessRunner, tmp_path: Path
) -> None:
    files = {**PROJECTS[name], "src/trainer/__init__.py": INIT, "src/trainer/cli.py": CLI}
    for data in ("first", "second") if name == "hatchling" else ("first",):
        plan = make_plan(tmp_path, {**files, "data.txt": data}, "python", "-m", "trainer.cli")
        assert await log_of(runner, plan) == f"six 1.16.0 data {data}\n", "the run's own code, not an older one"


def lock_of(files: Mapping[str, str], folder: Path) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=folder, check=True)
    return (folder / "uv.lock").read_text()


async def test_lock_of_a_workspace_is_installed_with_its_members(runner: LocalProcessRunner, tmp_path: Path) -> None:
    files = {
        "pyproject.toml": f'{SETUPTOOLS}{PROJECT}requires-python = ">=3.10"\ndependencies = ["common"]\n'
        '[tool.uv.sources]\ncommon = { workspace = true }\n[tool.uv.workspace]\nmembers = ["packages/*"]\n',
        "packages/common/pyproject.toml": f'{SETUPTOOLS}[project]\nname = "common"\nversion = "1"\n'
        f'requires-python = ">=3.10"\n{SIX}[tool.setuptools]\npackages = []\n',
    }
    lock = lock_of(files, tmp_path / "author")
    more = {"uv.lock": lock, "src/trainer/__init__.py": INIT, "src/trainer/cli.py": CLI, "data.txt": "x"}
    plan = make_plan(tmp_path, {**files, **more}, "python", "-m", "trainer.cli")
    assert await log_of(runner, plan) == "six 1.16.0 data x\n"


async def test_project_that_cannot_be_built_runs_on_its_dependencies_and_says_so(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    flat = {"pyproject.toml": f"{SETUPTOOLS}{PROJECT}{SIX}", "models/__init__.py": "", "data/__init__.py": ""}
    for _ in range(2):
        log = await log_of(runner, make_plan(tmp_path, flat, "python", "-c", "import six; print(six.__version__)"))
        warning, _, printed = log.splitlines()[:1] + log.splitlines()[-2:]
        assert warning.startswith("[prefect-launch] The project itself is not installed"), log
        assert printed == "1.16.0"


async def test_requirements_file_in_utf_16_with_an_included_address_is_installed(
    runner: LocalProcessRunner, tmp_path: Path, address: str
) -> None:
    (tmp_path / "served" / "limits.txt").write_text("six==1.15.0\n")
    files: dict[str, str | bytes] = {
        "requirements.txt": f"-rreq/base.txt\r\n-c http://{address}/limits.txt\r\n-e.[dev]\r\n".encode("utf-16"),
        "req/base.txt": "-e libs/common\n",
        "libs/common/pyproject.toml": f'{SETUPTOOLS}[project]\nname = "common"\nversion = "1"\n',
        "libs/common/src/common/__init__.py": "WORD = 'hello'",
        "pyproject.toml": f'{SETUPTOOLS}{PROJECT}[project.optional-dependencies]\ndev = ["six"]\n',
        "src/trainer/__init__.py": "",
    }
    plan = make_plan(
        tmp_path, files, "python", "-c", "import six, common, trainer; print(six.__version__, common.WORD)"
    )
    assert await log_of(runner, plan) == "1.15.0 hello\n"


async def test_requirements_are_given_the_runs_own_variables_and_none_of_the_agents(
    runner: LocalProcessRunner, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "the-agents")
    (tmp_path / "served" / "limits-s3cret.txt").write_text("six==1.15.0\n")
    files = {"requirements.txt": f"six\n-c http://{address}/limits-${{TOKEN}}.txt\n"}
    command = ("python", "-c", "import six; print(six.__version__)")
    plan = make_plan(tmp_path, files, *command, env={"TOKEN": "s3cret"})
    assert await log_of(runner, plan) == "1.15.0\n"
    with pytest.raises(SourceError, match=r"requirements.txt:2 names the environment variable \$\{TOKEN\}"):
        await runner.prepare(make_plan(tmp_path, files, *command))
    wrong = make_plan(tmp_path, files, *command, env={"TOKEN": "wr0ng"})
    with pytest.raises(Exception, match=r"limits-\$\{TOKEN\}\.txt") as caught:
        await runner.prepare(wrong)
    assert "wr0ng" not in str(caught.value)
