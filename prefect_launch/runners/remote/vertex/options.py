"""Options of the resource `vertex`, and the custom job that is made of a run's plan.

`spec` and `run` are those of W&B's reference; they are the owner's. So is `secrets`. Any submitter may set `env`. What
a submitter is to choose of the rest, the owner writes as a template variable; a queue's limits count the machines and
the accelerators of all worker pools.

The first worker pool, and each other one that names no image or `${image_uri}`, runs the job's image with its command.
A pool with another image of its own, such as a reduction server, runs as its owner wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.core.validation import texts_in
from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners import option_values as values
from prefect_launch.runners.base import Labels, RunPlan, with_default_variables
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Amount, Quantity
from prefect_launch.runners.remote.image_plan import (
    ENTER,
    refuse_base_image,
    refuse_file_overrides,
    refuse_shown_secrets,
)
from prefect_launch.runners.remote.vertex.fields import OF_AGENT, PATH, RUN, SPEC, read_fields, refusal, snake_case
from prefect_launch.runners.remote.vertex.labels import as_google

SUBMITTER_OPTIONS: Final = frozenset({"e", "env"})
OPTIONS: Final = SUBMITTER_OPTIONS | {"run", "secrets", "spec"}
UNREAD_OPTIONS: Final = {**OF_AGENT, "region": OF_AGENT["location"]}
GPUS: Final = "gpus"
REPLICAS: Final = "replicas"
#: Counted over all worker pools; a queue limits them, and its `spec` sets them.
QUANTITIES: Final = {GPUS: Quantity(values.gpus), REPLICAS: Quantity(values.integer)}
#: Stands for the job's image.
IMAGE_MACRO: Final = "${image_uri}"
#: Where Vertex AI mounts buckets.
_MOUNT: Final = "/gcs/"
_FOLDER: Final = "launch"
_MOST_LABELS: Final = 64
#: Fields of a worker pool that say how much a run gets, or what of the item's own runs there.
_FREE: Final = frozenset(
    {
        *("accelerator_count", "replica_count", "boot_disk_size_gb", "image_uri", "command", "args", "value"),
        *("timeout", "max_wait_duration", "restart_job_on_worker_restart", "disable_retries"),
    }
)
#: Fields of `run` of this package's and the reference's that the service keeps in the job's spec as they are.
_SCHEDULING: Final = ("timeout", "restartJobOnWorkerRestart", "disableRetries", "maxWaitDuration")


# --- the values ---


def check_values(options: Mapping[str, Any]) -> None:
    """Check the values of options.

    Args:
        options: under their normal names; all are known.

    Raises:
        LaunchError: naming the field, the value and the rule.
    """
    if "spec" in options:
        _check_whole(read_fields(options["spec"], SPEC, f"{PATH}.spec"))
    if "run" in options:
        read_fields(options["run"], RUN, f"{PATH}.run")
    for name in options.get("env", {}):
        _check_variable(name, f"{PATH}.env")
    try:
        values.boolean(options.get("secrets", False))
    except ValueError as error:
        raise refusal(f"{PATH}.secrets", options["secrets"], str(error)) from None


def _check_whole(spec: Mapping[str, Any]) -> None:
    pools = spec.get("workerPoolSpecs")
    where = f"{PATH}.spec.worker_pool_specs"
    if not pools:
        raise refusal(where, pools or [], "Vertex AI needs at least one worker pool. Add one, with a container_spec")
    for index, pool in enumerate(pools):
        # What has no replicas is a place that is left out: Vertex AI tells pools by their index.
        if "containerSpec" not in pool:
            raise refusal(f"{where}[{index}]", pool, "it has no container_spec. Add one; {} runs the job's own image")
        if "machineType" not in pool.get("machineSpec", {}) and "persistentResourceId" not in spec:
            example = "{'machine_type': 'n1-standard-4'}"
            raise refusal(f"{where}[{index}]", pool, f"it names no machine. Add a machine_spec, such as {example}")
        machine = pool.get("machineSpec", {})
        if ("acceleratorType" in machine) != bool(machine.get("acceleratorCount")):
            raise refusal(
                f"{where}[{index}].machine_spec",
                machine,
                "accelerator_type and accelerator_count go together. Give both",
            )
        for variable in pool["containerSpec"].get("env", ()):
            _check_variable(variable.get("name", ""), f"{where}[{index}].container_spec.env")
    if pools[0].get("replicaCount", 1) != 1:
        raise refusal(
            f"{where}[0].replica_count",
            pools[0]["replicaCount"],
            "the first worker pool has one machine. Put the others into a second pool",
        )
    if "stagingBucket" not in spec:
        raise SpecError(
            f"{PATH}.spec has no staging_bucket: the jobs' outputs come back by it. Set it, such as"
            " gs://my-bucket/launch."
        )


def _check_variable(name: object, where: str) -> None:
    if not str(name).isascii() or not str(name).isidentifier():
        raise refusal(where, name, "the name of a variable must be letters, digits and '_', a digit not first")


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse options without a worker pool.

    Raises:
        SpecError: naming what is missing.
    """
    if "spec" not in options:
        raise SpecError(
            f"{PATH} has no 'spec', which says what the jobs run on. Set it in the queue's config: worker_pool_specs"
            " and staging_bucket."
        )


