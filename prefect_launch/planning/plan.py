"""Run planning, from a launch spec to a `RunPlan`: job resolved, inputs and options checked, code laid out here.

Used by an agent for an item of a queue, and by `launch` for a run here and now. What a submitter wrote is checked here
even when it was checked at the enqueue: an item made in the UI comes straight from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.filesystem import remove_tree
from prefect_launch.core.masking import Mask
from prefect_launch.core.names import short_id
from prefect_launch.errors import LaunchError, ServerUnavailableError, SpecError
from prefect_launch.jobs.archive import list_code
from prefect_launch.jobs.code_checks import unknown_build_context
from prefect_launch.jobs.model import SourceKind, check_version
from prefect_launch.jobs.schema import check_inputs
from prefect_launch.planning.environment import CHUNK_BYTES, JobContext, job_environment
from prefect_launch.planning.image_pinning import image_to_run, resolved_image
from prefect_launch.planning.item_options import (
    filled_by_limits,
    host_folders,
    item_macros,
    merged_options,
    submitted_options,
)
from prefect_launch.planning.job_inputs import arguments_of, variables_of_inputs
from prefect_launch.planning.override_checks import check_overrides, list_folder, overrides_code
from prefect_launch.planning.refused_fields import outputs_named_by, refuse_unread, refuse_unread_here, secured
from prefect_launch.policy.limits import time_limit
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.base import CODE_FOLDER, PLAN_FILE, HostFolder, Labels, RunPlan, note_claim
from prefect_launch.runners.registry import note_resource, runner_class
from prefect_launch.server.secrets import ReadSecret, name_secret, read_secrets, reference_to, secret_names
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.sources.fetch import fetch_code
from prefect_launch.spec.code_options import BuildRequest, parse_image, runtime_of
from prefect_launch.spec.item_outputs import placed_inputs
from prefect_launch.spec.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job
    from prefect_launch.jobs.registry import JobRegistry

log = logging.getLogger(__name__)


class Request(BaseModel):
    """One attempt that is to be planned."""

    model_config = ConfigDict(frozen=True)

    spec: LaunchSpec
    item_id: str
    attempt: int = 1
    queue: str | None = None
    config: QueueConfig
    labels: dict[str, str] = Field(default_factory=dict)


async def make_plan(request: Request, machine: MachineSettings, jobs: JobRegistry, read_secret: ReadSecret) -> RunPlan:
    """Plan one attempt: check everything, then read its secrets, and lay out its folder and code.

    Raises:
        SubmitterError: when the spec, the inputs or the options are wrong, or the code cannot be had.
        QueueError: when the queue's own options are wrong.
    """
    job = await _resolve(request.spec, jobs)
    plan = await _build_plan(request, machine, job, read_secret)
    await anyio.to_thread.run_sync(note_resource, machine.home, request.config.resource)
    await anyio.to_thread.run_sync(_make_run_dir, plan.run_dir, plan.labels.get(Labels.CLAIM, ""))
    if job is not None and plan.code_dir is not None:
        await anyio.to_thread.run_sync(_clear, plan.code_dir)
        await fetch_code(job, plan.code_dir, jobs, home=machine.home, settings=machine.git)
        await anyio.to_thread.run_sync(_check_build_context, plan.build_context, plan.code_dir)
        if overrides_code(request.spec):
            listing = await anyio.to_thread.run_sync(list_folder, plan.code_dir)
            runner = runner_class(request.config.resource)
            check_overrides(request.spec, job, listing, runner, of_queue=request.config.resource_args)
        if plan.python_version is None:  # Of a git job, only its code says so.
            version = await anyio.to_thread.run_sync(runtime_of, plan.project_dir, plan.code_dir)
            plan = plan.model_copy(update={"python_version": version})
    await anyio.to_thread.run_sync(save_plan, plan)
    return plan


async def preview_plan(request: Request, machine: MachineSettings, job: Job | None) -> RunPlan:
    """Return the plan that an attempt would have, all checked; nothing is made, and secrets stay as they are named.

    Raises:
        LaunchError: as `make_plan`, but for what only the agent's machine can tell.
    """
    return await _build_plan(request, machine, job, name_secret)


def plan_agent_program(
    command: Sequence[str],
    *,
    item_id: str,
    attempt: int,
    run_id: str,
    labels: dict[str, str],
    stop_seconds: float,
    machine: MachineSettings,
    resource: str,
) -> RunPlan:
    """Plan one attempt at an item that runs a program of prefect-launch's own; lay out its folder.

    Args:
        command: the program and its arguments.
        item_id: of the item.
        attempt: from 1.
        run_id: of the item.
        labels: of the run.
        stop_seconds: what the program gets to end in order.
        machine: the agent's settings.
        resource: that runs it.
    """
    plan = RunPlan(
        item_id=item_id,
        attempt=attempt,
        run_id=run_id,
        run_dir=machine.run_dir(item_id, attempt, labels.get(Labels.CLAIM, "")),
        command=tuple(command),
        labels=labels,
        stop_seconds=stop_seconds,
        is_agent_program=True,
        # Its folder is no place to import from.
        env={"PYTHONSAFEPATH": "1"},
    )
    note_resource(machine.home, resource)
    _make_run_dir(plan.run_dir, plan.labels.get(Labels.CLAIM, ""))
    save_plan(plan)
    return plan


async def _resolve(spec: LaunchSpec, jobs: JobRegistry) -> Job | None:
    if spec.image:
        parse_image(spec.image)
    if spec.uri:
        raise SpecError(
            f"An item is of a job, not of the URI {spec.uri!r}: the commit is fixed when it is queued, so that it is"
            " the same at every try. Queue it with launch_add(uri=…) or 'prefect-launch add -u …'."
        )
    return await jobs.resolve(spec.job) if spec.job else None


async def _build_plan(request: Request, machine: MachineSettings, job: Job | None, read_secret: ReadSecret) -> RunPlan:
    runner = runner_class(request.config.resource)
    runner.check_source(job.kind if job else SourceKind.IMAGE)
    if job is not None and request.spec.job:
        check_version(job, request.spec.git.version, named=request.spec.job)
    refuse_unread(request.spec, job, runner)
    if request.queue is None:
        refuse_unread_here(request.spec, job, runner)
    asked = secured(request.spec, pins=request.config.pin) if machine.secure_mode else request.spec
    run_dir = machine.run_dir(request.item_id, request.attempt, request.labels.get(Labels.CLAIM, ""))
    spec = with_checked_inputs(asked, job, runner.input_dir(run_dir) or "")
    held: dict[str, str] = {}
    marks: dict[str, str] = {}

    async def read(name: str) -> str:
        held[name] = await read_secret(name)
        if runner.takes_secret_values or held[name] == reference_to(name):
            return held[name]
        # Not the text that names it: a submitter could have written that one.
        mark = f"prefect-launch-secret-{token_hex(16)}"
        marks[mark] = name
        return mark

    try:
        asked_options, folders = await _options(request, machine, spec, _named_image(spec, job), read)
        options = runner.check_options(asked_options)
    except LaunchError:
        with _mask(machine, held).in_errors():
            raise
    own_image = runner.own_image(options)
    to_build = build_request(spec, job) if runner.needs_image and own_image is None else None
    return RunPlan(
        item_id=request.item_id,
        attempt=request.attempt,
        run_id=spec.run_id or short_id(request.item_id),
        run_dir=run_dir,
        command=spec.overrides.entry_point or (job.entry_point if job else ()),
        args=arguments_of(spec, job),
        env={
            **variables_of_inputs(spec, job, request.config, request.queue),
            **job_environment(
                _context(request, spec, job, run_dir),
                wandb=machine.wandb,
                chunk_bytes=runner.variable_bytes or CHUNK_BYTES,
            ),
        },
        image=_image(spec, job) or own_image,
        resolved_image=resolved_image(_named_image(spec, job) or "", spec.docker),
        build_request=to_build,
        code_dir=run_dir / CODE_FOLDER if job is not None and job.kind is not SourceKind.IMAGE else None,
        build_context=job.build_context if job is not None and to_build is None else None,
        working_dir=spec.overrides.working_dir,
        python_version=spec.python_version or (job.runtime if job else None),
        metric=spec.metric,
        timeout=spec.timeout if request.queue is None else time_limit(spec.timeout, request.config),
        options=options,
        from_limits=filled_by_limits(options, request.config, spec),
        host_folders=folders,
        labels=request.labels,
        output_limits=machine.outputs.within(request.config.outputs),
        input_files=tuple(dict.fromkeys(outputs_named_by(asked, job).values())),
        keep=(job.document.keep or ()) if job is not None else (),
        secrets=tuple(held),
        secret_marks=marks,
        mask=_mask(machine, held),
        file_overrides=spec.overrides.files,
    )


def _mask(machine: MachineSettings, held: Mapping[str, str]) -> Mask:
    """Return what hides the secrets that a run is given: those of Secret blocks, by name, and the agent's W&B key."""
    values = [value for name, value in held.items() if value != reference_to(name)]
    return Mask([*values, machine.wandb.api_key.get_secret_value()] if machine.wandb.api_key else values)


