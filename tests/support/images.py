"""Base images for container tests, made from this machine's own files: no registry is asked.

`launch-test/shell:1` is a static busybox with its applets linked (2 MB); `launch-test/python:2` is this machine's
Python with its standard library, pip and the shared libraries it needs (100 MB), every file at the path it has here.
"""

from __future__ import annotations

import io
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import docker
from docker.errors import ImageNotFound
from uv import find_uv_bin

SHELL_IMAGE = "launch-test/shell:1"
PYTHON_IMAGE = "launch-test/python:2"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# Parts of the standard library that no job needs; together most of its size.
LEFT_OUT = re.compile(r"/(test|tests|idlelib|turtledemo|tkinter|lib2to3|config-[^/]*|site-packages|dist-packages)(/|$)")
PIP = re.compile(r"/(site|dist)-packages/(pip|setuptools|wheel|pkg_resources|_distutils_hack)[^/]*(/|$)")


def ensure_shell_image(client: docker.DockerClient) -> str:
    """Make the shell image when the engine does not have it.

    Args:
        client: Client of the engine.

    Returns:
        The image's name.
    """
    return ensure_image(client, SHELL_IMAGE, add_shell)


def ensure_python_image(client: docker.DockerClient) -> str:
    """Make the Python image when the engine does not have it.

    Args:
        client: Client of the engine.

    Returns:
        The image's name.
    """
    return ensure_image(client, PYTHON_IMAGE, add_shell, add_python)


def ensure_image_of_one_program(client: docker.DockerClient, image: str, program: Path) -> None:
    """Make an image that holds nothing but a static program, and runs it, when the engine does not have it.

    Args:
        client: Client of the engine.
        image: The image's name.
        program: The program.
    """

    def add(tree: tarfile.TarFile) -> None:
        tree.add(program, program.name, filter=as_root)

    ensure_image(client, image, add, changes=[f'ENTRYPOINT ["/{program.name}"]'])


def ensure_image(
    client: docker.DockerClient, image: str, *parts: Callable[[tarfile.TarFile], None], changes: Sequence[str] = ()
) -> str:
    """Make an image when the engine does not have it.

    Args:
        client: Client of the engine.
        image: The image's name.
        *parts: Each adds files to its tree.
        changes: Instructions of a Dockerfile for what it runs; by default a shell.

    Returns:
        The image's name.
    """
    try:
        client.images.get(image)
    except ImageNotFound:
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w", dereference=True) as tree:
                for part in parts:
                    part(tree)
            file.seek(0)
            _load(client, image, file, [f"ENV PATH={PATH}", *(changes or ['CMD ["sh"]'])])
    return image


def _load(client: docker.DockerClient, image: str, file: IO[bytes], changes: list[str]) -> None:
    repository, _, tag = image.partition(":")
    answer = client.api.import_image_from_data(file, repository=repository, tag=tag, changes=changes)
    if "error" in answer:
        raise RuntimeError(f"the engine did not import {image}: {answer}")


def add_shell(tree: tarfile.TarFile) -> None:
    """Add a static busybox and links for all that it can."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("no busybox here: run scripts/setup-test-machine.sh, or install 'busybox-static'")
    for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var"):
        _add_folder(tree, folder)
    tree.add(Path(busybox).resolve(), "bin/busybox", filter=as_root)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            _add_link(tree, f"bin/{applet}", "/bin/busybox")
    _add_link(tree, "usr/bin/env", "/bin/busybox")
    add_text(tree, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    add_text(tree, "etc/group", "root:x:0:\nnogroup:x:65534:\n")


def add_python(tree: tarfile.TarFile) -> None:
    """Add this machine's Python with its standard library."""
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    files = {program, *_library_files(library)}
    # uv's libraries too: images with a Python from a distribution have them.
    uv = Path(find_uv_bin())
    files |= shared_libraries([program, uv, *(file for file in files if file.suffix == ".so")])
    for file in sorted(files):
        tree.add(file, str(file).lstrip("/"), filter=as_root)
    for name in ("python", "python3"):
        _add_link(tree, f"usr/local/bin/{name}", str(program))
    certificates = Path(ssl.get_default_verify_paths().cafile or f"/{CERTIFICATES}")
    if certificates.is_file():
        tree.add(certificates.resolve(), CERTIFICATES, filter=as_root)


def _library_files(library: Path) -> Iterator[Path]:
    for file in library.rglob("*"):
        inside = file.as_posix()
        if ".opt-" not in file.name and (not LEFT_OUT.search(inside) or PIP.search(inside)) and file.is_file():
            yield file


def shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    """The libraries of this machine that programs and libraries load."""
    listing = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, flags=re.MULTILINE)}


def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Let root own a file; a filter of `tarfile`."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _add_folder(tree: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    tree.addfile(entry)


def _add_link(tree: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tree.addfile(entry)


def add_text(tree: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    """Add a file with such content."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), mode
    tree.addfile(entry, io.BytesIO(text.encode()))
