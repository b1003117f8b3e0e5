"""Further arguments of sbatch that the owner of a queue may give: which there are, and that each is written out.

sbatch takes any unique beginning of a name, and its short options take values of their own. So only whole long names
from the list here are taken; what prefect-launch decides, and what has an option of its own, is not on it.
"""

from __future__ import annotations

import re
from typing import Final

#: Those that must have a value: without `=`, sbatch would take the next argument for it.
_WITH_VALUE: Final = frozenset(
    {
        *("acctg-freq", "batch", "bb", "bbf", "begin", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu"),
        *("deadline", "delay-boot", "dependency", "distribution", "extra", "extra-node-info", "gpu-bind", "gpu-freq"),
        *("gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres-flags", "hint", "kill-on-invalid-dep"),
        *("mcs-label", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nodefile", "ntasks-per-core"),
        *("ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "power", "prefer", "priority", "profile"),
        *("segment", "signal", "sockets-per-node", "switches", "thread-spec", "threads-per-core", "time-min", "tmp"),
        *("tres-bind", "tres-per-task", "wckey"),
    }
)
_WITHOUT: Final = frozenset({"contiguous", "overcommit", "oversubscribe", "reboot", "spread-job", "use-min-nodes"})
_EITHER: Final = frozenset({"exclusive", "no-kill", "oom-kill-step", "propagate", "resv-ports", "stepmgr"})
_KNOWN: Final = _WITH_VALUE | _WITHOUT | _EITHER
_FORM: Final = re.compile(r"--(?P<name>[a-z][a-z-]*)(?P<value>=[^\0\n]*)?")
_MAX_CHARS: Final = 4_096


def argument(value: object) -> str:
    """Return one further argument of sbatch, such as "--switches=1".

    Raises:
        ValueError: with the rule in words.
    """
    match = _FORM.fullmatch(value) if isinstance(value, str) and len(value) <= _MAX_CHARS else None
    if match is None:
        raise ValueError('each must be one argument of sbatch with its long name and its value, such as "--switches=1"')
    name, given = match["name"], match["value"]
    if name not in _KNOWN:
        raise ValueError(
            f"--{name} is decided by prefect-launch, is an option of its own ('memory' for --mem, say), or is no whole"
            f" name of an argument that may be given. There are: {', '.join(sorted(_KNOWN))}"
        )
    if given is None and name in _WITH_VALUE:
        raise ValueError(f"--{name} needs its value in the same argument: --{name}=VALUE")
    if given is not None and name in _WITHOUT:
        raise ValueError(f"--{name} takes no value")
    return match[0]
