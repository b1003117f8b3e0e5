"""Runner of the resource `local-container`: a job is a container of the Docker Engine that the agent can reach.

Nothing is bind-mounted, so a remote engine does as well as a local one: files go in and come out as archives. A run's
handle is its container's id. Its labels say whose it is, so an agent that starts again finds it. The engine's events
report its end. A container gets the engine's `local` log driver, which keeps bytes as they are. The runner builds no
images and pushes none.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import anyio

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.core.states import ItemState
from prefect_launch.errors import InfrastructureError, LaunchError, SpecError, UnreachableError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.registries.base import Registry
from prefect_launch.runners.base import (
    NEVER_STARTED,
    TAKEOVER_SECONDS,
    ExecPlan,
    ExitStatus,
    Finding,
    Found,
    Labels,
    Runner,
    RunPlan,
    RunState,
    nothing,
    signal_of,
)
from prefect_launch.runners.docker.code_changes import with_container_changes
from prefect_launch.runners.docker.engine import Container, Engine, Image, NameTakenError
from prefect_launch.runners.docker.files import (
    INPUTS_PATH,
    OUTPUT_DIR,
    collect_outputs,
    empty_folder,
    merge_config_file,
    open_folder_archive,
    put_code_in,
    put_files_in,
)
from prefect_launch.runners.docker.logs import LogCopier
from prefect_launch.runners.docker.options import (
    OPTIONS,
    RUN_DIR_LABEL,
    SUBMITTER_OPTIONS,
    apply_options,
    check_container_options,
    check_together,
    container_config,
    preview_config,
    resolve_binds,
)
from prefect_launch.runners.option_values import CONTAINER_QUANTITIES, Quantity, written_ids
from prefect_launch.runners.usage import Usage

#: How long no pull by that digest is tried again: an engine takes 15 s to give up on a registry that it cannot reach.
PULL_BACKOFF_SECONDS = 300.0

log = logging.getLogger(__name__)


class NamedImage(NamedTuple):
    """An image that the engine has, and the name that it was found by."""

    name: str
    image: Image


class ContainerImages:
    """The images of one engine, for the plans of containers.

    Args:
        engine: that has them and pulls them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._backoff_until: dict[str, float] = {}
        self._found: dict[str, NamedImage] = {}

    async def find(self, plan: RunPlan) -> NamedImage | None:
        """Return the image that a container of a plan is made of; None when the engine has none."""
        for name in filter(None, (plan.resolved_image, plan.image)):
            image = await self._engine.image(name)
            if image is not None:
                return NamedImage(name, image)
        return None

    async def take(self, plan: RunPlan) -> NamedImage | None:
        """Return what the look just before has found for a plan, once; else look."""
        return self._found.pop(plan.name, None) or await self.find(plan)

    async def is_missing(self, plan: RunPlan) -> bool:
        """Whether something is to be pulled for a plan."""
        self._found.pop(plan.name, None)
        found, wanted = await self.find(plan), plan.resolved_image
        if found is None or (wanted is not None and found.name != wanted and not self._backs_off(wanted)):
            return True
        self._found[plan.name] = found
        return False

    async def bring(self, plan: RunPlan, registry: Registry | None) -> None:
        """Pull what is missing.

        Args:
            plan: names the image.
            registry: who knows the credentials; None: as the engine's machine is logged in.

        Raises:
            LaunchError: when the engine can pull it by none of its names.
        """
        if not await self.is_missing(plan):
            return
        wanted = plan.resolved_image
        if wanted is not None and not self._backs_off(wanted):
            try:
                await self._pull(wanted, plan, registry)
            except UnreachableError:
                raise
            except LaunchError as error:
                log.info("%s not-pulled-by-digest %s", plan.item_id, error)
                self._back_off(wanted)
        if await self.find(plan) is None:
            await self._pull(str(plan.image), plan, registry)

    async def _pull(self, name: str, plan: RunPlan, registry: Registry | None) -> None:
        credentials = await registry.credentials_for(name) if registry is not None else None
        await self._engine.pull(name, apply_options({}, plan.options).get("platform"), credentials)

    def _backs_off(self, name: str) -> bool:
        return time.monotonic() < self._backoff_until.get(name, 0.0)

    def _back_off(self, name: str) -> None:
        now = time.monotonic()
        self._backoff_until = {known: until for known, until in self._backoff_until.items() if now < until}
        self._backoff_until[name] = now + PULL_BACKOFF_SECONDS


