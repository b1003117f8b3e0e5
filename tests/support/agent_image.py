"""An image with this source's agent: the tests' Python image, and the packages that `prefect-launch[kubernetes]` needs.

The packages are those of this process's own environment, so that no package index is asked.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import docker
from packaging.requirements import Requirement

import prefect_launch
from tests.support import images

IMAGE = "launch-test/agent:1"
OURS = "prefect-launch"
PACKAGES = "opt/packages"
#: An unprivileged user, as the image's own.
USER = 1000
_EXTRA = "kubernetes"
_START = "#!/usr/bin/env python3\nfrom prefect_launch.cli import main\nmain()\n"


def ensure_agent_image(client: docker.DockerClient) -> str:
    """Make the image when the engine does not have it.

    Args:
        client: Client of the engine.

    Returns:
        The image's name; its entrypoint is `prefect-launch`.
    """
    changes = [f"ENV PYTHONPATH=/{PACKAGES}", f"USER {USER}", 'ENTRYPOINT ["/usr/local/bin/prefect-launch"]']
    return images.ensure_image(client, IMAGE, images.add_shell, images.add_python, _add_agent, changes=changes)


def _add_agent(tree: tarfile.TarFile) -> None:
    packages = {package.name: package for package in _needed(OURS, {_EXTRA})}
    _add_source(tree, packages.pop(OURS))
    binaries = []
    for package in packages.values():
        for file in package.files or ():
            path = Path(str(package.locate_file(file))).resolve()
            if ".." not in file.parts and path.is_file() and path.suffix != ".pyc":
                tree.add(path, f"{PACKAGES}/{file}", filter=images.as_root)
                binaries += [path] if path.suffix == ".so" else []
    there = set(tree.getnames())
    for library in sorted(images.shared_libraries(binaries)):
        name = str(library).lstrip("/")
        if name.startswith(("usr/", "lib")) and name not in there:
            tree.add(library, name, filter=images.as_root)
    images.add_text(tree, "usr/local/bin/prefect-launch", _START, mode=0o755)


def _add_source(tree: tarfile.TarFile, ours: Distribution) -> None:
    """Add this package, which is installed here as a link to its source: its files are not in its list."""
    source = Path(prefect_launch.__file__).parent
    tree.add(source, f"{PACKAGES}/{source.name}", filter=_without_caches)
    about = f"{PACKAGES}/{source.name}-{ours.version}.dist-info"
    images.add_text(tree, f"{about}/METADATA", ours.read_text("METADATA") or ours.read_text("PKG-INFO") or "")
    images.add_text(tree, f"{about}/entry_points.txt", ours.read_text("entry_points.txt") or "")


def _needed(name: str, extras: set[str]) -> Iterator[Distribution]:
    """A distribution and all that it requires here, one more than once when it is wanted with several extras."""
    waiting, seen = [(name, frozenset(extras))], set()
    while waiting:
        name, wanted = waiting.pop()
        key = (re.sub(r"[-_.]+", "-", name).lower(), wanted)
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another platform, or for another version of Python
            continue
        yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            if any(not requirement.marker or requirement.marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
                waiting.append((requirement.name, frozenset(requirement.extras)))


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else images.as_root(entry)
