"""What a job of a folder tells of the git work tree that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.git_repository import Repository


@pytest.mark.usefixtures("prefect_server")
def test_described_job_tells_the_commit_and_what_was_not_committed(launch_cli: Cli, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "code")
    commit = repository.commit(train="print(1)")
    name = f"tree-{uuid4().hex[:8]}"
    made = ("job", "create", "code", str(repository.path), "--name", name, "-E", "python train.py")

    launch_cli(*made)
    clean = launch_cli("job", "show", name).stdout
    (repository.path / "train.py").write_text("print(2)")
    (repository.path / "new.py").write_text("")
    launch_cli(*made)
    changed = " ".join(launch_cli("job", "show", name).stdout.split())

    assert f"a repository without a remote at {commit[:12]}\n" in clean
    assert f"{commit[:12]}, 2 not committed: M train.py, ?? new.py" in changed
    assert json.loads(launch_cli("job", "show", name, "--json").stdout)["metadata"]["git"]["commit"] == commit
