"""Virtual environments of local processes: one for each set of requirements, made once with uv and kept.

The key is the Python, the platform and the requirements, never the code, so the second launch of a job finds its
environment in milliseconds. One process makes it while others wait (a file lock); a marker, written last, says that it
is whole, so a killed build leaves nothing that is taken for an environment. Old ones are removed by `shelf.py`; the
marker's time says when one was last used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from prefect_launch.commands import run_command
from prefect_launch.environments.pip_config import uv_environment
from prefect_launch.environments.requirements import Requirements, read_requirements
from prefect_launch.errors import AgentConfigError, InfrastructureError, LaunchError, SourceError
from prefect_launch.file_lock import locked
from prefect_launch.inputs.carry import carry_inputs

#: Is in every whole environment; its time says when it was last used.
READY = ".ready"
#: What uv's message shows of a build that failed: the end of it.
_SHOWN_LINES = 15
#: uv's words for a fault of the network or the disk, not of the requirements.
_MACHINE_FAULTS = re.compile(
    r"failed to fetch|error sending request|dns error|connection (?:refused|reset)|timed out|invalid peer certificate"
    r"|No space left|Permission denied|HTTP status (?:server error|client error \(40[137])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Venv:
    """An environment that is ready.

    Attributes:
        path: its folder; the interpreter is `bin/python` in it.
        warnings: what the run's log should say about it.
    """

    path: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Python:
    """An interpreter on this machine that environments are made from."""

    executable: str
    version: str
    warnings: tuple[str, ...] = ()


@dataclass
class Environments:
    """The environments kept in one folder.

    Args:
        folder: where they are; made when needed. Several processes may share it.
    """

    folder: Path
    _pythons: dict[str | None, _Python] = field(default_factory=dict)

    async def is_ready(self, code_dir: Path | None, python_version: str | None = None) -> bool:
        """Whether the environment that a job's code needs is there; arguments as `ensure`."""
        path, _, _ = await self._wanted(code_dir, python_version)
        return await anyio.to_thread.run_sync(_touch, path)

    async def _wanted(self, code_dir: Path | None, version: str | None) -> tuple[Path, _Python, Requirements]:
        requirements = await anyio.to_thread.run_sync(read_requirements, code_dir)
        python = await self._python(version)
        return self.folder / _key(python, requirements), python, requirements

    async def ensure(self, code_dir: Path | None, python_version: str | None = None) -> Venv:
        """Return the environment that a job's code needs; make it when it is not there.

        Args:
            code_dir: the job's code; None, or code that names no requirements, gets an empty environment.
            python_version: the job's Python, such as "3.11". When this machine has none, the agent's own is taken, with
                a warning.

        Raises:
            SourceError: when the requirements do not resolve or build, with uv's last lines.
            InfrastructureError: when an index or the disk fails.
        """
        path, python, requirements = await self._wanted(code_dir, python_version)
        if not await anyio.to_thread.run_sync(_touch, path):
            async with locked(self.folder / f"{path.name}.lock"):
                if not await anyio.to_thread.run_sync(_touch, path):
                    await self._make_whole(path, python, requirements)
        await anyio.to_thread.run_sync(_carry_inputs, path)
        return Venv(path, python.warnings)

    async def _python(self, version: str | None) -> _Python:
        wanted = version if version and not platform.python_version().startswith(f"{version}.") else None
        if wanted not in self._pythons:
            self._pythons[wanted] = _own_python() if wanted is None else await _find_python(wanted)
        return self._pythons[wanted]

    async def _make_whole(self, path: Path, python: _Python, requirements: Requirements) -> None:
        try:
            await self._make(path, python, requirements)
        except (LaunchError, OSError):
            # On a disk that is full, what is half made would keep it so.
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))
            raise

    async def _make(self, path: Path, python: _Python, requirements: Requirements) -> None:
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))
        await _uv("venv", "--quiet", "--no-project", "--python", python.executable, str(path), cwd=self.folder)
        if requirements.lines:
            _write(path / "requirements.txt", requirements.lines)
            _write(path / "constraints.txt", requirements.constraints)
            await _uv(
                *("pip", "install", "--quiet", "--python", str(path / "bin" / "python")),
                *("--requirement", "requirements.txt", "--constraint", "constraints.txt"),
                cwd=path,
            )
        (path / READY).touch()


def _key(python: _Python, requirements: Requirements) -> str:
    parts = (python.executable, python.version, sysconfig.get_platform(), requirements.key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _own_python() -> _Python:
    # Not the agent's venv: its packages are none of the job's.
    return _Python(getattr(sys, "_base_executable", "") or sys.executable, platform.python_version())


async def _find_python(version: str) -> _Python:
    own = _own_python()
    process = await run_command(
        [_uv_path(), "python", "find", "--no-project", "--system", version], env=uv_environment()
    )
    found = process.stdout.decode(errors="replace").strip()
    if process.returncode == 0 and found:
        return _Python(found, version)
    warning = (
        f"Python {version}, which the job asks for, is not on this machine; it runs on Python {own.version}."
        f" Install Python {version} on the agent's machine to have it."
    )
    return _Python(own.executable, own.version, (warning,))


async def _uv(*arguments: str, cwd: Path) -> None:
    """Run uv; cancelled, it ends the command too."""
    process = await run_command(
        [_uv_path(), *arguments],
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=uv_environment({key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}),
    )
    if process.returncode == 0:
        return
    said = process.stdout.decode(errors="replace").strip()
    end = "\n".join(said.splitlines()[-_SHOWN_LINES:])
    if _MACHINE_FAULTS.search(said) or arguments[0] == "venv":
        raise InfrastructureError(
            "The job's environment could not be made on this machine. Look at its network, package index and disk. uv"
            f" says:\n{end}"
        )
    raise SourceError(f"The job's requirements cannot be installed. Correct its requirements file. uv says:\n{end}")


def _uv_path() -> str:
    import uv

    try:
        return uv.find_uv_bin()
    except FileNotFoundError as error:
        raise AgentConfigError(
            f"The program uv is not there ({error}). Install prefect-launch's dependencies again."
        ) from error


def _carry_inputs(path: Path) -> None:
    """Let the job's code import `prefect_launch.inputs`; an older version's are brought up to date."""
    try:
        carry_inputs(next(path.glob("lib/python*/site-packages")))
    except (OSError, StopIteration) as error:
        raise InfrastructureError(
            f"The job's environment {str(path)!r} cannot be completed ({error!r}). Look at this machine's disk;"
            " remove the folder to have it made again."
        ) from error


def _write(path: Path, lines: tuple[str, ...]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _touch(path: Path) -> bool:
    """Note that an environment is used now; return whether it is whole."""
    try:
        os.utime(path / READY)
    except FileNotFoundError:
        return False
    return True
