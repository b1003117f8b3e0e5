"""Vendoring of `prefect_launch.inputs` into a job's environment, so that a job need not install Prefect.

Only this package, the errors and the top of `prefect_launch` are copied: the standard library is all they need. They
go behind everything else on the environment's path, so that a job which does require prefect-launch gets the one that
it asked for.
"""

from __future__ import annotations

import contextlib
from importlib.resources import files
from pathlib import Path

from prefect_launch.inputs.atomic import write_atomically

_FOLDER = "_prefect_launch_inputs"
_PATH_FILE = "prefect_launch_inputs.pth"


def vendor_inputs(site_packages: Path) -> None:
    """Make `import prefect_launch.inputs` work in an environment.

    An identical existing copy is left alone: doing this before each run costs a millisecond, and
    brings an environment that an older version made up to date.

    Raises:
        OSError: when it cannot be written.
    """
    for name, text in vendored_files().items():
        target = site_packages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, text)


def vendored_files() -> dict[str, str]:
    """Return what is put into an environment, by paths relative to its `site-packages`; the path file comes last."""
    package = Path(str(files("prefect_launch")))
    sources = [package / "__init__.py", package / "errors.py", *sorted((package / "inputs").glob("*.py"))]
    texts = {
        f"{_FOLDER}/{source.relative_to(package.parent).as_posix()}": source.read_text(encoding="utf-8")
        for source in sources
    }
    # Relative, so that the environment can be moved. Python puts what a .pth file names behind site-packages.
    return {**texts, _PATH_FILE: f"{_FOLDER}\n"}


def _write(file: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if file.read_text(encoding="utf-8") == text:
            return
    write_atomically(file, text)
