"""Environment variables of a Slurm job: which names its script can set, and which are not a submitter's to set.

A job's variables are there when its script starts srun or the program that runs its image. Some would change what
these do: mount other folders into a container, join another job, or load a library into each program. The owner of a
queue may set them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from prefect_launch.errors import SpecError, UnsafeSpecError

_SHELL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: By whom each is read: programs of Slurm, those that run images, the dynamic loader, the shell.
_OWNERS: Final = re.compile(
    r"_?(SLURM|SLURMD|SLURMSTEPD|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SINFO|SACCT|SCONTROL|SPANK)_.*"
    r"|(MUNGE|PMI|PMI2|PMIX)_.*"
    r"|(APPTAINER|APPTAINERENV|SINGULARITY|SINGULARITYENV|ENROOT|PYXIS)_.*"
    r"|LD_.*|GCONV_PATH|GLIBC_TUNABLES|LOCPATH"
    r"|BASH_.*|BASHOPTS|SHELLOPTS|ENV|IFS|PS4|UID|EUID|GID|EGID|PPID|POSIXLY_CORRECT"
)


def check_names(names: Iterable[str]) -> None:
    """Refuse a variable that a job's script cannot set.

    Raises:
        SpecError: naming it.
    """
    for name in names:
        if _SHELL_NAME.fullmatch(name) is None:
            raise SpecError(
                f"Invalid environment variable name {name!r} in resource_args.slurm: a job's script cannot set it."
                " Use letters, digits and '_', no digit first."
            )


def check_submitted(names: Iterable[str]) -> None:
    """Refuse a submitter's variable that would change what Slurm, a container program or the job's script does.

    Raises:
        UnsafeSpecError: naming it, with the next step.
    """
    for name in names:
        if _OWNERS.fullmatch(name):
            raise UnsafeSpecError(
                f"The environment variable {name!r} in resource_args.slurm changes what Slurm, the program that runs"
                " images, or the job's shell does, so only the queue's owner may set it. A job can set it for its own"
                f" program: entry_point=['env', '{name}=…', 'python', 'main.py']."
            )
