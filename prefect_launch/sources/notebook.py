"""Notebooks as entry points: `train.ipynb` becomes `train_ipynb.py`, which any Python runs without Jupyter.

A folder's notebook is converted when the job is made, a git repository's when it is fetched. nbconvert does it (the
extra `notebook`); what IPython alone understands is dealt with in `prefect_launch.sources.magics`.
"""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prefect_launch.errors import InfrastructureError, OperatorError, SourceError
from prefect_launch.sources.magics import as_plain_python

_NOTEBOOK: Final = ".ipynb"
_SCRIPT: Final = "_ipynb.py"


def notebook_in(entry_point: Sequence[str]) -> str | None:
    """Return the notebook that a command runs as a program: `train.ipynb`, or `python train.ipynb`; None otherwise."""
    place = _place_of_notebook(entry_point)
    return None if place is None else posixpath.normpath(entry_point[place])


def as_program(entry_point: Sequence[str]) -> tuple[str, ...]:
    """Return a command with the program that is made of its notebook in the notebook's place."""
    place = _place_of_notebook(entry_point)
    if place is None:
        return tuple(entry_point)
    script = script_of(posixpath.normpath(entry_point[place]))
    return (*(entry_point[:place] or ("python",)), script, *entry_point[place + 1 :])


def script_of(notebook: str) -> str:
    """Return where the program of a notebook lies: beside it, under a name that no program of its folder has."""
    return notebook.removesuffix(_NOTEBOOK) + _SCRIPT


def convert(content: bytes, name: str) -> str:
    """Return a notebook as a program.

    Args:
        content: the notebook's file.
        name: what it is called, for messages.

    Raises:
        SourceError: when it is no notebook of Python, or does what only a notebook can.
        OperatorError: when nbconvert is not installed here.
    """
    try:
        import nbformat
        from nbconvert import PythonExporter
    except ImportError as error:
        raise OperatorError(
            f"The notebook {name!r} cannot be converted here ({error}). Install the extra on this machine:"
            " pip install 'prefect-launch[notebook]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # An old notebook's cells have no ids; nobody needs them here.
            notebook = nbformat.reads(content.decode("utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - nbformat raises whatever its readers raise
        raise SourceError(
            f"{name!r} is no notebook that can be read: {str(error)[:200]}. Save it again in Jupyter."
        ) from None
    language = _language(notebook.get("metadata", {}))
    if language != "python":
        raise SourceError(f"The notebook {name!r} is written in {language}. Only notebooks of Python can be jobs.")
    program, _ = PythonExporter().from_notebook_node(notebook)  # type: ignore[no-untyped-call]
    return as_plain_python(program, name)


def convert_in(folder: Path, entry_point: Sequence[str], build_context: str | None) -> None:
    """Make the program of a fetched notebook, unless it is there.

    Args:
        folder: the code.
        entry_point: the job's command, which runs the program.
        build_context: the folder in the code that the command's paths are relative to, if not to its top.

    Raises:
        SourceError: when the notebook is not there, or cannot be a program.
        OperatorError: when nbconvert is not installed here.
        InfrastructureError: when the program cannot be written.
    """
    script = next((part for part in entry_point if part.endswith(_SCRIPT)), None)
    if script is None:
        return
    for place in (build_context or "", ""):
        path = folder / place / script
        if path.is_file():
            return
        notebook = path.with_name(path.name.removesuffix(_SCRIPT) + _NOTEBOOK)
        if notebook.is_file():
            try:
                path.write_text(convert(notebook.read_bytes(), notebook.name), encoding="utf-8")
            except OSError as error:
                raise InfrastructureError(f"{path} cannot be written: {error}. Look at this machine's disk.") from error
            return
    raise SourceError(f"The notebook of the program {script!r} is not in the code. Make the job again.")


def _place_of_notebook(entry_point: Sequence[str]) -> int | None:
    if entry_point and entry_point[0].endswith(_NOTEBOOK):
        return 0
    if not entry_point or not posixpath.basename(entry_point[0]).startswith("python"):
        return None  # papermill, jupyter: programs that want the notebook itself
    for place, part in enumerate(entry_point[1:], start=1):
        if not part.startswith("-"):
            return place if part.endswith(_NOTEBOOK) else None
    return None


def _language(metadata: Any) -> str:
    kernel, about = metadata.get("kernelspec", {}), metadata.get("language_info", {})
    return str(kernel.get("language") or about.get("name") or "python").lower()
