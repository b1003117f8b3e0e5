"""Which Dockerfile builds a job's code, and which images it takes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.builds.dockerfile_selection import read_base_images, select_dockerfile
from prefect_launch.errors import SourceError
from prefect_launch.spec.code_options import BuildRequest

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


def bases(folder: Path, text: str) -> tuple[str, ...]:
    file = folder / "Dockerfile"
    file.write_text(text)
    return read_base_images(file)


def test_bases_are_the_images_of_stages_and_not_the_stages(tmp_path: Path) -> None:
    text = (
        "FROM --platform=linux/amd64 python:3.11 AS base\nFROM base as second\n from debian:12\n"
        "FROM scratch\nRUN echo FROM nothing\n# FROM a-comment\nFROM node AS node\nFROM node\n"
    )
    assert bases(tmp_path, text) == ("python:3.11", "debian:12", "node")


def test_python_in_a_continued_line_or_a_here_document_names_no_image(tmp_path: Path) -> None:
    text = (
        'FROM python:3.11\nRUN python -c "\\\nfrom json import loads; \\\n# a comment\n\nfrom os import path"\n'
        "RUN python3 <<EOF\nfrom torch import nn\nEOF\n"
        "RUN <<-'A' sh && <<B cat\nFROM first\n\tA\nFROM second\nB\nFROM debian:12\nRUN echo 1 <<NEVER\nFROM alpine:3\n"
    )
    assert bases(tmp_path, text) == ("python:3.11", "debian:12", "alpine:3")


def test_defaults_of_arguments_before_the_first_stage_are_filled_in(tmp_path: Path) -> None:
    text = (
        "ARG V=3.11 KIND='slim'\nARG BASE=python:${V}-$KIND\nARG UNSET\nFROM $BASE\nARG V=4\nFROM image:${V}\n"
        "FROM debian:${UNSET:-12}\nFROM of-the-build:$UNSET\nFROM ${NAMELESS}\n"
    )
    assert bases(tmp_path, text) == ("python:3.11-slim", "image:3.11", "debian:12")


def test_images_that_files_are_taken_from_come_first(tmp_path: Path) -> None:
    text = (
        "FROM python:3.11 AS made\nFROM debian:12\nCOPY --from=made /a /b\n"
        "COPY --chown=1 --from=team/uv:0.4 /uv /bin/\n"
        "COPY --from=0 /a /c\nRUN --mount=type=bind,from=team/tools:1,target=/t true\nRUN echo --from=nothing\n"
    )
    assert bases(tmp_path, text) == ("team/uv:0.4", "team/tools:1", "python:3.11", "debian:12")


def test_escape_that_the_file_names_continues_lines(tmp_path: Path) -> None:
    assert bases(tmp_path, "# escape=`\nFROM python:3.11\nRUN a `\n  from b import c\nRUN dir c:\\\nFROM d\n") == (
        "python:3.11",
        "d",
    )


def test_dockerfile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(b"FROM \xff\n")
    with pytest.raises(SourceError, match="cannot be read"):
        read_base_images(tmp_path / "Dockerfile")
