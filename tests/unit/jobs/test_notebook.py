"""Notebooks become programs: real ones, converted by nbconvert, and run by a Python that knows nothing of Jupyter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from prefect_launch.client.create_job import JobRequest, create_in, draft_job
from prefect_launch.errors import OperatorError, SourceError
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.sources.fetch import fetch_code
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.notebook import as_program, convert, notebook_in
from tests.support.git_repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one commit."""
    made = Repository(tmp_path / "remote")
    made.commit(main="print('one')")
    return made


def _notebook(*cells: str, **metadata: Any) -> bytes:
    code: list[dict[str, Any]] = [
        {"cell_type": "code", "metadata": {}, "source": cell, "outputs": [], "execution_count": None} for cell in cells
    ]
    text = {"cell_type": "markdown", "metadata": {}, "source": "# Train\nit's *done* here"}
    content = {"nbformat": 4, "nbformat_minor": 4, "metadata": metadata, "cells": [text, *code]}
    return json.dumps(content).encode()


def _run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-S", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_program_does_what_the_cells_do_and_tells_what_was_left_out() -> None:
    content = _notebook(
        "%matplotlib inline\n%load_ext autoreload\nimport sys",
        "!pip install torch\nfor number in range(2):\n    !echo {number}\n    print(number)",
        "%%time\n%config x=1\ntotal = sum(\n    range(4))\nprint('total', total)",
        "if total:\n\t%time print('tab', total)\n\t%matplotlib inline",
        "sys?\ndisplay({'a': 1})",
        "text = '''get_ipython().system('no magic')'''\nprint(text)",
    )

    said = _run(convert(content, "train.ipynb")).splitlines()

    assert said == [
        "[prefect-launch] left out of the notebook: !pip install torch",
        "[prefect-launch] left out of the notebook: !echo {number}",
        "0",
        "[prefect-launch] left out of the notebook: !echo {number}",
        "1",
        "total 6",
        "tab 6",
        "{'a': 1}",
        "get_ipython().system('no magic')",
    ]


def test_notebook_in_a_folder_runs_in_that_folder_as_in_jupyter(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "points.txt").write_text("three points")
    cells = ("from __future__ import annotations", "display('begun')", "print(open('../points.txt').read())")
    program = tmp_path / "books" / "fit_ipynb.py"
    program.write_text(convert(_notebook(*cells), "books/fit.ipynb"))

    ended = subprocess.run([sys.executable, "books/fit_ipynb.py"], cwd=tmp_path, capture_output=True, text=True)

    assert (ended.stdout, ended.stderr) == ("begun\nthree points\n", "")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("files = !ls data", "its result is used"),
        ("print(1)\n%run other.py", r"'%run other\.py'; it cannot be left out"),
        ("%env LR=1", "%env LR=1"),
        ("%%bash\nls", "%%bash"),
        ("%%time\nx = %pwd", "its result is used"),
        ("%%capture out\nprint(1)", "%%capture out"),
        ("for x in [1, 2:", "no good Python"),
    ],
)
def test_what_only_a_notebook_can_do_is_refused(cell: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as refused:
        convert(_notebook(cell), "train.ipynb")
    assert "'train.ipynb'" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read|can be read"),
        (b"\xff\xfe", "can be read"),
        (b"[1]", "can be read"),
        (b'{"cells": 5}', "can be read"),
        (_notebook("x <- 1", kernelspec={"name": "ir", "language": "R", "display_name": "R"}), "written in r"),
    ],
)
def test_file_that_is_no_notebook_of_python_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        convert(content, "train.ipynb")


def test_missing_nbconvert_is_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbconvert", None)

    with pytest.raises(OperatorError, match=r"prefect-launch\[notebook\]"):
        convert(_notebook("x = 1"), "train.ipynb")


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["train.ipynb"], ("python", "train_ipynb.py")),
        (["python", "-u", "sub/train.ipynb", "--lr", "1"], ("python", "-u", "sub/train_ipynb.py", "--lr", "1")),
        (["python3.11", "./train.ipynb"], ("python3.11", "train_ipynb.py")),
        (["papermill", "train.ipynb", "out.ipynb"], ("papermill", "train.ipynb", "out.ipynb")),
        (["python", "train.py", "data.ipynb"], ("python", "train.py", "data.ipynb")),
        ([], ()),
    ],
)
def test_command_of_a_notebook_runs_its_program(command: list[str], program: tuple[str, ...]) -> None:
    assert as_program(command) == program
    assert (notebook_in(command) is None) == (tuple(command) == program)


async def test_folder_with_a_notebook_becomes_a_job_that_needs_no_jupyter(
    registry: JobRegistry, tmp_path: Path
) -> None:
    code = tmp_path / "digits"
    (code / "sub").mkdir(parents=True)
    (code / "sub" / "train.ipynb").write_bytes(_notebook("import sys\nprint('trained', sys.argv[1])"))
    (code / "sub" / "train.py").write_text("print('another')")
    request = JobRequest(path=str(code), job_type="code", entrypoint=("python", "sub/train.ipynb", "x"))

    job = (await create_in(registry, request)).job
    again = (await create_in(registry, request)).job
    await registry.fetch_code(job, tmp_path / "out")

    assert (job.entry_point, again.version) == (("python", "sub/train_ipynb.py", "x"), 0)
    assert job.document.source.model_dump()["notebook"] is True
    command = [sys.executable, "-S", str(tmp_path / "out" / "sub" / "train_ipynb.py"), "7"]
    assert (await anyio.run_process(command)).stdout == b"trained 7\n"
    assert (tmp_path / "out" / "sub" / "train.py").read_text() == "print('another')"
    assert not (code / "sub" / "train_ipynb.py").exists()


async def test_notebook_of_a_repository_is_converted_where_it_is_fetched(
    registry: JobRegistry, repository: Repository, tmp_path: Path
) -> None:
    (repository.path / "train.ipynb").write_bytes(_notebook("print('trained')"))
    repository.commit()
    git = Git(allowed_protocols=("file",))
    request = JobRequest(path=repository.url, job_type="git", entrypoint=("train.ipynb",))
    draft, _ = await draft_job(request, git=git)
    job = (await registry.put(draft)).job

    await fetch_code(job, tmp_path / "code", registry, home=tmp_path / "home", git=git)

    assert job.entry_point == ("python", "train_ipynb.py")
    assert _run((tmp_path / "code" / "train_ipynb.py").read_text()) == "trained\n"


async def test_notebook_that_is_not_there_is_refused_when_the_job_is_made(
    registry: JobRegistry, repository: Repository
) -> None:
    folder = JobRequest(path=str(repository.path), job_type="code", entrypoint=("train.ipynb",))
    remote = JobRequest(path=repository.url, job_type="git", entrypoint=("train.ipynb",))

    for request in (folder, remote):
        with pytest.raises(SourceError, match=r"Unknown entry point file 'train\.ipynb'"):
            await create_in(registry, request, git=Git(allowed_protocols=("file",)))