async def with_mask(plan: RunPlan, machine: MachineSettings, read_secret: ReadSecret) -> tuple[RunPlan, list[str]]:
    """Return a plan that was kept in its run folder with what hides its secrets, which are read again for it.

    Of a block that has been changed since the run started, the new value is hidden, and the old one is not known.

    Returns:
        The plan, and the names of those of its secrets that cannot be read any more.

    Raises:
        ServerUnavailableError: when the server does not answer.
    """
    held, gone = {}, []
    for name in plan.secrets:
        try:
            held[name] = await read_secret(name)
        except ServerUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - a run that still runs is not given up because of its log
            log.warning("the secret %s of %s cannot be read: %s", name, plan.item_id, error)
            gone.append(name)
    return plan.model_copy(update={"mask": _mask(machine, held)}), gone


def _image(spec: LaunchSpec, job: Job | None) -> str | None:
    """Return the image that is named, pinned to the digest that it had when the item was queued, if that was asked."""
    named = _named_image(spec, job)
    return image_to_run(named, spec.docker) if named else (job.base_image if job else None)


def _named_image(spec: LaunchSpec, job: Job | None) -> str | None:
    return spec.image or (job.image if job else None)


def build_request(spec: LaunchSpec, job: Job | None) -> BuildRequest | None:
    """Return what a job's image is built as; None when it has one, or runs its code in an image as it is."""
    if job is None or job.image or job.base_image:
        return None
    built = job.document.source.model_dump()
    accelerator = spec.builder.get("accelerator") or {}
    return BuildRequest(
        entry_point=spec.overrides.entry_point or job.entry_point,
        dockerfile=spec.overrides.dockerfile or built.get("dockerfile"),
        build_context=job.build_context,
        python_version=spec.python_version or job.runtime,
        base_image=accelerator.get("base_image"),
        user_id=spec.docker.user_id,
    )