def check_submitter_values(options: Mapping[str, Any]) -> None:
    """Refuse what says as whom or where a job runs, in a `spec` or `run` that the owner lets submitters set.

    Raises:
        UnsafeSpecError: naming the field.
    """
    for option, allowed in (("run", _FREE | {"scheduling_strategy"}), ("spec", {"worker_pool_specs", "labels"})):
        for name in options.get(option, {}):
            if snake_case(name) not in allowed:
                raise UnsafeSpecError(
                    f"{PATH}.{option}.{name} may be set by the queue's owner only. Leave it out, or ask the owner."
                )
    for index, pool in enumerate(options.get("spec", {}).get("worker_pool_specs", ())):
        if any(snake_case(name) == "nfs_mounts" for name in pool):
            raise UnsafeSpecError(
                f"{PATH}.spec.worker_pool_specs[{index}].nfs_mounts may be set by the queue's owner only. Leave it out,"
                " or ask the owner."
            )


def fill_rule(option: str, keys: Keys) -> FillRule:
    """Return how freely a submitter's value may stand at a place of a queue's options."""
    names = [snake_case(key) for key in keys if isinstance(key, str)]
    if option in SUBMITTER_OPTIONS or (names and (names[-1] in _FREE or names[0] == "labels")):
        return FillRule.ANY
    return FillRule.OWNER


def amounts(options: Mapping[str, Any]) -> dict[str, Amount]:
    """Return how many machines and accelerators a run has in all; nothing for a spec that is wrong."""
    try:
        pools = read_fields(options.get("spec", {}), SPEC, PATH).get("workerPoolSpecs", [])
    except Exception:  # noqa: BLE001 - `check_values` says what is wrong with it
        return {}
    counts = [pool.get("replicaCount", 1) for pool in pools]
    gpus = sum(
        count * pool.get("machineSpec", {}).get("acceleratorCount", 0)
        for count, pool in zip(counts, pools, strict=True)
    )
    machines = f" (on {sum(counts)} machines)" if sum(counts) > 1 else ""
    return {GPUS: Amount(gpus, f"{gpus}{machines}"), REPLICAS: Amount(sum(counts), str(sum(counts)))}


