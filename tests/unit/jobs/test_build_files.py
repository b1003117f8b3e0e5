"""A job whose Dockerfile or build context is not in its code is not made."""

from __future__ import annotations

import pytest

from prefect_launch.errors import SourceError
from prefect_launch.jobs.code_checks import check_build_files

PATHS = ("main.py", "docker/Dockerfile.train", "docker/deep/notes.txt")


@pytest.mark.parametrize(
    ("context", "dockerfile"),
    [
        (None, None),
        (None, "docker/Dockerfile.train"),
        ("docker", "Dockerfile.train"),
        ("./docker/", "./Dockerfile.train"),
        ("docker/deep", None),
    ],
)
def test_files_that_are_in_the_code_are_right(context: str | None, dockerfile: str | None) -> None:
    check_build_files(PATHS, build_context=context, dockerfile=dockerfile, where="the code")


@pytest.mark.parametrize(
    ("context", "dockerfile", "said"),
    [
        (None, "Dockerfile", "Unknown Dockerfile 'Dockerfile' in the build context '.' of the code"),
        (None, "docker/Dockerfile.tran", "docker/Dockerfile.train"),
        ("docker", "docker/Dockerfile.train", "in the build context 'docker'"),
        (
            "dokcer",
            None,
            "context 'dokcer' in the code. Did you mean 'docker'.* a folder of the job's code",
        ),
        ("docker/depe", None, "Did you mean 'docker/deep'"),
        ("main.py", None, "Unknown build context 'main.py'"),
    ],
)
def test_file_that_is_not_there_is_refused_with_the_nearest(
    context: str | None, dockerfile: str | None, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        check_build_files(PATHS, build_context=context, dockerfile=dockerfile, where="the code")


@pytest.mark.parametrize(
    ("context", "dockerfile"),
    [("libs", None), ("libs/part", None), ("libs/part/inner", "Dockerfile"), (None, "libs/part/Dockerfile")],
)
def test_files_in_a_submodule_may_be_there(context: str | None, dockerfile: str | None) -> None:
    check_build_files(PATHS, build_context=context, dockerfile=dockerfile, where="the code", unlisted=["libs/part"])


def test_build_context_of_code_without_folders_is_refused_in_other_words() -> None:
    with pytest.raises(SourceError, match=r"Unknown build context 'src' in the code\. .* has no folders: leave it out"):
        check_build_files(["main.py"], build_context="src", dockerfile=None, where="the code")


def test_build_context_beside_a_submodule_is_refused() -> None:
    with pytest.raises(SourceError, match="Unknown build context 'libs/parts'"):
        check_build_files(PATHS, build_context="libs/parts", dockerfile=None, where="the code", unlisted=["libs/part"])
