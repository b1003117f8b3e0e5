"""Options of the resource `ray`, and the body of the Jobs API's "submit a job" that is made of a run's plan.

`cpus`, `gpus`, `memory` and `resources` are what Ray keeps free for the job's own process (Ray's names for them, such
as `entrypoint_num_cpus`, are taken too); a job that asks for nothing runs on the head. `runtime_env` is Ray's,
without what the runner sets itself. Only the queue's owner may set `secrets`, `output_dir`, and those parts of a
runtime environment that are a program or a container of the cluster.
"""

from __future__ import annotations

import json
import math
import posixpath
import shlex
from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.core.masking import without_users
from prefect_launch.core.units import format_size, parse_size
from prefect_launch.core.validation import texts_in
from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners import option_values as values
from prefect_launch.runners.base import TAKEOVER_SECONDS, Labels, RunPlan, with_default_variables
from prefect_launch.runners.option_values import Quantity
from prefect_launch.runners.remote.image_plan import refuse_shown_secrets
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.marked_log import marked_script

#: Ray's own names, each with the short one.
_LONG_NAMES: Final = {
    "entrypoint-memory": "memory",
    "entrypoint-num-cpus": "cpus",
    "entrypoint-num-gpus": "gpus",
    "entrypoint-resources": "resources",
}
SUBMITTER_OPTIONS: Final = frozenset(
    {"cpu", "cpus", "e", "env", "gpus", "m", "memory", "resources", "runtime-env", *_LONG_NAMES}
)
OPTIONS: Final = SUBMITTER_OPTIONS | {"output-dir", "secrets"}

#: Keys of a runtime environment that any submitter may set, that the queue's owner may, and that nobody may.
_SUBMITTER_KEYS: Final = frozenset({"conda", "config", "pip", "py_modules", "uv"})
_OWNER_KEYS: Final = frozenset({"container", "image_uri", "py_executable", "worker_process_setup_hook"})
_OWN_KEYS: Final = {"env_vars": "env", "working_dir": "a job with code", "excludes": ".launchignore"}
#: What Ray has a field of its own for.
_NAMED_RESOURCES: Final = {"CPU": "cpus", "GPU": "gpus", "memory": "memory", "object_store_memory": "memory"}

#: How the job's metadata says what it asks for: the API does not give it back.
ASKS_LABEL: Final = "prefect-launch.asks"
#: Marks a job that only takes an id.
PLACEHOLDER_LABEL: Final = "prefect-launch.placeholder"
#: Of a job that ends another one which waits: the other one's id.
ENDS_LABEL: Final = "prefect-launch.ends"
#: A shell's command line, and so the API's entry point, may not be longer (MAX_ARG_STRLEN).
_MAX_ENTRYPOINT_BYTES: Final = 128 * 1024 - 1
#: In a code package: a copy of `prefect_launch.inputs`, which comes behind all else on Python's path.
INPUTS_FOLDER: Final = ".prefect-launch-inputs"
_STOP_SIGNAL: Final = {"RAY_JOB_STOP_SIGNAL": "SIGTERM"}
_STOP_SECONDS_VARIABLE: Final = "RAY_JOB_STOP_WAIT_TIME_S"
#: Ray writes its own line into the job's log after it has started the job, so the job waits for it: at most 10 s.
_AFTER_RAY: Final = """launch_looks=0
until grep -aqF 'Running entrypoint for job' "/proc/$$/fd/1" 2>/dev/null || [ "$launch_looks" = 500 ]; do
  launch_looks=$((launch_looks + 1)); sleep 0.02
done
"""


def amount(value: object) -> float:
    """A number of CPUs, GPUs or others, such as 0.5; Ray counts in ten-thousandths."""
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        found = math.nan
    if not 0 <= found < 1e9:
        raise ValueError("it must be a number from 0, such as 1 or 0.5")
    return round(found, 4)


def is_owners_key(key: object) -> bool:
    """Whether only the queue's owner may set this key of a runtime environment."""
    return key in _OWNER_KEYS


