"""Outputs of a job: files in its output folder, and `outputs.json`, the run's named results.

The agent keeps the whole folder in the job store, and shows `outputs.json`, a flat dict, with the run. In a program
that was not started by launch the folder is `outputs` in the working directory, so that the same code runs by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_launch.errors import JobCodeError
from prefect_launch.inputs.atomic import write_atomically

#: The variable that names the output folder to a job.
OUTPUT_DIR_VARIABLE = "LAUNCH_OUTPUT_DIR"
_BY_HAND = "outputs"
#: Holds the named results of a run; it is kept whatever else there is.
OUTPUTS_FILE = "outputs.json"


def output_dir() -> Path:
    """Return the folder whose content is kept when the run ends; it is made when it is not there.

    Raises:
        JobCodeError: when it cannot be made.
    """
    folder = Path(os.environ.get(OUTPUT_DIR_VARIABLE) or _BY_HAND).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobCodeError(
            f"The output folder {str(folder)!r} cannot be made: {error.strerror}."
            f" Set {OUTPUT_DIR_VARIABLE} to a writable folder."
        ) from None
    return folder


def launched_output_dir() -> Path | None:
    """Return the output folder when this program was started by launch, else `None`."""
    return output_dir() if os.environ.get(OUTPUT_DIR_VARIABLE) else None


def save_outputs(**values: Any) -> Path:
    """Write named results of the run; results that were saved before under other names stay.

    Safe to call from several processes of the run at once; a reader never sees half a file.

    Args:
        **values: text, numbers, booleans or `None`; a NumPy or torch scalar counts as its number.

    Returns:
        The path of `outputs.json`.

    Raises:
        JobCodeError: when a value is nested, is not a finite number, or what is already in `outputs.json` is no flat
            dict. Nothing is then written.
    """
    plain = {name: _plain(name, value) for name, value in values.items()}
    folder = output_dir()
    file = folder / OUTPUTS_FILE
    try:
        with _locked(folder):
            write_atomically(file, json.dumps({**_read(file), **plain}, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise JobCodeError(
            f"The outputs cannot be written to {str(file)!r}: {error.strerror}."
            " Make the folder writable, or free space."
        ) from None
    return file


def plain_number(name: str, value: Any) -> int | float | None:
    """Return the number of a value, which may be a NumPy or torch scalar; `None` when it is none.

    Args:
        name: what the value is of, for the message.
        value: the value. A boolean is 0 or 1.

    Raises:
        JobCodeError: when it holds more than one value.
    """
    value = _scalar_of(name, value, "metric")
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (int, float)) else None


def _plain(name: str, value: Any) -> str | int | float | bool | None:
    value = _scalar_of(name, value, "output")
    if isinstance(value, float) and not math.isfinite(value):
        raise JobCodeError(f"The output {name!r} is {value}, which JSON does not have. Save None or leave it out.")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise JobCodeError(
        f"The output {name!r} is a {type(value).__name__}; an output is text, a finite number, a boolean or None."
        " Write anything larger as a file into output_dir()."
    )


def _scalar_of(name: str, value: Any, what: str) -> Any:
    """Return a value, or the number of one that is a NumPy or torch scalar."""
    if value is None or isinstance(value, (str, int, float)) or not callable(getattr(value, "item", None)):
        return value
    try:
        return value.item()
    except (TypeError, ValueError, RuntimeError) as error:
        raise JobCodeError(
            f"The {what} {name!r} is a {type(value).__name__} with more than one value ({error})."
            " Write it as a file into output_dir()."
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        # An empty one is made before the job starts where it is the last message of a container.
        values = json.loads(file.read_bytes() or b"{}")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise JobCodeError(
            f"{str(file)!r} is not JSON ({error}). Remove it, or write it with save_outputs only."
        ) from None
    if not isinstance(values, dict):
        raise JobCodeError(f"{str(file)!r} holds a {type(values).__name__}; it must hold a flat object. Remove it.")
    return {name: _plain(name, value) for name, value in values.items()}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep the run's other processes out by a lock on the folder itself, which leaves no file among the outputs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
