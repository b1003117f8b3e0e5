"""Default name and Python version of a job.

Names: `job-<folder>`, `job-<repository>`, `job-<image>`; the tag of an image becomes an alias. Python: `runtime.txt`,
then `.python-version`, then the interpreter at hand; the patch number is ignored. Both are the reference's rules.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from prefect_launch.core.names import safe_name
from prefect_launch.errors import SpecError

_RUNTIME: Final = re.compile(r"3\.[0-9]+\Z")
_WRITTEN_VERSION: Final = re.compile(r"(?:python-|cpython-)?(3\.[0-9]+)(?:\.[0-9]+)?\Z", re.IGNORECASE)
_IMAGE: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._\-]*(?::[0-9]{1,5}(?=/))?(?:/[a-z0-9][a-z0-9._\-]*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)
_FILES: Final = ("runtime.txt", ".python-version")


def parse_image(image: str) -> tuple[str, str | None]:
    """Return an image's name without its tag, and its tag.

    Raises:
        SpecError: when it is no valid image name.
    """
    match = _IMAGE.match(image)
    if match is None or len(image) > 512:
        raise SpecError(
            f"Invalid image {image[:200]!r}: write [registry/]name[:tag], in lower case, such as 'team/train:1.2'."
        )
    return match["name"], match["tag"]


def job_name(subject: str) -> str:
    """Return the default name of a job from a folder, repository or image."""
    return safe_name(f"job-{subject}")


def check_runtime(runtime: str | None) -> str | None:
    """Check a Python version, and return it.

    Raises:
        SpecError: when it is not of the form `3.11`.
    """
    if runtime is not None and not _RUNTIME.match(str(runtime)):
        raise SpecError(f"Invalid runtime {runtime!r}: write the Python version as '3.N', such as '3.11'.")
    return runtime


def runtime_of(*folders: Path | None) -> str:
    """Return the Python version that code declares, or the version of this interpreter.

    Args:
        *folders: folders that may hold the version file, the nearest first.

    Raises:
        SpecError: when the file names no Python version.
    """
    for path in (folder / name for folder in folders if folder is not None for name in _FILES):
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").split()
        match = _WRITTEN_VERSION.match(lines[0]) if lines else None
        if match is None:
            raise SpecError(
                f"{path} names no Python version that can be used ({' '.join(lines)[:80]!r}): write '3.N' or '3.N.P',"
                " or give the runtime."
            )
        return match[1]
    return f"{sys.version_info.major}.{sys.version_info.minor}"