def _resources(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping of the names of resources to numbers")
    for name in value:
        if name in _NAMED_RESOURCES:
            raise ValueError(f"{name!r} has an option of its own, {_NAMED_RESOURCES[name]!r}")
    return {str(name): amount(one) for name, one in value.items()}


def _runtime_env(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping, such as {'pip': ['torch']}")
    for key in value:
        if key in _OWN_KEYS:
            raise ValueError(f"its key {key!r} is made by prefect-launch: use {_OWN_KEYS[key]}")
        if key not in _SUBMITTER_KEYS | _OWNER_KEYS:
            known = ", ".join(sorted(_SUBMITTER_KEYS | _OWNER_KEYS))
            raise ValueError(f"its key {key!r} is none of {known}")
    return dict(value)


_READERS: Final = {
    "cpus": amount,
    "env": lambda value: value,
    "gpus": amount,
    "memory": parse_size,
    "output-dir": values.absolute_path,
    "resources": _resources,
    "runtime-env": _runtime_env,
    "secrets": values.boolean,
}

_MEASURES: Final = {"cpus": amount, "gpus": amount, "memory": parse_size}
#: A queue limits them by their short names.
QUANTITIES: Final = {
    name: Quantity(_MEASURES[short], has_maximum=name == short, bounds_with=frozenset({short, long}))
    for long, short in _LONG_NAMES.items()
    if short in _MEASURES
    for name in (short, long)
}


def check_values(options: Mapping[str, Any]) -> None:
    """Check the values of options.

    Args:
        options: under their normal names; all are known.

    Raises:
        SpecError: naming the option, the value and the rule.
    """
    for name, value in options.items():
        _read(name, value)


def check_submitter_values(options: Mapping[str, Any]) -> None:
    """Refuse a runtime environment that names a program or a container of the cluster.

    Raises:
        UnsafeSpecError: naming the key.
    """
    for key in _OWNER_KEYS & options.get("runtime-env", {}).keys():
        raise UnsafeSpecError(
            f"resource_args.ray.runtime_env.{key} may be set by the queue's owner only. Leave it out, or ask the owner."
        )


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse an option that is given under Ray's name and the short one.

    Raises:
        SpecError: naming both.
    """
    for long, short in _LONG_NAMES.items():
        if long in options and short in options:
            raise SpecError(f"The option {short!r} of ray says the same as {long!r}. Keep one of them.")


def _read(name: str, value: object) -> Any:
    try:
        return _READERS[_LONG_NAMES.get(name, name)](value)
    except ValueError as error:
        # A runtime environment may hold passwords: of it, its keys are shown.
        shown = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else without_users(repr(value))
        raise SpecError(f"Invalid resource_args.ray option {name!r}: {shown}: {error}.") from None


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options as they are read, under their short names."""
    return {_LONG_NAMES.get(name, name): _read(name, value) for name, value in options.items()}


# --- what a run asks for ---


def asked(plan: RunPlan) -> dict[str, float]:
    """Return what a run asks for, by Ray's names of resources: memory in bytes."""
    options = read_options(plan.options)
    named = {"CPU": options.get("cpus"), "GPU": options.get("gpus"), "memory": options.get("memory")}
    found = {name: float(value) for name, value in named.items() if value}
    return {**found, **{name: one for name, one in options.get("resources", {}).items() if one}}


def describe(resources: Mapping[str, float]) -> str:
    """Say what is asked for in words: ``4 CPU, 2.0 GiB memory``."""
    return ", ".join(
        f"{format_size(int(value))} {name}" if name == "memory" else f"{value:g} {name}"
        for name, value in sorted(resources.items())
    )


# --- the job ---


def submission(
    plan: RunPlan,
    *,
    package: str | None = None,
    packages: tuple[str, ...] = (),
    stop_seconds: float = TAKEOVER_SECONDS,
) -> dict[str, Any]:
    """Return the body of the API's "submit a job".

    Args:
        plan: of the run.
        package: URI of its code's package; None: it has no code.
        packages: what pip installs for it.
        stop_seconds: what it gets between TERM and KILL, rounded up to whole seconds.
    """
    options = read_options(plan.options)
    resources = asked(plan)
    body = {
        "submission_id": plan.name,
        "entrypoint": entrypoint(plan),
        "runtime_env": _made_runtime_env(plan, options, package, packages, stop_seconds),
        "metadata": {**plan.labels, ASKS_LABEL: json.dumps(resources)},
        "entrypoint_num_cpus": resources.get("CPU"),
        "entrypoint_num_gpus": resources.get("GPU"),
        "entrypoint_memory": int(resources["memory"]) if "memory" in resources else None,
        "entrypoint_resources": {name: value for name, value in resources.items() if name not in _NAMED_RESOURCES},
    }
    return {name: value for name, value in body.items() if value not in (None, {})}


def placeholder(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of a job that does nothing but take its id.

    Args:
        name: the id.
        labels: of the run whose submission is ruled out by it.
    """
    return {"submission_id": name, "entrypoint": "exit 143", "metadata": {**labels, PLACEHOLDER_LABEL: "1"}}


def entrypoint(plan: RunPlan) -> str:
    """Return the shell program that Ray runs: the command first, since Ray's dashboard shows it."""
    enter = [f"export {name}={shlex.quote(value)}" for name, value in literal_env(plan).items()]
    enter.append('export WANDB_DIR="${WANDB_DIR-$LAUNCH_OUTPUT_DIR}"')
    if plan.code_dir is not None:
        # The package is unpacked once a node, for all jobs that have it: each gets a copy to change.
        folder = posixpath.normpath(posixpath.join("code", plan.build_context or "", plan.working_dir or ""))
        enter.append(f'cp -R . "$launch_dir/code" && cd "$launch_dir/"{shlex.quote(folder)} || exit 125')
        enter.append(
            f"launch_inputs=$launch_dir/code/{INPUTS_FOLDER};"
            ' [ ! -d "$launch_inputs" ] || export PYTHONPATH="${PYTHONPATH-}:$launch_inputs"'
        )
    command = " ".join(shlex.quote(word) for word in (*plan.command, *plan.args))
    # Ray appends the log of a job to that of an older one of its id: the mark tells the claims apart.
    mark = str(RunHandle(plan.name, plan.labels.get(Labels.CLAIM, "")))
    script = marked_script(mark, output_dir=output_dir(plan), before=_AFTER_RAY, enter="\n".join(enter))
    return f"set -- {command}\n{script}"


def output_dir(plan: RunPlan) -> str | None:
    """Return a run's own folder for its outputs, below the one that nodes and agent share; None: there is none."""
    shared = read_options(plan.options).get("output-dir")
    claim = plan.labels.get(Labels.CLAIM, "")
    return posixpath.join(shared, f"{plan.name}-{claim}".rstrip("-")) if shared else None


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan that no Ray cluster can run.

    Raises:
        SpecError: with the value seen, the rule and the next step.
        QueueError: when it has secrets, which its queue does not let Ray show.
    """
    if not plan.command:
        raise SpecError(
            "A job on ray must have an entry point: Ray does not run an image's own. Give one, such as"
            " entry_point=['python', 'main.py']."
        )
    options = read_options(plan.options)
    check_together(plan.options)
    if plan.image is not None and plan.code_dir is not None:
        raise SpecError(
            f"A job on ray has code or an image, and this one has both (the image is {plan.image!r}): Ray takes no code"
            " into a container. Put the code into the image, or leave the image out."
        )
    clash = options.get("runtime-env", {}).keys() - {"config"}
    if plan.image is not None and clash:
        raise SpecError(
            f"resource_args.ray.runtime_env.{min(clash)} does not go with an image: Ray installs nothing in a"
            " container. Put it into the image, and leave it out here."
        )
    size = len(entrypoint(plan).encode(errors="surrogateescape"))
    if size > _MAX_ENTRYPOINT_BYTES:
        raise SpecError(
            f"The command and its arguments make an entry point of {size:,} bytes; a shell takes"
            f" {_MAX_ENTRYPOINT_BYTES:,}. Put what is long into the config, or into a file of the code."
        )
    if not options.get("secrets"):
        refuse_shown_secrets(
            plan,
            {**plan.options.get("env", {}), **plan.env},
            {"runtime_env": texts_in(options.get("runtime-env", {}))},
            resource="ray",
            seen="whoever reaches the Ray cluster can read a job's environment and arguments there",
            instead="Or set them in the environment of the cluster's nodes, and leave them out here.",
        )


def _job_env(plan: RunPlan) -> dict[str, str]:
    given = {**plan.options.get("env", {}), **plan.env}
    own = with_default_variables(given, "")
    # The outputs folder is not known before the job runs.
    unknown = {OUTPUT_DIR_VARIABLE, *({"WANDB_DIR"} - given.keys())}
    return {name: value for name, value in own.items() if name not in unknown}


def literal_env(plan: RunPlan) -> dict[str, str]:
    """Return the variables with a dollar sign, which Ray would expand; they are set for the job's own process only."""
    return {name: value for name, value in _job_env(plan).items() if "$" in value and name.isidentifier()}


def _ray_env(plan: RunPlan, stop_seconds: float) -> dict[str, str]:
    """Return the variables that Ray gives the job, and whatever it starts in the cluster."""
    literal = literal_env(plan)
    own = {name: value for name, value in _job_env(plan).items() if name not in literal}
    return {**own, **_STOP_SIGNAL, _STOP_SECONDS_VARIABLE: str(math.ceil(stop_seconds))}


def _made_runtime_env(
    plan: RunPlan, options: Mapping[str, Any], package: str | None, packages: tuple[str, ...], stop_seconds: float
) -> dict[str, Any]:
    made = {**options.get("runtime-env", {}), "env_vars": _ray_env(plan, stop_seconds)}
    if plan.image is not None:
        made["image_uri"] = plan.resolved_image or plan.image
    if package is not None:
        made["working_dir"] = package
    if packages and not {"pip", "uv", "conda"} & made.keys():
        made["pip"] = {"packages": list(packages)}
    return made
