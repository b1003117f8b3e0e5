"""Classic builder: builds through the Docker Engine's API alone, with one step in a container.

The classic builder has no secrets and no mounts. So a generated Dockerfile is cut in three: the engine builds what
comes before the installing step and what follows it, and the step itself runs in a container, whose file system is
committed as a layer. Secrets, certificates, the cache and folders of packages are mounted there as volumes, so no layer
holds them. A layer that was installed from the same files on the same base is used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import uuid4

import anyio

from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.builder import Builder, BuildOutput, ImageBuild, ImageLabels, LineSink, failure
from prefect_launch.builds.context import BuildContext, packed
from prefect_launch.builds.dockerfile import (
    CACHE,
    CODE_FOLDER,
    COPY_PROJECT,
    FOLDER,
    INSTALL,
    INSTALL_PROJECT,
    PROJECT_FOLDER,
    write_after,
    write_before,
    write_labels,
)
from prefect_launch.environments.pip_config import SECRETS, PipAccess
from prefect_launch.errors import InternalError
from prefect_launch.runners.process import supervisor

_CACHE_VOLUME: Final = "prefect-launch-build-cache"
_DOCKERFILE: Final = "Dockerfile.launch"
#: Instructions that a commit takes over from the step, by their names in an image's configuration.
_COMMANDS: Final = (("ENTRYPOINT", "Entrypoint"), ("CMD", "Cmd"))
#: A container of a build is named after its process, so that what a killed process left behind is known. The name holds
#: where the process runs (this boot of this machine, and its namespace of process ids), its id, and its start time,
#: since an id is used again.
_PREFIX: Final = "launch-build-"
_CONTAINER: Final = re.compile(rf"{_PREFIX}(?P<place>[0-9a-f]{{12}})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]+")
#: The states of a process that has ended; one that nobody has waited for is still listed.
_ENDED: Final = ("Z", "X")


class EngineBuilder(Builder):
    """Builds through the Engine API alone."""

    name = "the Docker Engine's classic builder"
    mounts_folders: ClassVar[bool] = True

    def __init__(self, engine: BuildEngine, *, network: str | None = None, cache: bool = False) -> None:
        self._engine = engine
        self._network = network
        self._cache = cache

    async def build(self, target: ImageBuild, access: PipAccess, log: LineSink) -> str:
        await self._sweep()
        if target.dockerfile is not None:
            return await self._classic(target.context, target.dockerfile, target, log, labels=target.labels)
        recipe = target.recipe
        if recipe is None:
            raise InternalError("An image build without a Dockerfile has no recipe either.")
        installed = await self._written(target.context.below(FOLDER), write_before(recipe), target, log)
        if not recipe.conda:
            installed = await self._install(installed, access, log)
        if recipe.project:
            project = target.context.below(PROJECT_FOLDER)
            installed = await self._written(project, f"FROM {installed}\nUSER 0\n{COPY_PROJECT}", target, log)
            installed = await self._install(installed, access, log, INSTALL_PROJECT)
        code = target.context.below(CODE_FOLDER)
        text = f"FROM {installed}\n{write_after(recipe)}{write_labels(target.labels)}"
        return await self._written(code, text, target, log)

    async def _written(self, context: BuildContext, text: str, target: ImageBuild, log: LineSink) -> str:
        return await self._classic(context.plus({_DOCKERFILE: text.encode()}), _DOCKERFILE, target, log)

    async def _classic(
        self,
        context: BuildContext,
        dockerfile: str,
        target: ImageBuild,
        log: LineSink,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        events = _BuildEvents(log)
        params: dict[str, Any] = {"dockerfile": dockerfile, "rm": True, "forcerm": True}
        params |= {"labels": json.dumps(dict(labels))} if labels else {}
        params |= {"networkmode": self._network} if self._network else {}
        params |= {"platform": target.platform} if target.platform else {}
        async with packed(context) as archive:
            await self._engine.build(archive, events.read, **params)
        if events.error is not None or events.image is None:
            raise failure(events.step, events.error or "the engine made no image", list(events.lines))
        return events.image

    async def _install(self, image: str, access: PipAccess, log: LineSink, command: str = INSTALL) -> str:
        key = hashlib.sha256(f"{image}\0{command}".encode()).hexdigest()[:32]
        label = f"{ImageLabels.STEP}={key}"
        earlier = await self._engine.find_child(image, label)
        if earlier is not None:
            log("The dependencies are those of an earlier build.\n")
            return earlier
        container_id = await self._engine.create(container_name(), self._step(image, access, command))
        try:
            await self._engine.put_files(container_id, SECRETS, access.files, _tools())
            await self._run(container_id, log, command)
            config = await self._engine.config_of(image)
            # A commit takes over the step's own command; the image gets back its former one.
            own = [f"{word} {json.dumps(config.get(key) or [])}" for word, key in _COMMANDS]
            return await self._engine.commit(container_id, [*own, f"LABEL {label}"])
        finally:
            with anyio.CancelScope(shield=True):
                await self._engine.remove(container_id)

    async def _run(self, container_id: str, log: LineSink, command: str) -> None:
        output = BuildOutput(log)
        await self._engine.start(container_id)
        await self._engine.follow(container_id, output.take)
        ended = await self._engine.ended(container_id)
        if ended is None or ended.exit_code != 0:
            reason = f"exit code {ended.exit_code}" if ended else "its container was removed"
            raise failure(command, reason, list(output.lines))

    def _step(self, image: str, access: PipAccess, command: str) -> dict[str, Any]:
        binds = [f"{folder}:{folder}:ro" for folder in access.folders]
        # Not `Volumes` of the configuration, which a commit would take over.
        mounts = [{"Type": "volume", "Target": SECRETS}]
        mounts += [{"Type": "volume", "Source": _CACHE_VOLUME, "Target": CACHE}] if self._cache else []
        host = {"Binds": binds, "Mounts": mounts, **({"NetworkMode": self._network} if self._network else {})}
        return {"Image": image, "User": "0", "Entrypoint": [], "Cmd": ["sh", "-c", command], "HostConfig": host}

    async def _sweep(self) -> None:
        """Remove containers of builds of this machine whose process has ended, with the secrets in their volumes."""
        for container_id, name in await self._engine.names(_PREFIX):
            if is_left_behind(name):
                await self._engine.remove(container_id)


def _tools() -> dict[str, Path]:
    """Return the agent's own uv: it need not be downloaded, and no submitter can change it."""
    import uv

    try:
        return {"bin/uv": Path(uv.find_uv_bin())}
    except FileNotFoundError:
        return {}


