"""The resource `local-container`: a job is a container of the Docker Engine that the agent can reach.

Nothing is bind-mounted, so a remote engine does as well as a local one: files go in and come out as archives. A run's
handle is its container's id; its labels say whose it is, so an agent that starts again finds it. Ends are told by the
engine's events. A container gets the engine's `local` log driver, which keeps bytes as they are. It does not build
images and does not push them.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import anyio

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.core.states import ItemState
from prefect_launch.errors import InfrastructureError, SpecError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import ExitStatus, Found, Labels, Runner, RunPlan, RunState, nothing
from prefect_launch.runners.docker.config import RUN_DIR_LABEL, container_config, preview_config
from prefect_launch.runners.docker.engine import Container, Engine, NameTakenError
from prefect_launch.runners.docker.exit import exit_of
from prefect_launch.runners.docker.files import (
    OUTPUT_DIR,
    collect_outputs,
    empty_folder,
    merge_config_file,
    open_folder_archive,
    put_code_in,
    put_outputs_in,
)
from prefect_launch.runners.docker.image import ContainerImages
from prefect_launch.runners.docker.logs import LogCopier
from prefect_launch.runners.docker.memory_usage import sampled_memory
from prefect_launch.runners.docker.options import (
    OPTIONS,
    SUBMITTER_OPTIONS,
    check_container_options,
    check_together,
)
from prefect_launch.runners.gpu_option import written_ids
from prefect_launch.runners.quantity import CONTAINER_QUANTITIES, Quantity
from prefect_launch.runners.run_folder import TAKEOVER_SECONDS

#: How long the engine may take to end a container that it was told to kill.
_KILL_SECONDS = 15.0
#: How long the log's stream may stay open once its container has ended, before the rest is read at once.
_LOG_END_SECONDS = 5.0
#: How many containers' outputs are fetched at a time.
_COPIES = 2
_STOP_FILE = "stop.json"
_UNTOUCHED_FILE = "outputs-untouched"


class LocalContainerRunner(Runner):
    """Runs jobs as containers.

    Args:
        home: the agent's folder.
        engine: the Docker Engine; by default the one that `DOCKER_HOST` names, or this machine's.
    """

    name: ClassVar[str] = "local-container"
    removed_message: ClassVar[str] = "container removed"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    needs_image: ClassVar[bool] = True
    submitter_options: ClassVar[frozenset[str]] = SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = OPTIONS
    quantities: ClassVar[Mapping[str, Quantity]] = CONTAINER_QUANTITIES
    uses_this_machine: ClassVar[bool] = True

    def __init__(self, home: Path, engine: Engine | None = None) -> None:
        super().__init__(home)
        self._engine = engine or _default_engine()
        self._fresh: set[str] = set()
        self._images = ContainerImages(self._engine)
        self._ran: dict[str, str] = {}
        self._copies = asyncio.Semaphore(_COPIES)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        return check_container_options(options)

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        check_together(options)

    def check(self, plan: RunPlan) -> None:
        if not plan.image:
            raise SpecError(
                "A run on local-container must have an image. Give docker_image, or a job; the image of a job's code is"
                " built by its agent."
            )
        check_together(check_container_options(plan.options))

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        runs = plan.model_copy(update={"image": plan.image_at_enqueue or plan.image})
        return {"Name": plan.name, **preview_config(runs)}

    def give_gpus(self, plan: RunPlan, ids: tuple[str, ...]) -> RunPlan:
        if ids:
            return plan.model_copy(update={"options": {**plan.options, "gpus": written_ids(ids)}})
        # An engine whose default runtime is NVIDIA's shows all cards to an image that says so.
        return plan.model_copy(update={"env": {**plan.env, "NVIDIA_VISIBLE_DEVICES": "void"}})

    async def ping(self) -> None:
        await self._engine.ping()

    async def missing(self, plan: RunPlan) -> ItemState | None:
        return ItemState.PULLING if await self._images.is_missing(plan) else None

    async def prepare(self, plan: RunPlan) -> None:
        self.check(plan)
        await self._images.bring(plan, self.registry)

    async def create(self, plan: RunPlan) -> str:
        self.check(plan)
        found = await self._images.find(plan)
        if found is None:
            raise InfrastructureError(
                f"The image {plan.image!r} is not on this machine any more; it was there a moment ago. Try again."
            )
        config = container_config(plan.model_copy(update={"image": found.name}), found.image)
        platform = config.pop("platform", None)
        there = None
        try:
            container_id = await self._engine.create(plan.name, config, platform)
        except NameTakenError as error:
            there = await self._existing(plan, error)
            container_id = there or await self._engine.create(plan.name, config, platform)
        await self._fill(container_id, plan, config)
        if there is None:
            self._fresh.add(container_id)
            self._ran[container_id] = found.image.reference(found.name)
        return container_id

    async def start(self, handle: str) -> None:
        # What this runner has just made needs no look: that look is a tenth of what a start costs beyond the engine's
        # own time.
        if handle not in self._fresh:
            container = await self._engine.container(handle)
            if container is None or not container.waits_for_start or _was_stopped(_run_dir(container.labels)):
                return
        self._fresh.discard(handle)
        await self._engine.start(handle)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        container = await self._engine.container(handle)
        if container is not None and container.waits_for_start and _was_stopped(plan.run_dir):
            return ExitStatus(exit_code=None, stopped=True, error="stopped before it was started")
        copier = LogCopier(self._engine, handle, plan.log_path)
        copier.start()
        try:
            async with sampled_memory(self._engine, handle) as memory:
                container = await self._engine.ended(handle)
            ended()
            await anyio.to_thread.run_sync(copier.finish, _LOG_END_SECONDS)
        finally:
            # Also when this is cancelled: the next one who watches goes on where this one has ended.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(copier.close)
        warnings = [copier.problem] if copier.problem and container is not None else []
        left_out = LeftOut()
        if container is not None:
            try:
                left_out = await self._collect(handle, plan)
            except (InfrastructureError, OSError) as error:
                warnings.append(f"the outputs are not kept: {error}")
        end = exit_of(container, stopped=_was_stopped(plan.run_dir), warnings=tuple(warnings))
        learned = {"peak_memory_bytes": memory.seen_bytes, "log_is_whole": not copier.problem, "left_out": left_out}
        return end.model_copy(update=learned)

    async def stop(self, handle: str, grace_seconds: float) -> None:
        container = await self._engine.container(handle)
        if container is None or container.ended:
            return
        await anyio.to_thread.run_sync(_note_stop, _run_dir(container.labels))
        self._fresh.discard(handle)
        if container.status == "created":
            return
        await self._engine.kill(handle, container.stop_signal)
        if await self._ends_within(handle, grace_seconds):
            return
        await self._engine.kill(handle, "SIGKILL")
        if not await self._ends_within(handle, _KILL_SECONDS):
            raise InfrastructureError(
                f"The container {container.name!r} has not ended {_KILL_SECONDS:g} s after it was killed."
                " Look at the Docker Engine and at this machine's disks and devices."
            )

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        found = await self._engine.containers(labels)
        return [_found(one) for one in found if Labels.ITEM in one.labels]

    async def image_of(self, handle: str) -> str | None:
        if handle in self._ran:
            return self._ran[handle]
        container = await self._engine.container(handle)
        image = await self._engine.image(container.image_id) if container is not None else None
        return None if image is None or container is None else image.reference(container.image)

    async def remove(self, handle: str) -> None:
        self._fresh.discard(handle)
        self._ran.pop(handle, None)
        await self._engine.remove(handle)

    async def aclose(self) -> None:
        await self._engine.aclose()

    async def _existing(self, plan: RunPlan, taken: NameTakenError) -> str | None:
        """Return the container that an earlier call made for this attempt; one of another claim is removed."""
        container = await self._engine.container(plan.name)
        if container is None:
            return None
        if container.labels.get(Labels.ITEM) != plan.labels.get(Labels.ITEM):
            raise taken
        if container.labels.get(Labels.CLAIM) == plan.labels.get(Labels.CLAIM):
            return container.id
        await self.stop(container.id, TAKEOVER_SECONDS)
        await self.remove(container.id)
        return None

    async def _fill(self, container_id: str, plan: RunPlan, config: Mapping[str, Any]) -> None:
        """Put in what the job finds at its start. Doing it again changes nothing."""
        untouched = plan.run_dir / _UNTOUCHED_FILE
        if untouched.exists():
            return
        if plan.code_dir is not None:
            await put_code_in(self._engine, container_id, plan.code_dir)
        of_last_attempt = await anyio.Path(plan.output_dir).is_dir()
        if of_last_attempt:
            await put_outputs_in(self._engine, container_id, plan.output_dir)
        elif OUTPUT_DIR not in config["Volumes"]:
            folder, name = posixpath.split(OUTPUT_DIR)
            await self._engine.put_archive(container_id, folder, open_folder_archive(name))
        for path, values in plan.file_overrides.items():
            await merge_config_file(self._engine, container_id, config["WorkingDir"], path, values)
        # A file that is there already can be rewritten without a trace on its folder: then all is fetched.
        changed_at = None if of_last_attempt else await self._engine.changed_at(container_id, OUTPUT_DIR)
        untouched.write_text(changed_at or "", encoding="utf-8")

    async def _collect(self, handle: str, plan: RunPlan) -> LeftOut:
        """Fetch the outputs, unless the engine says that the folder is as it was made: a look costs a tenth."""
        await anyio.to_thread.run_sync(lambda: plan.output_dir.mkdir(exist_ok=True))
        try:
            untouched = (plan.run_dir / _UNTOUCHED_FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            untouched = ""
        if await self._engine.changed_at(handle, OUTPUT_DIR) == untouched:
            return LeftOut()
        async with self._copies:
            # What the job has removed of the last attempt's outputs must not come back.
            await anyio.to_thread.run_sync(empty_folder, plan.output_dir)
            return await collect_outputs(self._engine, handle, plan.output_dir, plan.output_limits)

    async def _ends_within(self, handle: str, seconds: float) -> bool:
        with anyio.move_on_after(seconds) as limit:
            await self._engine.ended(handle)
        return not limit.cancelled_caught


def _default_engine() -> Engine:
    from prefect_launch.runners.docker.client import DockerEngine

    return DockerEngine(event_labels=(Labels.ITEM,))


def _found(container: Container) -> Found:
    run_dir = _run_dir(container.labels)
    is_filled = container.status != "created" or run_dir is None or (run_dir / _UNTOUCHED_FILE).exists()
    return Found(
        handle=container.id,
        state=_state(container),
        labels=container.labels,
        run_dir=run_dir,
        name=container.name,
        is_complete=is_filled,
    )


def _state(container: Container) -> RunState:
    if container.status == "created":
        return RunState.CREATED
    return RunState.EXITED if container.ended else RunState.RUNNING


def _run_dir(labels: Mapping[str, str]) -> Path | None:
    folder = labels.get(RUN_DIR_LABEL)
    return Path(folder) if folder else None


def _was_stopped(run_dir: Path | None) -> bool:
    return run_dir is not None and (run_dir / _STOP_FILE).exists()


def _note_stop(run_dir: Path | None) -> None:
    if run_dir is not None and run_dir.is_dir():
        (run_dir / _STOP_FILE).touch()
