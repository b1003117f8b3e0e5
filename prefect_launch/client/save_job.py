"""Job from an ended item: the same code or image, its command, and its inputs as the defaults of the schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefect.logging import get_logger

from prefect_launch.client.rerun import spec_again
from prefect_launch.core.names import name_and_id
from prefect_launch.errors import SpecError
from prefect_launch.jobs.model import (
    CONFIG_INPUTS,
    ImageJobSource,
    Job,
    JobDocument,
    JobDraft,
    PutResult,
    SourceKind,
)
from prefect_launch.planning.image_pinning import image_to_run
from prefect_launch.planning.refused_fields import outputs_named_by
from prefect_launch.queues.session import Session
from prefect_launch.server.values import Item
from prefect_launch.spec.code_options import job_name, parse_image
from prefect_launch.spec.item_outputs import Keys
from prefect_launch.spec.item_parameters import is_scheduler
from prefect_launch.spec.launch_spec import LaunchSpec

_logger = get_logger("launch.jobs")


async def save_job(session: Session, item: Item, *, name: str | None = None, aliases: Sequence[str] = ()) -> PutResult:
    """Store what an ended item ran as a job; see `QueuedRun.save_job`."""
    spec = _ended(item)
    job = await session.jobs.resolve(spec.job) if spec.job else None
    _warn_of_rest(spec)
    draft = JobDraft(
        name=name or (job.name if job else job_name(parse_image(str(spec.image))[0])),
        entity=job.entity if job else spec.entity,
        project=job.project if job else spec.project,
        document=_document(spec, job),
        code=await session.jobs.read_code(job) if job and job.kind is SourceKind.CODE else None,
        listing=await session.jobs.list_code(job) if job else None,
        description=job.description if job else None,
        metadata={**(job.metadata if job else {}), "item": str(item.id)},
    )
    return await session.jobs.put(draft, aliases)


def _ended(item: Item) -> LaunchSpec:
    what = f"Item {name_and_id(item)}"
    if is_scheduler(item):
        raise SpecError(f"{what} is a sweep, which is no job. Save one of its trials: 'prefect-launch sweep best'.")
    if not item.is_terminal:
        raise SpecError(f"{what} is {item.state_name}: only one that has ended becomes a job. Wait for its end.")
    return spec_again(item)


def _document(spec: LaunchSpec, job: Job | None) -> JobDocument:
    command = spec.overrides.entry_point or (job.entry_point if job else ())
    if spec.overrides.args and not command:
        raise SpecError(
            f"The arguments {list(spec.overrides.args)!r} follow the image's own entry point, for which a job has no"
            " place. Make the job with its whole command: 'prefect-launch job create image IMAGE -E COMMAND'."
        )
    named = spec.image or (job.image if job else None)
    changes: dict[str, Any] = {"entrypoint": (*command, *spec.overrides.args)}
    if named:
        changes["image"] = image_to_run(named, spec.docker)
    elif spec.overrides.entry_point:
        changes["notebook"] = False
    schema = _schema(spec, job)
    if job is None:
        document = JobDocument(source_type=SourceKind.IMAGE, source=ImageJobSource(**changes))
    else:
        document = job.document.model_copy(update={"source": job.document.source.model_copy(update=changes)})
    return document.model_copy(
        update={
            "runtime": spec.python_version or document.runtime,
            "retries": document.retries if spec.retries is None else spec.retries,
            "input_schemas": document.input_schemas if schema is None else {CONFIG_INPUTS: schema},
        }
    )


def _schema(spec: LaunchSpec, job: Job | None) -> dict[str, Any] | None:
    inputs = spec.overrides.run_config
    if not inputs:
        return None
    schema = (job.schema if job else None) or {"type": "object", "additionalProperties": True}
    return _with_defaults(schema, inputs, outputs_named_by(spec, job).keys())


def _with_defaults(
    schema: Mapping[str, Any], inputs: Mapping[str, Any], without: Collection[Keys], at: Keys = ()
) -> dict[str, Any]:
    """Return a schema whose defaults are a run's inputs, but for the outputs of other items, which may be gone."""
    properties = dict(schema.get("properties") or {})
    for name, value in inputs.items():
        keys, each = (*at, name), properties.get(name, {})
        if isinstance(value, Mapping) and each.get("properties"):
            properties[name] = _with_defaults(each, value, without, keys)
        elif not any(one[: len(keys)] == keys for one in without):
            properties[name] = {**each, "default": value}
    return {**schema, "properties": properties}


def _warn_of_rest(spec: LaunchSpec) -> None:
    """Name what changed the run and has no place in a job."""
    overrides = spec.overrides
    rest = {
        "overrides.files": overrides.files,
        "overrides.artifacts": overrides.artifacts,
        "overrides.dockerfile": overrides.dockerfile,
        "overrides.working_dir": overrides.working_dir,
        "builder": spec.builder,
        "resource_args": spec.resource_args,
    }
    if left := [key for key, value in rest.items() if value]:
        _logger.warning("These of the item are not in the job: %s. Give them when you queue it.", ", ".join(left))