# --- the job ---


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan that cannot be a custom job.

    Raises:
        SpecError: with the value seen, the rule and the next step.
        QueueError: when it has secrets, which its queue does not let Google's console show.
    """
    check_together(plan.options)
    if plan.working_dir and not plan.command:
        raise SpecError(
            f"The job is to run in the folder {plan.working_dir!r}, and it has no command: Vertex AI starts an image's"
            " own in the image's own folder. Give an entry point, or leave the folder out."
        )
    if plan.code_dir is not None and plan.image is not None:
        refuse_base_image(plan.image, "Vertex AI")
    refuse_file_overrides(plan, "Vertex AI")
    for name in plan.env:
        _check_variable(name, "The job's environment")
    if not values.boolean(plan.options.get("secrets", False)):
        refuse_shown_secrets(
            plan,
            {**plan.options.get("env", {}), **plan.env},
            {option: texts_in(plan.options.get(option, {})) for option in ("spec", "run")},
            resource="vertex",
            seen="whoever may see custom jobs of the Google Cloud project sees a job's environment and arguments",
            instead="Or let the job read them from Secret Manager by its service account.",
        )


def custom_job(plan: RunPlan) -> dict[str, Any]:
    """Return the body of the REST API's "create a custom job"."""
    spec = read_fields(plan.options["spec"], SPEC, f"{PATH}.spec")
    run = read_fields(plan.options.get("run", {}), RUN, f"{PATH}.run")
    labels = {**spec.get("labels", {}), **as_google(plan.labels)}
    if len(labels) > _MOST_LABELS:
        raise refusal(f"{PATH}.spec.labels", spec["labels"], f"with the run's own they are more than {_MOST_LABELS}")
    scheduling: dict[str, Any] = {name: run.pop(name) for name in _SCHEDULING if name in run}
    if "schedulingStrategy" in run:
        scheduling["strategy"] = run.pop("schedulingStrategy")
    folder = output_folder(plan, spec)
    pools = [_pool(pool, index, plan, folder) for index, pool in enumerate(spec["workerPoolSpecs"])]
    job: dict[str, Any] = {
        "displayName": plan.name,
        "labels": labels,
        "jobSpec": {
            "workerPoolSpecs": pools,
            "baseOutputDirectory": {"outputUriPrefix": folder},
            **{name: spec[name] for name in ("persistentResourceId",) if name in spec},
            **run,
            **({"scheduling": scheduling} if scheduling else {}),
        },
    }
    if "encryptionSpecKeyName" in spec:
        job["encryptionSpec"] = {"kmsKeyName": spec["encryptionSpecKeyName"]}
    return job


def output_folder(plan: RunPlan, spec: Mapping[str, Any]) -> str:
    """Return the folder of a run's own in a bucket, ``gs://bucket/folder/``."""
    base = spec.get("baseOutputDir") or f"{spec['stagingBucket']}/{_FOLDER}"
    return f"{base}/{plan.name}-{plan.labels.get(Labels.CLAIM, '')}".rstrip("-") + "/"


def _pool(pool: Mapping[str, Any], index: int, plan: RunPlan, folder: str) -> dict[str, Any]:
    container = dict(pool["containerSpec"])
    images = (IMAGE_MACRO, plan.image, plan.resolved_image, None)
    if index == 0 or container.get("imageUri") in images:
        container["imageUri"] = plan.resolved_image or plan.image or "(the job's image)"
        if plan.command:
            enter = (*ENTER, plan.working_dir) if plan.working_dir else ()
            container["command"] = [*enter, *plan.command]
        if plan.args:
            container["args"] = list(plan.args)
    ours = job_env(plan, folder)
    kept = [one for one in container.get("env", ()) if one["name"] not in ours]
    container["env"] = [*kept, *({"name": name, "value": _literal(value)} for name, value in ours.items())]
    return {"replicaCount": 1, **pool, "containerSpec": container}


def job_env(plan: RunPlan, folder: str) -> dict[str, str]:
    """Return the variables of a run's job."""
    inside = _MOUNT + folder.removeprefix("gs://").rstrip("/")
    given = {**plan.options.get("env", {}), **plan.env, OUTPUT_DIR_VARIABLE: inside}
    return with_default_variables(given, inside)


def _literal(value: str) -> str:
    """Return a variable's value as the service gives it to the job: it replaces `$(NAME)`."""
    return value.replace("$(", "$$(")


def preview(plan: RunPlan) -> dict[str, Any]:
    """Return the custom job that would be made; variables of the job apart."""
    if "spec" not in plan.options:
        return {"env": {**plan.options.get("env", {}), **plan.env}}
    made = custom_job(plan)
    env = job_env(plan, made["jobSpec"]["baseOutputDirectory"]["outputUriPrefix"])
    for pool in made["jobSpec"]["workerPoolSpecs"]:
        pool["containerSpec"]["env"] = [one for one in pool["containerSpec"]["env"] if one["name"] not in env]
    return {**made, "env": env}
