"""Which images a Dockerfile takes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.builds.dockerfile_selection import read_base_images
from prefect_launch.errors import SourceError


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
