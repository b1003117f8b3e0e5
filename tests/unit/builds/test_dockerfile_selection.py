"""Which Dockerfile builds a job's code."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.builds.dockerfile_selection import select_dockerfile
from prefect_launch.errors import SourceError
from prefect_launch.spec.image_request import BuildRequest

ENTRY = ("python", "-u", "train/main.py", "--lr", "1")


def code(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("FROM x\n")
    return root


def test_dockerfile_that_is_named_wins_over_the_one_beside_the_entry_point(tmp_path: Path) -> None:
    root = code(tmp_path, "docker/Dockerfile", "train/Dockerfile.wandb", "train/main.py")
    selection = select_dockerfile(root, BuildRequest(entry_point=ENTRY, dockerfile="docker/Dockerfile"))
    assert (selection.context, selection.dockerfile, selection.entry_point) == (root, "docker/Dockerfile", ENTRY)


def test_dockerfile_is_looked_for_in_the_build_context(tmp_path: Path) -> None:
    root = code(tmp_path, "app/Dockerfile", "app/main.py")
    selection = select_dockerfile(
        root, BuildRequest(entry_point=("python", "a.py"), build_context="app", dockerfile="Dockerfile")
    )
    assert (selection.context, selection.dockerfile) == (root / "app", "Dockerfile")


def test_dockerfile_beside_the_entry_point_makes_its_folder_the_context(tmp_path: Path) -> None:
    root = code(tmp_path, "train/Dockerfile.wandb", "train/main.py", "requirements.txt")
    selection = select_dockerfile(root, BuildRequest(entry_point=ENTRY))
    assert (selection.context, selection.dockerfile) == (root / "train", "Dockerfile.wandb")
    assert selection.entry_point == ("python", "-u", "main.py", "--lr", "1")


def test_code_without_a_dockerfile_has_one_generated(tmp_path: Path) -> None:
    root = code(tmp_path, "train/main.py", "Dockerfile")
    selection = select_dockerfile(root, BuildRequest(entry_point=ENTRY))
    assert (selection.context, selection.dockerfile, selection.entry_point) == (root, None, ENTRY)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dockerfile": "no/Dockerfile"}, "Dockerfile does not exist at 'no/Dockerfile'"),
        ({"dockerfile": "../Dockerfile"}, "leaves the build context"),
        ({"dockerfile": "link"}, "leaves the build context"),
        ({"build_context": "app", "dockerfile": "../Dockerfile"}, "leaves the build context"),
        ({"build_context": "no"}, "Unknown build context 'no' in the job's code"),
        ({"build_context": ".."}, "leaves the code"),
        ({"dockerfile": "app"}, "Dockerfile does not exist"),
    ],
)
def test_dockerfile_or_context_that_is_not_in_the_code_is_refused(
    tmp_path: Path, asked: dict[str, str], said: str
) -> None:
    root = code(tmp_path / "code", "Dockerfile", "app/main.py")
    code(tmp_path, "Dockerfile")
    (root / "link").symlink_to("../Dockerfile")
    with pytest.raises(SourceError, match=said):
        select_dockerfile(root, BuildRequest(**asked))
