"""Outputs of containers: fetched as an archive, within limits, with holes for zeros."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from prefect_launch.core.filesystem import allocated_bytes
from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.runners.docker import files as container_files
from prefect_launch.runners.docker.engine import TooLargeError
from prefect_launch.runners.docker.files import collect_outputs
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine

MEBIBYTE = 1024 * 1024
NONE = OutputLimits()


class _Engine(InMemoryEngine):
    """An engine with one container, whose outputs folder is this archive."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__(InMemoryDocker())
        self._members = members

    async def get_archive(self, container_id: str, path: str, into: BinaryIO, max_bytes: int) -> bool:
        packed, name = io.BytesIO(), path.removeprefix("/launch/outputs").strip("/")
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for member, content in self._members.items():
                if not name or member == name:
                    info = tarfile.TarInfo(name or f"outputs/{member}")
                    if isinstance(content, bytes):
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
                    else:
                        info.type, info.linkname = content[0], "/etc/passwd"
                        archive.addfile(info)
        everything = packed.getvalue()
        into.write(everything[:max_bytes])
        if len(everything) > max_bytes:
            raise TooLargeError("too large")
        return True


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "outputs"
    target.mkdir()
    return target


def found(target: Path) -> list[str]:
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


async def test_zeros_of_a_sparse_file_are_holes_again_and_count_nothing(target: Path) -> None:
    engine = _Engine({"model.bin": b"begin" + bytes(50 * MEBIBYTE) + b"end", "small": b"x"})

    left_out = await collect_outputs(engine, "c", target, OutputLimits(max_bytes=MEBIBYTE))

    assert not left_out
    assert (target / "model.bin").read_bytes() == b"begin" + bytes(50 * MEBIBYTE) + b"end"
    assert allocated_bytes((target / "model.bin").stat()) < MEBIBYTE
    assert [path.name for path in target.parent.iterdir()] == ["outputs"]


async def test_what_does_not_fit_is_left_out_and_the_results_come_first(target: Path) -> None:
    engine = _Engine({"a.bin": b"x" * 3000, "b.bin": b"x" * 100, "outputs.json": b"{}", "z": b"z"})

    left_out = await collect_outputs(engine, "c", target, OutputLimits(max_bytes=2048, max_files=2))

    assert found(target) == ["b.bin", "outputs.json"]
    assert left_out.named == ("a.bin: it has 2.9 KiB, and 2 B are kept already", "z: it is over the limit of 2 files")


async def test_links_pipes_devices_and_what_leads_out_of_the_folder_are_left_out(target: Path) -> None:
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "null": tarfile.CHRTYPE}
    engine = _Engine({**{name: (kind,) for name, kind in kinds.items()}, "../../escaped": b"x", "fine": b"x"})

    left_out = await collect_outputs(engine, "c", target, NONE)

    assert found(target) == ["fine"]
    assert left_out.named == (
        "hard: it is a link",
        "pipe: it is a pipe",
        "null: it is a device",
        "../../escaped: it is outside of the outputs folder",
        "link: it is a link that leads out of the outputs folder",
    )


async def test_folder_that_is_far_too_large_gives_what_came_and_its_results(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_files, "_ZEROS_BYTES", MEBIBYTE)
    engine = _Engine({"a": b"x", "huge": bytes(5 * MEBIBYTE), "outputs.json": b'{"x": 1}', "z": b"z"})

    left_out = await collect_outputs(engine, "c", target, OutputLimits(max_bytes=MEBIBYTE))

    assert found(target) == ["a", "outputs.json"]
    assert (target / "outputs.json").read_text() == '{"x": 1}'
    assert left_out.named == ("all further files: the folder has more than 2.0 MiB, holes included",)
