"""Options of `slurm`: what a queue's owner and its submitters may ask for, and the arguments of sbatch made of it.

Submitters may set what a job needs. Only the owner may set what uses up a share or names machines, and may allow it to
submitters. Jobs are never arrays, never start twice, and run in their folder; arguments that would change this are
refused for everybody.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.core.units import as_text, parse_size
from prefect_launch.errors import SpecError
from prefect_launch.runners import option_values as values
from prefect_launch.runners.option_values import UNLIMITED, Quantity, each, of_form
from prefect_launch.runners.remote.slurm.sbatch_arguments import argument
from prefect_launch.runners.remote.slurm.variables import check_names

_MEBIBYTE: Final = 1024**2
_MAX_CPUS: Final = 100_000
#: What a job gets that does not say how much memory it takes, for each of its CPUs. Without a value, Slurm gives it a
#: whole node's memory on many clusters, so that jobs would run one after the other.
DEFAULT_MEMORY_PER_CPU: Final = 2 * 1024**3

_NAME: Final = "it must be a name, or several with commas"
_name = of_form(r"[\w.@+-]+(,[\w.@+-]+)*", _NAME, max_chars=1_000)
_expression = of_form(r"[\w.,:;=*&|()\[\]@!+/-]+", "it must be one word, as sbatch takes it", max_chars=1_000)
_TIME_RULE: Final = (
    'it must be minutes, or a text such as "90", "2:30:00" (hours), "1-12" (days and hours), "1-12:30:00" or "infinite"'
)
_TIME: Final = re.compile(
    r"(?:(?P<days>\d{1,4})-(?P<dh>\d{1,2})(?::(?P<dm>\d{1,2})(?::(?P<ds>\d{1,2}))?)?"
    r"|(?P<hours>\d{1,6}):(?P<hm>\d{1,2}):(?P<hs>\d{1,2})|(?P<minutes>\d{1,8})(?::(?P<ms>\d{1,2}))?)"
)


def minutes(value: object) -> float:
    """A time limit as Slurm writes it, in minutes; infinite for none.

    Raises:
        ValueError: with the rule in words.
    """
    text = as_text(value).strip().lower()
    if text in ("infinite", "unlimited"):
        return UNLIMITED
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(_TIME_RULE)
    part = {name: int(number or 0) for name, number in match.groupdict().items()}
    seconds = (
        part["days"] * 86_400
        + (part["dh"] + part["hours"]) * 3_600
        + (part["dm"] + part["hm"] + part["minutes"]) * 60
        + part["ds"]
        + part["hs"]
        + part["ms"]
    )
    if seconds <= 0:
        raise ValueError("it must be longer than 0")
    return seconds / 60


def _time(value: object) -> str:
    minutes(value)
    return as_text(value).strip()


def _cpus(value: object) -> int:
    cpus = math.ceil(values.nano_cpus(value) / 1e9)
    if cpus > _MAX_CPUS:
        raise ValueError("it must be a number of CPUs, such as 4")
    return cpus


def _memory(value: object) -> str:
    return f"{math.ceil(parse_size(value) / _MEBIBYTE)}M"


def gpu_count(value: object) -> int:
    """A number of GPUs; Slurm chooses which.

    Raises:
        ValueError: for ids, or all.
    """
    asked = values.read_gpus(value)
    if asked.all or asked.ids:
        raise ValueError("it must be a count: Slurm chooses the GPUs")
    return asked.count


_CONTAINERS: Final = ("apptainer", "pyxis", "singularity")


def container(value: object) -> str:
    """What runs images on the cluster's nodes.

    Raises:
        ValueError: for another one.
    """
    found = as_text(value).strip().lower()
    if found not in _CONTAINERS:
        raise ValueError(f"it must be one of {', '.join(_CONTAINERS)} (pyxis is srun's plugin for enroot)")
    return found


_Reader = Callable[[object], Any]

#: What submitters may set: sbatch's name for it, and the reader of the value. "": not an argument of sbatch as it is.
_SUBMITTER: Final[dict[str, tuple[str, _Reader]]] = {
    "cpus": ("cpus-per-task", _cpus),
    "gpus": ("", gpu_count),
    "memory": ("mem", _memory),
    "nodes": ("nodes", values.between(1, 100_000)),
    "ntasks": ("ntasks", values.between(1, 1_000_000)),
    "time": ("time", _time),
}
_OWNER: Final[dict[str, tuple[str, _Reader]]] = {
    "account": ("account", _name),
    "constraint": ("constraint", _expression),
    "container": ("", container),
    "exclude": ("exclude", _expression),
    "exclusive": ("", values.boolean),
    "gres": ("", of_form(r"[\w.:,()-]+", 'it must be as sbatch takes it, such as "gpu:a100:2"', max_chars=1_000)),
    "licenses": ("licenses", _expression),
    "mail-type": ("mail-type", _name),
    "mail-user": ("mail-user", of_form(r"[\w.+-]+(@[\w.-]+)?", "it must be an address")),
    "mount": ("", each(of_form(r"[^\0\n,]+", "each must be /PATH or /PATH:/PATH[:ro]", max_chars=4_096))),
    "nice": ("nice", values.between(-2_147_483_645, 2_147_483_645)),
    "nodelist": ("nodelist", _expression),
    "partition": ("partition", _name),
    "qos": ("qos", _name),
    "reservation": ("reservation", _name),
    "sbatch": ("", each(argument)),
}
_TABLE: Final = {**_SUBMITTER, **_OWNER}

SUBMITTER_OPTIONS: Final = frozenset({*_SUBMITTER, "e", "env", "m"})
OPTIONS: Final = SUBMITTER_OPTIONS | frozenset(_OWNER)


def _unset_memory(options: Mapping[str, Any]) -> float:
    """Return how much memory a job gets on each node that does not say it; infinite while that is not known."""
    try:
        if any(one.startswith("--mem-per-") for one in _read(options, "sbatch", [])):
            return 0  # The owner's arguments say it, and Slurm takes no second one.
        return per_node({**options, "memory": None}).memory_mib * _MEBIBYTE
    except ValueError:
        return UNLIMITED


QUANTITIES: Final = {
    "cpus": Quantity(values.nano_cpus),
    "gpus": Quantity(gpu_count),
    "memory": Quantity(values.bytes_above_zero, unset=_unset_memory),
    "nodes": Quantity(values.count_above_zero, unset=1),
    "ntasks": Quantity(values.count_above_zero, unset=1),
    "time": Quantity(minutes, unset=UNLIMITED),
}


def check_values(options: Mapping[str, Any]) -> None:
    """Refuse a value that is wrong.

    Args:
        options: under their normal names.

    Raises:
        SpecError: naming the option, the value and the rule.
    """
    for name in _TABLE.keys() & options.keys():
        try:
            _TABLE[name][1](options[name])
        except ValueError as error:
            raise SpecError(f"Invalid resource_args.slurm option {name!r}: {options[name]!r}: {error}.") from None
    check_names(options.get("env") or {})


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together.

    Raises:
        SpecError: naming them.
    """
    if "gpu" in str(options.get("gres", "")) and _read(options, "gpus", 0):
        raise SpecError("The options 'gpus' and 'gres' of slurm both ask for GPUs. Keep one of them.")
    nodes, tasks = _read(options, "nodes", 1), _read(options, "ntasks", None)
    if tasks is not None and tasks < nodes:
        raise SpecError(
            f"The option 'ntasks' of slurm is {tasks}, below 'nodes', which is {nodes}: each node runs at least one"
            " task. Raise it, or leave it out for one task a node."
        )
    if "mount" in options and "container" not in options:
        raise SpecError("The option 'mount' of slurm needs the option 'container': only an image has mounts.")