class _BuildEvents(BuildOutput):
    """Reads the events of a classic build."""

    def __init__(self, log: LineSink) -> None:
        super().__init__(log)
        self.step = "the start of the build"
        self.error: str | None = None
        self.image: str | None = None

    def read(self, event: Mapping[str, Any]) -> None:
        if text := event.get("stream"):
            if text.startswith("Step ") and " : " in text:
                self.step = text.partition(" : ")[2].strip()
            self.take(text)
        if event.get("aux", {}).get("ID"):
            self.image = event["aux"]["ID"]
        if event.get("error"):
            self.error = str(event["error"]).strip()
            self.take(f"{self.error}\n")


def container_name() -> str:
    """Return a new name for a container of a build of this process."""
    pid = os.getpid()
    return f"{_PREFIX}{this_place()}-{pid}-{_started_at(pid)}-{uuid4().hex[:8]}"


def is_left_behind(name: str) -> bool:
    """Whether a container belongs to a build whose process ran here and has ended."""
    match = _CONTAINER.fullmatch(name)
    if match is None or match["place"] != this_place():
        return False
    return _started_at(int(match["pid"])) != int(match["start"])


@lru_cache(maxsize=1)
def this_place() -> str:
    """Return what identifies this boot of this machine and its namespace of process ids."""
    boot = supervisor.identity(os.getpid())["boot_id"]
    return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]


def _started_at(pid: int) -> int:
    """Return the start time of a process, in the kernel's ticks; -1 when it has ended."""
    fields = supervisor.stat_fields(pid)
    return -1 if fields is None or fields[0] in _ENDED else int(fields[19])
