"""Virtual environments of local processes: one for each set of requirements, made once with uv and kept.

The key is the Python, the platform, the requirements, and of the code only what is installed of it, so the second
launch of a job finds its environment in milliseconds. One process makes it while others wait (a file lock). A marker,
written last, says that it is complete, so a killed process leaves nothing that is taken for an environment. The
marker's time is the time of the last use; the housekeeping removes old environments.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from prefect_launch.core.file_lock import locked
from prefect_launch.core.filesystem import remove_tree
from prefect_launch.core.subprocesses import run_command
from prefect_launch.environments.pip_config import MACHINE_FAULT_PATTERN, PROJECT_LEFT_OUT, uv_environment
from prefect_launch.environments.requirements import Requirements, read_requirements, stage
from prefect_launch.errors import AgentConfigError, InfrastructureError, LaunchError, SourceError
from prefect_launch.inputs.vendoring import vendor_inputs

#: Marker of a complete environment; its time is the time of the last use.
READY = ".ready"
#: The copy of the code that its packages are installed from, which the environment needs as long as it exists.
_CODE = "code"
#: The file that says why the project itself is not in the environment.
_WARNING = ".warning"
#: Variables of the agent's own environment that uv, and the build backends that it calls, get.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|TMPDIR|LD_LIBRARY_PATH|(?i:(?:HTTPS?|ALL|NO)_PROXY)|REQUESTS_CA_BUNDLE"
    r"|CURL_CA_BUNDLE|SSH_AUTH_SOCK|CC|CXX|CFLAGS|LDFLAGS|(?:LC|XDG|SSL|GIT|UV|PIP|CUDA|NVIDIA)_\w+"
)
#: How many of uv's last lines a message shows.
_SHOWN_LINES = 15
#: How uv reports a fault of the network or the disk rather than of the requirements.
_MACHINE_FAULTS = re.compile(MACHINE_FAULT_PATTERN, re.IGNORECASE)


@dataclass(frozen=True)
class Venv:
    """An environment that is ready.

    Attributes:
        path: its folder; the interpreter is `bin/python` in it.
        warnings: warnings for the run's log.
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
    """The environments kept in one folder, which several processes may share."""

    folder: Path
    _pythons: dict[str | None, _Python] = field(default_factory=dict)

    async def is_ready(
        self, code_dir: Path | None, python_version: str | None = None, variables: Mapping[str, str] | None = None
    ) -> bool:
        """Whether the environment that a job's code needs exists; arguments as for `ensure`."""
        spec = await self._spec_of(code_dir, python_version, variables)
        return await anyio.to_thread.run_sync(_touch, self.folder / spec.key)

    async def _spec_of(
        self, code_dir: Path | None, version: str | None, variables: Mapping[str, str] | None
    ) -> _VenvSpec:
        requirements = await anyio.to_thread.run_sync(read_requirements, code_dir)
        if requirements.conda is not None:
            raise SourceError(requirements.conda.refusal)
        given = _named_variables(requirements, variables or {})
        return _VenvSpec(code_dir or Path(), await self._python(version), requirements, given)

    async def ensure(
        self, code_dir: Path | None, python_version: str | None = None, variables: Mapping[str, str] | None = None
    ) -> Venv:
        """Return the environment that a job's code needs; make it when it does not exist.

        Args:
            code_dir: the job's code; None, or code that names no requirements, gets an empty environment.
            python_version: the job's Python, such as "3.11". When this machine has none, the agent's own is taken, with
                a warning.
            variables: the run's environment variables; the requirements are given those that they name (`${TOKEN}`).

        Raises:
            SourceError: when the requirements cannot be read, or do not resolve or build, with uv's last lines.
            InfrastructureError: when an index or the disk fails.
        """
        spec = await self._spec_of(code_dir, python_version, variables)
        path = self.folder / spec.key
        if not await anyio.to_thread.run_sync(_touch, path):
            async with locked(self.folder / f"{path.name}.lock"):
                if not await anyio.to_thread.run_sync(_touch, path):
                    await self._make_or_remove(path, spec)
        await anyio.to_thread.run_sync(_vendor_inputs, path)
        return Venv(path, await anyio.to_thread.run_sync(_warnings, path, spec))

    async def _python(self, version: str | None) -> _Python:
        wanted = version if version and not platform.python_version().startswith(f"{version}.") else None
        if wanted not in self._pythons:
            self._pythons[wanted] = _own_python() if wanted is None else await _find_python(wanted)
        return self._pythons[wanted]

    async def _make_or_remove(self, path: Path, spec: _VenvSpec) -> None:
        try:
            await self._make(path, spec)
        except (LaunchError, OSError):
            # A half-made environment would keep a full disk full.
            await anyio.to_thread.run_sync(remove_tree, path)
            raise

    async def _make(self, path: Path, spec: _VenvSpec) -> None:
        requirements, code = spec.requirements, path / _CODE
        await anyio.to_thread.run_sync(remove_tree, path)
        command = ("venv", "--quiet", "--no-project", "--no-config", "--python", spec.python.executable, str(path))
        if output := await _uv(command, self.folder):
            raise _machine_fault(output)
        await anyio.Path(code).mkdir()
        await anyio.to_thread.run_sync(stage, requirements, spec.code_dir, code)
        install = ("pip", "install", "--quiet", "--python", str(path / "bin" / "python"))
        environment = {**requirements.build_variables, **spec.variables}
        if requirements.arguments:
            output = spec.masked(await _uv((*install, *requirements.arguments), code, environment))
            if output:
                raise _installation_fault(output)
        if requirements.project:
            # Only the project's own version is made up: its repository is not there.
            environment["SETUPTOOLS_SCM_PRETEND_VERSION"] = "0.0.0"
            output = spec.masked(await _uv((*install, "--no-deps", "--editable", "."), code, environment))
            if _MACHINE_FAULTS.search(output):
                raise _machine_fault(output)
            if output:
                reason = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("hint:")]
                warning = f"{PROJECT_LEFT_OUT} uv says: {reason[-1]}\n"
                await anyio.Path(path / _WARNING).write_text(warning, encoding="utf-8")
        if not requirements.keeps_code:
            await anyio.to_thread.run_sync(remove_tree, code)
        await anyio.Path(path / READY).touch()