def with_checked_inputs(spec: LaunchSpec, job: Job | None, folder: str) -> LaunchSpec:
    """Return a spec whose inputs are those that the program gets.

    Args:
        spec: the request.
        job: its job, whose schema checks them.
        folder: where the program sees the outputs of other items.

    Raises:
        InputError: naming the input, and the rule that it breaks.
    """
    schema = job.schema if job is not None else None
    inputs = placed_inputs(spec.overrides.run_config, schema, folder)
    inputs = check_inputs(schema, inputs) if schema else inputs
    return spec.model_copy(update={"overrides": spec.overrides.model_copy(update={"run_config": inputs})})


async def _options(
    request: Request, machine: MachineSettings, spec: LaunchSpec, image: str | None, read_secret: ReadSecret
) -> tuple[dict[str, Any], tuple[HostFolder, ...]]:
    config = request.config
    submitted = submitted_options(config, spec, request.queue)
    secrets = await read_secrets([*config.secret_names, *secret_names(submitted)], read_secret)
    macros = item_macros(
        spec,
        item_id=request.item_id,
        image=image,
        queue=request.queue,
        attempt=request.attempt,
        named=machine.macros,
    )
    options = merged_options(config, spec, request.queue, macros=macros, secrets=secrets)
    if request.queue is None:  # Whose caller wrote all of it, for their own machine.
        return options, ()
    return options, host_folders(config, spec.template_variables, macros, secrets)


def _context(request: Request, spec: LaunchSpec, job: Job | None, run_dir: Path) -> JobContext:
    return JobContext.of(
        spec,
        run_id=spec.run_id or short_id(request.item_id),
        item_id=request.item_id,
        attempt=request.attempt,
        claim=request.labels.get(Labels.CLAIM),
        output_dir=str(run_dir / "outputs"),
        queue=request.queue,
        queue_entity=request.config.entity,
        entity=spec.entity or (job.entity if job else None),
        project=spec.project or (job.project if job else None),
    )


def _make_run_dir(run_dir: Path, claim: str) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    run_dir.chmod(0o700)
    if claim:
        note_claim(run_dir, claim)


def _clear(folder: Path) -> None:
    """Remove what an agent that died had begun to unpack."""
    remove_tree(folder)


def _check_build_context(build_context: str | None, code_dir: Path) -> None:
    """Refuse a folder that a git host did not list when the job was made, and that is not there."""
    if build_context is not None and not (code_dir / build_context).is_dir():
        raise unknown_build_context(build_context, list_code(code_dir), where="the job's code")


def save_plan(plan: RunPlan) -> None:
    """Keep a plan in its run folder, without its environment, for an agent that finds the run again."""
    whole = plan.run_dir / PLAN_FILE
    part = whole.with_suffix(".part")
    part.write_text(plan.model_dump_json(exclude={"env", "options", "host_folders", "secret_marks"}))
    part.replace(whole)


def load_plan(run_dir: Path) -> RunPlan | None:
    """Read the plan of a run folder; `None` when it is missing or cannot be read."""
    try:
        return RunPlan.model_validate_json((run_dir / PLAN_FILE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("cannot read %s: %s", run_dir / PLAN_FILE, error)
        return None


def local_config(resource: str) -> QueueConfig:
    """Return the config of a run that comes from no queue."""
    return QueueConfig(resource=resource)


def default_resource(job: Job | None) -> str:
    """Return the resource of a run that names none: an image needs a container, code a process."""
    return "local-container" if job is None or job.kind is SourceKind.IMAGE else "local-process"
