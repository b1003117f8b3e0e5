"""BuildKit builder: builds through the `docker` command, with buildx or the BuildKit embedded in an older engine.

BuildKit has build secrets and cache mounts, so a Dockerfile of the submitter's own may use them too: pip's settings of
this machine are the secrets `index.env` and `ca.pem`. The context is sent as an archive, so nothing else of this
machine can get into the image. Secrets are files that only this user can read, while the build runs.

The command runs in a session of its own: the agent acts on a terminal's Ctrl-C, and its first one lets builds end. The
command ends with this process, where `setpriv` (util-linux) can see to that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, Process

from prefect_launch.builds.builder import Builder, ImageBuild, LineSink, failure
from prefect_launch.builds.context import packed
from prefect_launch.builds.dockerfile import write_dockerfile, write_labels
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.core.subprocesses import ending_with_us, kill_group, run_command
from prefect_launch.environments.pip_config import PipAccess

_DOCKERFILE: Final = "Dockerfile.launch"
_KEPT_LINES: Final = 40
_STEP: Final = re.compile(r"#(?P<number>\d+) \[[^\]]*\] (?P<text>.*)")
_ERROR: Final = re.compile(r"#(?P<number>\d+) ERROR: (?P<text>.*)")
_DIGEST: Final = re.compile(r"#\d+ sha256:[0-9a-f]{64}")
_SAID: Final = re.compile(r"#\d+ (?:[\d.]+ )?")
#: Not in a builder of its own that buildx may be set to: that one sees none of the engine's images.
_ON_THE_ENGINE: Final = {"DOCKER_BUILDKIT": "1", "BUILDX_BUILDER": "default"}


class BuildkitBuilder(Builder):
    """Builds through one `docker` command."""

    def __init__(
        self, program: str, address: str, settings: BuilderSettings, name: str, command: tuple[str, ...]
    ) -> None:
        self.name = name
        self._program = program
        self._address = address
        self._settings = settings
        self._command = command

    @classmethod
    def buildx(cls, program: str, address: str, settings: BuilderSettings) -> BuildkitBuilder:
        """Return the BuildKit of the plugin buildx."""
        return cls(program, address, settings, "BuildKit (docker buildx)", ("buildx", "build", "--load"))

    @classmethod
    def embedded(cls, program: str, address: str, settings: BuilderSettings) -> BuildkitBuilder:
        """Return the BuildKit in an engine, which commands before version 23 reach by themselves."""
        return cls(program, address, settings, "the Docker Engine's BuildKit", ("build",))

    async def build(self, target: ImageBuild, access: PipAccess, log: LineSink) -> str:
        context = target.context
        if target.recipe is not None:
            text = write_dockerfile(target.recipe, secrets=tuple(access.files), cache=self._settings.cache)
            context = context.plus({_DOCKERFILE: (text + write_labels(target.labels)).encode()})
        async with anyio.TemporaryDirectory(prefix="launch-build-") as scratch:
            folder = Path(scratch)
            await anyio.to_thread.run_sync(_write_secrets, folder, access)
            progress = _Progress(log)
            async with packed(context) as archive:
                code = await self._run(self._arguments(target, access, folder), archive.fileno(), progress)
            if code != 0:
                raise failure(progress.step, progress.error or f"exit code {code}", list(progress.lines))
            return target.image

    def _arguments(self, target: ImageBuild, access: PipAccess, folder: Path) -> list[str]:
        # By its name, which it gets when it is complete: buildx reports ids that not every engine knows.
        arguments = ["--progress=plain", "--tag", target.image, "--file", target.dockerfile or _DOCKERFILE]
        for name in access.files:
            arguments += ["--secret", f"id={name},src={folder / name}"]
        for name, value in target.labels.items() if target.dockerfile else ():
            arguments += ["--label", f"{name}={value}"]
        arguments += ["--network", self._settings.network] if self._settings.network else []
        arguments += ["--platform", target.platform] if target.platform else []
        return [self._program, *self._command, *arguments, "-"]

    async def _run(self, command: list[str], stdin: int, progress: _Progress) -> int:
        environment = {**os.environ, **_ON_THE_ENGINE, "DOCKER_HOST": self._address}
        process = await anyio.open_process(
            ending_with_us(command, "KILL"),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            if process.stdout is not None:
                await _read(process.stdout, progress)
            return await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)


def docker_programs() -> Iterator[str]:
    """Yield the `docker` commands of this machine, in the order of `PATH`."""
    seen = set()
    for folder in os.get_exec_path():
        found = shutil.which("docker", path=folder)
        if found is not None and found not in seen:
            seen.add(found)
            yield found


async def output_of(*command: str) -> str | None:
    """Return the output of a command; None when it fails or does not exist."""
    try:
        ended = await run_command(command, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    return ended.stdout.decode(errors="replace").strip() if ended.returncode == 0 else None


def _write_secrets(folder: Path, access: PipAccess) -> None:
    for name, content in access.files.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


async def _read(stream: ByteReceiveStream, progress: _Progress) -> None:
    async for chunk in stream:
        progress.take(chunk)
    progress.end()


async def _end(process: Process) -> None:
    """Kill a command that has not ended: older versions ignore other signals. The engine then stops the build."""
    if process.returncode is None:
        kill_group(process.pid)
        await process.wait()


class _Progress:
    """Reads the plain progress of BuildKit."""

    def __init__(self, log: LineSink) -> None:
        self._log = log
        self._rest = b""
        self._steps: dict[str, str] = {}
        self.step = "the start of the build"
        self.error: str | None = None
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def take(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self._read_line(line.decode("utf-8", "replace").rstrip("\r"))

    def end(self) -> None:
        if self._rest:
            self.take(b"\n")

    def _read_line(self, line: str) -> None:
        if not line or _DIGEST.fullmatch(line):
            return
        self._log(f"{line}\n")
        if error := _ERROR.match(line):
            self.error = self.error or error["text"]
            self.step = self._steps.get(error["number"], self.step)
            return
        if step := _STEP.match(line):
            self._steps[step["number"]] = step["text"]
        if self.error is None:
            self.lines.append(_SAID.sub("", line, count=1))