# --- exit status ---


def exit_of(
    container: Container | None,
    *,
    stopped: bool,
    log_complete: bool,
    left_out: LeftOut,
    warnings: tuple[str, ...],
) -> ExitStatus:
    """Say how a container ended; `None` stands for one that is gone."""
    if container is None:
        return ExitStatus(
            exit_code=None,
            stopped=stopped,
            error="the container was removed by somebody else while it ran, and its exit code with it",
            log_complete=log_complete,
        )
    error = None
    if container.failed_to_start:
        error = f"the entry point cannot be run in the image {container.image!r}: {container.error}"
    code = container.exit_code
    return ExitStatus(
        exit_code=code,
        signal=None if error else signal_of(code),
        # A child that ran out of memory is no failure when the job itself went on and succeeded.
        oom_killed=container.oom_killed and code != 0,
        stopped=stopped,
        error=error,
        started_at=container.started_at,
        ended_at=container.ended_at,
        log_complete=log_complete,
        left_out=left_out,
        warnings=warnings,
    )


# --- the runner ---

#: How long the engine may take to kill a container.
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
    keeps_code_changes: ClassVar[bool] = True
    tells_usage: ClassVar[bool] = True

    def __init__(self, home: Path, engine: Engine | None = None) -> None:
        super().__init__(home)
        self._engine = engine or _default_engine()
        self._just_created: set[str] = set()
        self._images = ContainerImages(self._engine)
        self._images_used: dict[str, str] = {}
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
    def input_dir(cls, run_dir: Path) -> str | None:
        return INPUTS_PATH

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        runs = plan.model_copy(update={"image": plan.resolved_image or plan.image})
        return {"Name": plan.name, **preview_config(runs)}

    def give_gpus(self, plan: RunPlan, ids: tuple[str, ...]) -> RunPlan:
        if ids:
            return plan.model_copy(update={"options": {**plan.options, "gpus": written_ids(ids)}})
        # An engine whose default runtime is NVIDIA's shows all cards to an image that says so.
        return plan.model_copy(update={"env": {**plan.env, "NVIDIA_VISIBLE_DEVICES": "void"}})

    async def ping(self) -> None:
        await self._engine.ping()

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        try:
            await self.ping()
        except LaunchError as error:
            return [Finding(name="Docker Engine", is_ok=False, detail=str(error))]
        where = "sees this machine's folders" if self._engine.is_local else "runs elsewhere, and sees its own folders"
        return [Finding(name="Docker Engine", is_ok=True, detail=f"It answers, and {where}.")]

    async def missing(self, plan: RunPlan) -> ItemState | None:
        return ItemState.PULLING if await self._images.is_missing(plan) else None

    async def prepare(self, plan: RunPlan) -> None:
        self.check(plan)
        await self._images.bring(plan, self.registry)

    async def create(self, plan: RunPlan) -> str:
        self.check(plan)
        found = await self._images.take(plan)
        if found is None:
            raise InfrastructureError(
                f"The image {plan.image!r} is not on this machine any more; it was there a moment ago. Try again."
            )
        config = container_config(plan.model_copy(update={"image": found.name}), found.image)
        if plan.host_folders:
            binds = partial(resolve_binds, config["HostConfig"], plan.host_folders, is_local=self._engine.is_local)
            config["HostConfig"] = await anyio.to_thread.run_sync(binds)
        platform = config.pop("platform", None)
        there = None
        try:
            container_id = await self._engine.create(plan.name, config, platform)
        except NameTakenError as error:
            there = await self._existing(plan, error)
            container_id = there or await self._engine.create(plan.name, config, platform)
        await self._populate(container_id, plan, config)
        if there is None:
            self._just_created.add(container_id)
            self._images_used[container_id] = found.image.reference(found.name)
        return container_id

    async def start(self, handle: str) -> None:
        # What this runner has just created needs no inspect call, which takes a tenth of a start's overhead.
        if handle not in self._just_created:
            container = await self._engine.container(handle)
            if container is None or not container.waits_for_start or await _was_stopped(_run_dir(container.labels)):
                return
        self._just_created.discard(handle)
        await self._engine.start(handle)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        if await _was_stopped(plan.run_dir):
            container = await self._engine.container(handle)
            if container is not None and container.waits_for_start:
                return ExitStatus(exit_code=None, stopped=True, error=NEVER_STARTED)
        copier = LogCopier(self._engine, handle, plan.log_path)
        try:
            # The log of one that has ended already is read once, by `finish`.
            container = await self._engine.ended(handle, runs=copier.start)
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
        end = exit_of(
            container,
            stopped=await _was_stopped(plan.run_dir),
            log_complete=not copier.problem,
            left_out=left_out,
            warnings=tuple(warnings),
        )
        if container is None:
            return end
        async with self._copies:
            return await with_container_changes(end, self._engine, container, plan)

    async def stop(self, handle: str, grace_seconds: float) -> None:
        container = await self._engine.container(handle)
        if container is None or container.ended:
            return
        await anyio.to_thread.run_sync(_note_stop, _run_dir(container.labels))
        self._just_created.discard(handle)
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
        return await anyio.to_thread.run_sync(lambda: [_found(one) for one in found if Labels.ITEM in one.labels])

    async def display_name(self, handle: str) -> str:
        return handle[:12]  # As 'docker ps' shows it.

    async def exec_plan(self, handle: str, command: Sequence[str], *, has_terminal: bool) -> ExecPlan:
        container = await self._engine.container(handle)
        if container is None or container.status == "created" or container.ended:
            raise InfrastructureError(
                f"No container {handle[:12]} runs on the Docker Engine here: it has ended, or the item's agent uses"
                " another engine. Set DOCKER_HOST as that agent has it."
            )
        terminal = ["--tty"] if has_terminal else []
        return ExecPlan(argv=(*self._engine.client_program(), "exec", "--interactive", *terminal, handle, *command))

    async def usage(self, handle: str) -> Usage | None:
        return await self._engine.usage(handle)

    async def image_of(self, handle: str) -> str | None:
        if handle in self._images_used:
            return self._images_used[handle]
        container = await self._engine.container(handle)
        image = await self._engine.image(container.image_id) if container is not None else None
        return None if image is None or container is None else image.reference(container.image)

    async def remove(self, handle: str) -> None:
        self._just_created.discard(handle)
        self._images_used.pop(handle, None)
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

    async def _populate(self, container_id: str, plan: RunPlan, config: Mapping[str, Any]) -> None:
        """Put in what the job finds at its start. Doing it again changes nothing."""
        untouched = anyio.Path(plan.run_dir / _UNTOUCHED_FILE)
        if await untouched.exists():
            return
        if plan.code_dir is not None:
            await put_code_in(self._engine, container_id, plan.code_dir)
        of_last_attempt = await anyio.Path(plan.output_dir).is_dir()
        if of_last_attempt:
            await put_files_in(self._engine, container_id, plan.output_dir, OUTPUT_DIR)
        elif OUTPUT_DIR not in config["Volumes"]:
            folder, name = posixpath.split(OUTPUT_DIR)
            await self._engine.put_archive(container_id, folder, open_folder_archive(name))
        if plan.input_files:
            await put_files_in(self._engine, container_id, plan.input_dir, INPUTS_PATH)
        for path, values in plan.file_overrides.items():
            await merge_config_file(self._engine, container_id, config["WorkingDir"], path, values)
        # A file that is there already can be rewritten without a trace on its folder: then all is fetched.
        changed_at = None if of_last_attempt else await self._engine.changed_at(container_id, OUTPUT_DIR)
        await untouched.write_text(changed_at or "", encoding="utf-8")

    async def _collect(self, handle: str, plan: RunPlan) -> LeftOut:
        """Fetch the outputs, unless the engine says that the folder is as it was made: a look costs a tenth."""
        await anyio.Path(plan.output_dir).mkdir(exist_ok=True)
        try:
            file = anyio.Path(plan.run_dir / _UNTOUCHED_FILE)
            untouched = await file.read_text(encoding="utf-8", errors="replace")
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


async def _was_stopped(run_dir: Path | None) -> bool:
    return run_dir is not None and await anyio.Path(run_dir / _STOP_FILE).exists()


def _note_stop(run_dir: Path | None) -> None:
    if run_dir is not None and run_dir.is_dir():
        (run_dir / _STOP_FILE).touch()
