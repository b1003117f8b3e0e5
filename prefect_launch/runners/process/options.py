"""The options of the resource `local-process`: what may stand under `resource_args.local-process`.

`env`: variables for the job, a mapping or a list of "NAME=value". `nice`: 0 (default) to 19 (kindest to others), as
`nice` takes it. `gpus`: "all", a count, or ids; the agent gives the job cards of its own. `cpus`, `memory`: what it
will take, by which the agent decides whether it fits beside the others; nothing holds it to that. Everything else is
refused by name. What the agent sets (the job's config, run id, …) wins over `env`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect_launch.core import units as sizes
from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.runners import option_values as values
from prefect_launch.runners.gpu_option import read_gpus
from prefect_launch.spec.option_names import normalise_options

OPTIONS = frozenset({"cpus", "e", "env", "gpus", "m", "memory", "nice"})

#: Only these have a value that is read as the containers' options of the same names are.
_READERS: dict[str, Callable[[object], Any]] = {
    "cpus": values.nano_cpus,
    "gpus": read_gpus,
    "memory": sizes.size,
}


def check_process_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with normal names and values: `env` as a mapping of texts, `nice` as an integer.

    Raises:
        NotFoundError: for an option that is not known.
        SpecError: for a value of the wrong type or outside its range.
    """
    checked = normalise_options(options)
    for name in checked:
        if name not in OPTIONS:
            raise unknown_name("option", name, OPTIONS, where=" in resource_args.local-process")
    if "nice" in checked:
        checked["nice"] = _nice(checked["nice"])
    for name in _READERS.keys() & checked.keys():
        try:
            _READERS[name](checked[name])
        except ValueError as error:
            raise SpecError(
                f"Invalid resource_args.local-process option {name!r}: {checked[name]!r}: {error}."
            ) from None
    return checked


def _nice(value: object) -> int:
    number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 19:
        raise SpecError(
            f"Invalid resource_args.local-process.nice {value!r}: use a whole number from 0 (the default) to 19"
            " (kindest to others)."
        )
    return number