@dataclass(frozen=True)
class _VenvSpec:
    """The input of an environment."""

    code_dir: Path
    python: _Python
    requirements: Requirements
    variables: Mapping[str, str] = field(repr=False)

    @property
    def key(self) -> str:
        parts = (self.python.executable, self.python.version, sysconfig.get_platform(), self.requirements.key)
        # Their values, too: a run without a token must not get packages that were fetched with it.
        given = (f"{name}={value}" for name, value in sorted(self.variables.items()))
        return hashlib.sha256("\0".join((*parts, *given)).encode()).hexdigest()[:24]

    def masked(self, text: str) -> str:
        for name, value in self.variables.items():
            text = text.replace(value, f"${{{name}}}") if value else text
        return text


def _named_variables(requirements: Requirements, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that requirements name, from the run's environment and never from the agent's."""
    missing = next((name for name in requirements.variables if name not in given), None)
    if missing is not None:
        raise SourceError(
            f"{requirements.variables[missing]} names the environment variable ${{{missing}}}, which the run is not"
            " given. Set it in the env of the queue or of the item."
        )
    return {name: given[name] for name in requirements.variables}


def _warnings(path: Path, spec: _VenvSpec) -> tuple[str, ...]:
    """Return the warnings of an environment: another Python, a project left out, nothing installed."""
    warning = path / _WARNING
    output = warning.read_text(encoding="utf-8").splitlines() if warning.exists() else []
    requirements = spec.requirements
    is_empty = not requirements.arguments and not requirements.project
    return (*spec.python.warnings, *output, *(requirements.notes if is_empty else ()))


def _own_python() -> _Python:
    # Not the agent's venv: its packages are not for jobs.
    return _Python(getattr(sys, "_base_executable", "") or sys.executable, platform.python_version())


async def _find_python(version: str) -> _Python:
    own = _own_python()
    environment = await anyio.to_thread.run_sync(uv_environment)
    process = await run_command([uv_program(), "python", "find", "--no-project", "--system", version], env=environment)
    found = process.stdout.decode(errors="replace").strip()
    if process.returncode == 0 and found:
        return _Python(found, version)
    warning = (
        f"Python {version}, which the job asks for, is not on this machine; it runs on Python {own.version}."
        f" Install Python {version} on the agent's machine to have it."
    )
    return _Python(own.executable, own.version, (warning,))


async def _uv(arguments: tuple[str, ...], cwd: Path, variables: Mapping[str, str] | None = None) -> str:
    """Run uv; return its output when it fails, else an empty text. Cancelling ends the command too."""
    own = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    environment = {**await anyio.to_thread.run_sync(uv_environment, own), **(variables or {})}
    process = await run_command([uv_program(), *arguments], stderr=subprocess.STDOUT, cwd=cwd, env=environment)
    output = process.stdout.decode(errors="replace").strip()
    return "" if process.returncode == 0 else output or f"nothing (exit code {process.returncode})"


def _end(output: str) -> str:
    return "\n".join(output.splitlines()[-_SHOWN_LINES:])


def _machine_fault(output: str) -> InfrastructureError:
    return InfrastructureError(
        "The job's environment could not be made on this machine. Look at its network, package index and disk. uv"
        f" says:\n{_end(output)}"
    )


def _installation_fault(output: str) -> LaunchError:
    if _MACHINE_FAULTS.search(output):
        return _machine_fault(output)
    return SourceError(
        f"The job's requirements cannot be installed. Correct its requirements file. uv says:\n{_end(output)}"
    )


def uv_program() -> str:
    """Return the path of the program uv.

    Raises:
        AgentConfigError: when it is not there.
    """
    import uv

    try:
        return uv.find_uv_bin()
    except FileNotFoundError as error:
        raise AgentConfigError(
            f"The program uv is not there ({error}). Install prefect-launch's dependencies again."
        ) from error


def _vendor_inputs(path: Path) -> None:
    """Let the job's code import `prefect_launch.inputs`, in this package's version."""
    try:
        vendor_inputs(next(path.glob("lib/python*/site-packages")))
    except (OSError, StopIteration) as error:
        raise InfrastructureError(
            f"The job's environment {str(path)!r} cannot be completed ({error!r}). Look at this machine's disk;"
            " remove the folder to have it made again."
        ) from error


def _touch(path: Path) -> bool:
    """Set the time of the last use of an environment; return whether it is complete."""
    try:
        os.utime(path / READY)
    except FileNotFoundError:
        return False
    return True