def tasks_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of nodes and of tasks that options ask for."""
    nodes = int(_read(options, "nodes", 1))
    return nodes, int(_read(options, "ntasks", nodes))


class PerNode(NamedTuple):
    """What a job asks for on each of its nodes.

    Attributes:
        cpus: their number.
        memory_mib: in MiB.
        gpus: their number, where they are asked for by `gpus`.
    """

    cpus: int
    memory_mib: int
    gpus: int


def per_node(options: Mapping[str, Any]) -> PerNode:
    """Return what options ask for on each node."""
    nodes, tasks = tasks_of(options)
    cpus = _read(options, "cpus", 1) * math.ceil(tasks / nodes)
    default = cpus * DEFAULT_MEMORY_PER_CPU
    memory = parse_size(options["memory"]) if options.get("memory") is not None else default
    return PerNode(cpus, math.ceil(memory / _MEBIBYTE), _read(options, "gpus", 0))


def sbatch_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return the arguments of sbatch for what a job asks for.

    Args:
        options: as `check_values` accepts them.
    """
    arguments = [
        f"--{flag}={reader(options[name])}"
        for name, (flag, reader) in sorted(_TABLE.items())
        if flag and name in options
    ]
    nodes, tasks = tasks_of(options)
    if tasks > 1 and "ntasks" not in options:
        arguments.append(f"--ntasks={tasks}")
    if tasks == nodes > 1:
        arguments.append("--ntasks-per-node=1")
    if "memory" not in options:
        arguments.append(f"--mem-per-cpu={DEFAULT_MEMORY_PER_CPU // _MEBIBYTE}M")
    gres = [options["gres"]] if options.get("gres") else []
    if count := _read(options, "gpus", 0):
        gres.append(f"gpu:{count}")
    if gres:
        arguments.append(f"--gres={','.join(gres)}")
    if _read(options, "exclusive", False):
        arguments.append("--exclusive")
    return [*arguments, *_read(options, "sbatch", [])]


def srun_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return srun with its options for a job of several tasks; empty for a job of one."""
    nodes, tasks = tasks_of(options)
    if tasks == 1:
        return []
    # Since 22.05 srun does not take this from its job; and a task that fails ends the others.
    cpus = [f"--cpus-per-task={_read(options, 'cpus', 1)}"]
    return ["srun", f"--nodes={nodes}", f"--ntasks={tasks}", *cpus, "--kill-on-bad-exit=1", "--label"]


def _read(options: Mapping[str, Any], name: str, default: Any) -> Any:
    return _TABLE[name][1](options[name]) if options.get(name) is not None else default
