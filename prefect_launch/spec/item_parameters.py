"""Parameters, labels and tags of an item: the launch spec in a flow run.

An item of `launch_add` has the spec as its parameters. An item of a job's own deployment (from the UI, a schedule, or
`prefect deployment run`) has the job's inputs at the top level and the launch options in one group, `launch`. The
labels of its deployment name its job. The flow run of `launch` has that function's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.core.names import short_id
from prefect_launch.errors import SpecError
from prefect_launch.server.values import SCHEDULER_FLOW, Item
from prefect_launch.spec.launch_spec import LaunchSpec, construct_spec, parse_spec
from prefect_launch.spec.option import fields_of, placed

#: Label: the job, at the version that was pinned.
JOB_LABEL: Final = "prefect-launch.job"
#: Label: the id of the item that it is a rerun of.
RERUN_LABEL: Final = "prefect-launch.rerun-of"
#: Label of items that were made from a job's form.
FORM_LABEL: Final = "prefect-launch.form"
#: The parameter of a job's form that holds the launch options.
OPTIONS_PARAMETER: Final = "launch"
#: The launch options that a job's form offers.
FORM_FIELDS: Final = tuple(field for field in fields_of(LaunchSpec) if field.option.form is not None)


def spec_of(item: Item) -> LaunchSpec:
    """Return what an item asks for, with a run id.

    Raises:
        SpecError: when its parameters are no valid spec.
    """
    data = _form_spec(item) if item.labels.get(FORM_LABEL) else dict(item.parameters)
    if is_launch_call(item):
        given = {key: value for key, value in data.items() if key not in ("api", "synchronous")}
        return construct_spec(given.pop("config"), **given)
    if item.job_variables:
        data["template_variables"] = item.job_variables
    return parse_spec({**data, "run_id": run_id_of(item)}).check_source()


def is_launch_call(item: Item) -> bool:
    """Whether an item is the flow run of a call of `launch`: its parameters are the call's arguments."""
    return not item.labels.get(FORM_LABEL) and {"api", "config", "synchronous"} <= item.parameters.keys()


def _form_spec(item: Item) -> dict[str, Any]:
    job = item.labels.get(JOB_LABEL)
    if not job:
        raise SpecError("The item has no job: its deployment has lost its labels. Deploy the job again.")
    inputs = {key: value for key, value in item.parameters.items() if key != OPTIONS_PARAMETER}
    group = item.parameters.get(OPTIONS_PARAMETER) or {}
    if not isinstance(group, Mapping):
        raise SpecError(f"The parameter {OPTIONS_PARAMETER!r} must be a group of launch options, not {group!r}.")
    # A field of the form that was filled in and then cleared has an empty text.
    options = {key: value for key, value in group.items() if value != ""}
    if isinstance(options.get("retries"), Mapping):  # An empty group of a form means no retry rule.
        filled = {key: value for key, value in options["retries"].items() if value not in (None, "", [])}
        options["retries"] = filled or None
    paths = {field.name: field.path for field in FORM_FIELDS}
    given = {paths.get(name, name): value for name, value in options.items() if value is not None}
    return placed({**given, "job": job, "overrides.run_config": inputs})


def check_labels(item: Item, of_deployment: Mapping[str, Any]) -> None:
    """Refuse an item whose labels say another job than its deployment: anyone who starts a run can override its labels.

    The version may be another: a deployment may have been made anew since.

    Raises:
        SpecError: naming both.
    """
    said, meant = (_job_of(labels) for labels in (item.labels, of_deployment))
    if said != meant:
        raise SpecError(
            f"The item's labels name {said or 'no job'}, and its deployment starts"
            f" {meant or 'any job, by its parameters'}."
            f" Start it again without the labels {JOB_LABEL!r} and {FORM_LABEL!r}."
        )


def _job_of(labels: Mapping[str, Any]) -> str | None:
    """Return the job of a form, without its version; None where the parameters say what runs."""
    return str(labels.get(JOB_LABEL)).rpartition(":")[0] if labels.get(FORM_LABEL) else None


def options_of(item: Item) -> Mapping[str, Any]:
    """Return the launch options of an item, unchecked; the inputs of a job's form are not among them.

    Of a call of `launch`, they are its arguments, and below them its config.
    """
    if is_launch_call(item):
        config = item.parameters["config"]
        given = {key: value for key, value in item.parameters.items() if value is not None}
        return {**(config if isinstance(config, Mapping) else {}), **given}
    if not item.labels.get(FORM_LABEL):
        return item.parameters
    group = item.parameters.get(OPTIONS_PARAMETER)
    return group if isinstance(group, Mapping) else {}


def run_id_of(item: Item) -> str:
    """Return the launch run id of an item: the caller's, or one from the item's own id."""
    return str(options_of(item).get("run_id") or short_id(item.id))


def author_of(item: Item) -> str:
    """Return who has submitted an item; an empty text when it does not say."""
    return str(options_of(item).get("author") or "")


def author_tag(author: str) -> str:
    """Return the tag of an author's items; those of a job's form have none."""
    return f"author:{author}"


def tags_of(spec: LaunchSpec, *, queue: str | None, job: str | None, version: int | None) -> tuple[str, ...]:
    """Return the tags of an item, by which the UI finds it."""
    named = {
        "queue": queue,
        "job": job,
        "version": None if version is None else f"v{version}",
        "entity": spec.entity,
        "project": spec.project,
        "author": spec.author,
        "sweep": spec.sweep_id,
    }
    resumable = ("resumable",) if spec.resumable else ()
    return (*(f"{key}:{value}" for key, value in named.items() if value), *resumable)


def labels_of(spec: LaunchSpec, *, job: str | None) -> dict[str, str]:
    """Return the labels of an item."""
    named = {
        "job": job,
        "run-id": spec.run_id,
        "entity": spec.entity,
        "project": spec.project,
        "author": spec.author,
        "sweep": spec.sweep_id,
    }
    return {f"prefect-launch.{key}": value for key, value in named.items() if value}


def is_scheduler(item: Item) -> bool:
    """Whether an item is a sweep's scheduler, which does not count as a job.

    Its flow decides, which is that of the deployment that it was made from: no submitter sets it with what an item
    holds.
    """
    return item.flow == SCHEDULER_FLOW
