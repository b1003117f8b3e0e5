"""Options of the resource `prefect`: which work pool gets an item, and with which job variables.

`work-pool` (required), `work-queue` and `job-variables` (a mapping, as the pool's base job template has them) say where
and how; `image` is for jobs that name none; `python` is the interpreter that the wrapper runs in, `python3` by default.
They are the owner's, who may let submitters set them. `env`: variables for the job, a mapping or a list of
"NAME=value"; a secret that it names is read where the job runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from prefect_launch.core.validation import map_texts, texts_in
from prefect_launch.errors import QueueError, SpecError, unknown_name
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.prefect.command import PYTHON, child_command
from prefect_launch.server.secrets import reference_to
from prefect_launch.server.values import POOL_TYPE, Pool, PriorityQueue

SUBMITTER_OPTIONS: Final = frozenset({"e", "env"})
OPTIONS: Final = SUBMITTER_OPTIONS | {"image", "job-variables", "python", "work-pool", "work-queue"}
_TEXTS: Final = ("image", "python", "work-pool", "work-queue")
_COMMAND: Final = "command"
_IMAGE: Final = "image"
#: What a worker of Azure puts before the command, by default a program of Prefect's own images.
_ENTRYPOINT: Final = "entrypoint"
#: A pool's type whose worker starts processes on its own machine.
PROCESS_TYPE: Final = "process"
#: What a worker fills in by itself.
_TEMPLATE: Final = re.compile(r"\{\{")


#: Job variables that say how much a run gets, by a part of their names: those of Prefect's own workers.
_AMOUNTS: Final = re.compile(r"cpu|memory|mem_|gpu|timeout")


def is_free(option: str, name: object) -> bool:
    """Whether a submitter's value may be filled in there, whatever it is.

    Args:
        option: under its normal name.
        name: of the job variable; None where the option is another.
    """
    if option == "job-variables":
        return name in (_IMAGE, "env") or bool(_AMOUNTS.search(str(name).lower()))
    return option in SUBMITTER_OPTIONS or option == _IMAGE


def is_known(value: object) -> bool:
    """Whether an option is no text in which a variable or a macro is filled in later."""
    return not (isinstance(value, str) and ("{{" in value or "${" in value))


class Target(BaseModel):
    """Where a run goes.

    Attributes:
        pool: the work pool's name.
        queue: the work queue's name in it; None: the pool's default.
        job_variables: more variables for its worker.
        image: for a job that names none.
        python: the interpreter of the wrapper.
    """

    model_config = ConfigDict(frozen=True)

    pool: str
    queue: str | None = None
    job_variables: dict[str, Any] = {}
    image: str | None = None
    python: str = PYTHON


def check_values(options: Mapping[str, Any]) -> None:
    """Refuse a value of the wrong type.

    Args:
        options: under their normal names.

    Raises:
        SpecError: naming the option and the value.
    """
    for name in _TEXTS:
        value = options.get(name, "x")
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise _refusal(name, value, "it must be a text of one line")
    variables = options.get("job-variables", {})
    if not isinstance(variables, Mapping):
        raise _refusal("job-variables", variables, "it must be a mapping of the names of job variables to their values")
    if _COMMAND in variables:
        raise _refusal(
            "job-variables",
            {_COMMAND: variables[_COMMAND]},
            "the command is prefect-launch's, which starts the job's own; give the job an entry point",
        )


def read_target(options: Mapping[str, Any]) -> Target:
    """Return where a run goes.

    Raises:
        SpecError: when no work pool is named, or a value is of the wrong type.
    """
    check_values(options)
    if "work-pool" not in options:
        raise SpecError(
            "resource_args.prefect names no work pool. Set work_pool to the name of one that Prefect workers serve"
            " ('prefect work-pool ls' lists them)."
        )
    given = {
        "pool": options["work-pool"],
        "queue": options.get("work-queue"),
        "image": options.get("image"),
        "python": options.get("python", PYTHON),
        "job_variables": dict(options.get("job-variables", {})),
    }
    return Target(**given)


def check_pool(name: str, pool: Pool | None) -> Pool:
    """Return a work pool, when items can be handed to it.

    Raises:
        QueueError: when it is not there, or one of prefect-launch's own.
    """
    if pool is None:
        raise QueueError(
            f"There is no work pool {name!r} on the Prefect server, which resource_args.prefect.work_pool names."
            " Make it ('prefect work-pool create'), or correct the queue's config."
        )
    if pool.type == POOL_TYPE:
        raise QueueError(
            f"The work pool {name!r} is a queue of prefect-launch itself: an item handed to it would wait for an agent"
            " again. Name a pool of another type, or put the items on that queue."
        )
    return pool


def check_work_queue(target: Target, queues: list[PriorityQueue]) -> None:
    """Refuse a work queue that its pool does not have.

    Raises:
        LaunchError: naming the nearest one.
    """
    names = [queue.name for queue in queues]
    if target.queue is not None and target.queue not in names:
        raise unknown_name("work queue", target.queue, names, where=f" in the work pool {target.pool!r}")


def check_job_variables(names: Iterable[str], pool: Pool) -> None:
    """Refuse a job variable that the template of a work pool does not have; one that declares none takes any.

    Raises:
        NotFoundError: naming the nearest one.
    """
    known = _variables_of(pool)
    for name in names if known else ():
        if name not in known:
            raise unknown_name("job variable", name, known, where=f" in the template of the work pool {pool.name!r}")


def _variables_of(pool: Pool) -> Mapping[str, Any]:
    return (pool.base_job_template.get("variables") or {}).get("properties") or {}


def job_variables(plan: RunPlan, target: Target, pool: Pool) -> dict[str, Any]:
    """Return the job variables of a child flow run: what its worker makes infrastructure of.

    Secrets stand in it by name; the worker reads them.

    Raises:
        LaunchError: for a variable that the pool's template does not have, and a text that the worker would fill in.
    """
    known = _variables_of(pool)
    for text in texts_in(target.job_variables):
        if _TEMPLATE.search(text):
            raise SpecError(
                f"A job variable for the work pool {pool.name!r} holds {text[:100]!r}: its worker would fill in"
                " what stands in double braces. Give plain values; the queue's owner names secrets as"
                f" {reference_to('NAME')}."
            )
    made = _with_references(dict(target.job_variables), plan.secret_marks)
    image = plan.resolved_image or plan.image or target.image
    if image is not None:
        if pool.type == PROCESS_TYPE or (known and _IMAGE not in known):
            raise SpecError(
                f"The job names the image {image!r}, and the work pool {pool.name!r}, of the type {pool.type!r}, runs"
                " none: its template has no job variable 'image'. Use a work pool of containers."
            )
        made[_IMAGE] = image
    check_job_variables(made, pool)
    if _ENTRYPOINT in known:
        made.setdefault(_ENTRYPOINT, None)
    template = pool.base_job_template.get("variables") or {}
    lacking = [name for name in template.get("required") or () if "default" not in known.get(name, {})]
    lacking = [name for name in lacking if name not in made and name not in (_COMMAND, "name")]
    if lacking:
        raise QueueError(
            f"The work pool {pool.name!r}, of the type {pool.type!r}, needs the job variable {lacking[0]!r}, which"
            f" nothing sets. Set {'image' if lacking[0] == _IMAGE else 'job_variables'} in the queue's config, or a"
            " default in the pool's template."
        )
    if "name" in known:
        made.setdefault("name", plan.name)
    if "labels" in known and isinstance(made.get("labels", {}), dict):
        ours = {key: plan.labels[key] for key in (Labels.ITEM, Labels.ATTEMPT) if key in plan.labels}
        made["labels"] = {**made.get("labels", {}), **ours}
    return {**made, _COMMAND: child_command(target.python)}


def _with_references(value: Any, marks: Mapping[str, str]) -> Any:
    """Return a copy with the stand-ins for secrets replaced by what names them to a worker."""

    def filled(text: str) -> str:
        for mark, name in marks.items():
            text = text.replace(mark, reference_to(name))
        return text

    return map_texts(value, filled)


def _refusal(name: str, value: object, rule: str) -> SpecError:
    return SpecError(f"Invalid resource_args.prefect option {name!r}: {value!r}: {rule}.")
