"""JSON schema of a class in a job's module, imported in a process of its own.

Importing a job's module in the caller's process would run its code there, and leave it in `sys.modules` under a name
like `train` that the next job uses, too. The process runs this module.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.resources import files
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Final

import anyio

from prefect_launch.core.subprocesses import run_command
from prefect_launch.core.units import format_duration
from prefect_launch.errors import SpecError

#: Importing a module of a job may import a large framework, from a cold disk.
_TIMEOUT_SECONDS: Final = 120.0


async def read_schema_class(module: str, attribute: str, *, folder: Path) -> object:
    """Import `module` from a folder, in a new process, and return the JSON schema that `attribute` is or has.

    Args:
        module: dotted name of the module.
        attribute: a pydantic class or instance in it, or a dict.
        folder: where modules are looked for first; then in the working directory, then where Python looks.

    Raises:
        SpecError: when it cannot be imported, takes too long, or is neither.
    """
    name = f"{module}:{attribute}"
    async with anyio.TemporaryDirectory(prefix="launch-schema-") as scratch:
        answer = anyio.Path(scratch, "schema.json")
        command = [sys.executable, "-m", __name__, module, attribute, str(answer)]
        where = Path(await anyio.Path(folder).resolve())
        try:
            ended = await run_command(command, cwd=where, env=await _environment(folder), seconds=_TIMEOUT_SECONDS)
        except TimeoutExpired as late:
            raise SpecError(
                f"Importing the schema {name} took more than {format_duration(late.timeout)}:"
                f" {_last_line(late.stderr) or 'it said nothing'}. Put the class into a module that does nothing when"
                " it is imported."
            ) from None
        if ended.returncode != 0 or not await answer.exists():
            last = _last_line(ended.stderr) or f"exit code {ended.returncode}"
            raise SpecError(
                f"The schema {name} cannot be imported from {folder}: {last}. It must be a pydantic class, or a"
                " dict, in a module that can be imported in this environment; or give the schema as a JSON file."
            )
        schema: object = json.loads(await answer.read_text(encoding="utf-8"))
        return schema


def _last_line(output: bytes | None) -> str:
    return next(iter((output or b"").decode(errors="replace").strip().splitlines()[-1:]), "")


async def _environment(folder: Path) -> dict[str, str]:
    here = await anyio.Path.cwd()
    own = [str(Path(str(files("prefect_launch"))).parent), os.environ.get("PYTHONPATH", "")]
    paths = [str(await anyio.Path(folder).resolve()), str(here), *own]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONDONTWRITEBYTECODE": "1"}


def _main(module: str, attribute: str, answer: str) -> None:
    found = getattr(importlib.import_module(module), attribute)
    schema = found.model_json_schema() if hasattr(found, "model_json_schema") else found
    if not isinstance(schema, dict):
        raise TypeError(f"{module}:{attribute} is neither a pydantic class nor a dict, but {type(found).__name__}")
    Path(answer).write_text(json.dumps(schema, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
