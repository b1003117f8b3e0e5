"""Deployments of jobs, `launch/<job>`: their form, and how they are made.

People start a job's deployment from the UI, by a schedule, by an automation or by `prefect deployment run`. Its form
has the job's own inputs at the top level, with their types, defaults and limits, and the launch options in one group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.core.names import check_name
from prefect_launch.errors import InputError, NotFoundError, QueueError
from prefect_launch.jobs.schema import inputs_in_order, value_definitions, within_64_bits
from prefect_launch.policy.submitter_options import secrets_pattern
from prefect_launch.queues.session import QUEUE_LABEL, Session
from prefect_launch.runners.registry import runner_class
from prefect_launch.spec.item_parameters import FORM_FIELDS, FORM_LABEL, JOB_LABEL, OPTIONS_PARAMETER, tags_of
from prefect_launch.spec.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job


_OPTIONS_SCHEMA: Final[dict[str, Any]] = {
    "title": "Launch options",
    "type": "object",
    "description": "How this run is launched. Leave it as it is for the job's own way.",
    "properties": {
        field.name: {"description": field.text, **field.option.form}
        for field in FORM_FIELDS
        if field.option.form is not None
    },
    "additionalProperties": False,
    "default": {},
}

#: What the form's schema calls a value of a resource argument.
_OPTION: Final = "option"


async def deploy_job(
    session: Session, job_name: str, queue_name: str, *, name: str | None = None
) -> tuple[Job, UUID, str]:
    """Make the deployment of a job on a queue, or bring it up to date. See `Api.deploy_job`.

    Returns:
        The job, the deployment's id, and its name.

    Raises:
        NotFoundError: for an unknown job or queue.
        InputError: when an input of the job is called `launch`, which is the group of launch options.
        QueueError: when the name is that of a queue's own deployment, or of a job's that is on another queue.
    """
    job = await session.jobs.resolve(job_name)
    queue = await session.queue(queue_name)
    runner_class(queue.config.resource).check_source(job.kind)
    wanted = check_name("deployment", name) if name else job.name
    there = await session.server.find_deployment(wanted)
    if there is not None and not (there.labels or {}).get(FORM_LABEL):
        raise QueueError(
            f"The deployment launch/{wanted} is a queue's own. Deploy the job under another name (--name)."
        )
    if there is not None and there.work_pool_name != queue.name:
        raise QueueError(
            f"The deployment launch/{wanted} is on the queue {there.work_pool_name!r}."
            " Deploy the job under another name (--name), or delete that deployment first."
        )
    labels = {JOB_LABEL: job.reference, FORM_LABEL: "job", QUEUE_LABEL: queue.name}
    as_queued = LaunchSpec(job=job.reference, entity=job.entity, project=job.project)
    deployment_id = await session.server.upsert_deployment(
        wanted,
        pool=queue.name,
        parameters={},
        parameter_schema=form_schema(job, secrets=queue.config.submitter_secrets),
        description=f"{job.description or ''}\n\nStarts `{job.reference}` on the queue **{queue.name}**.".strip(),
        tags=["launch", *tags_of(as_queued, queue=queue.name, job=job.name, version=job.version)],
        labels=labels,
        enforce=True,
        version=f"v{job.version}",
    )
    return job, deployment_id, wanted


async def refresh_forms(session: Session, queue_name: str) -> None:
    """Bring the deployments of jobs on a queue up to date with what the queue lets submitters set.

    A deployment whose job is gone stays as it is.
    """
    for deployment in await session.server.list_deployments(queue_name):
        labels = deployment.labels or {}
        if labels.get(FORM_LABEL) and labels.get(JOB_LABEL):
            with suppress(NotFoundError):
                await deploy_job(session, labels[JOB_LABEL], queue_name, name=deployment.name)


def form_schema(job: Job, *, secrets: Collection[str] = ()) -> dict[str, Any]:
    """Return the parameter schema of a job's deployment: its inputs in their order, then the launch options.

    Its numbers are bounded by what the server can send: it checks a form by this schema, and keeps what it takes.

    Raises:
        InputError: when an input is called `launch`.
    """
    schema: Mapping[str, Any] = job.schema or {}
    inputs = inputs_in_order(schema)
    if OPTIONS_PARAMETER in inputs:
        raise InputError(
            f"The job {job.reference} has an input called {OPTIONS_PARAMETER!r}, which is the name of the group of"
            " launch options in a deployment's form. Rename the input to deploy the job."
        )
    placed = {
        key: {"title": key, **within_64_bits(value), "position": position}
        for position, (key, value) in enumerate(inputs.items())
    }
    return {
        "type": "object",
        "title": "Parameters",
        "properties": {**placed, OPTIONS_PARAMETER: {**_options_schema(secrets), "position": len(placed)}},
        "required": list(schema.get("required") or ()),
        "additionalProperties": within_64_bits(schema.get("additionalProperties", not inputs)),
        "definitions": value_definitions(**{_OPTION: {"pattern": secrets_pattern(secrets)}}),
    }


def _options_schema(secrets: Collection[str]) -> dict[str, Any]:
    """Return the schema of the launch options, whose resource arguments name no secret but these."""
    by_resource = {"type": "object", "additionalProperties": {"$ref": f"#/definitions/{_OPTION}"}}
    properties = _OPTIONS_SCHEMA["properties"]
    of_secrets = (
        f"the Secret blocks {', '.join(sorted(secrets))}" if secrets else "no Secret block: the queue allows none"
    )
    description = f"{properties['resource_args']['description']} Its env may name {of_secrets}."
    resource_args = {
        **properties["resource_args"],
        "description": description,
        "additionalProperties": by_resource,
    }
    return {**_OPTIONS_SCHEMA, "properties": {**properties, "resource_args": resource_args}}
