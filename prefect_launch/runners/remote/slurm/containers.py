"""Images on the nodes of a Slurm cluster: the command that runs one by apptainer, singularity or pyxis.

There is no Docker Engine on such nodes. Which of these a site has, the queue's owner says by the option `container`.
The image's own user does not count: a job always runs as the user of the agent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.code_job import given_variables, inherited_variables
from prefect_launch.runners.remote.slurm import options as slurm_options


def check_has_program(image: str, options: Mapping[str, Any]) -> None:
    """Refuse an image where nothing is named that runs it.

    Args:
        image: of a job.
        options: all that a run has; perhaps not all filled in yet.

    Raises:
        SpecError: with the next step.
    """
    if "container" not in options:
        raise SpecError(
            f"Nothing says what runs the image {image!r} on the nodes of the Slurm cluster. A queue's owner sets"
            " resource_args.slurm.container to apptainer, singularity or pyxis: use such a queue, or make the job from"
            " code."
        )


def check_image(plan: RunPlan) -> None:
    """Refuse an image that the cluster cannot run.

    Raises:
        SpecError: with the next step.
    """
    if plan.image is None:
        return
    check_has_program(plan.image, plan.options)
    if slurm_options.container(plan.options["container"]) == "pyxis":
        if not plan.command:
            raise SpecError(
                f"An image on Slurm by pyxis needs an entry point: {plan.image!r} has none here. Give one, such as"
                " entry_point=['python', 'main.py']."
            )
        if slurm_options.tasks_of(plan.options)[1] > 1:
            raise SpecError(
                "A job on several nodes cannot run an image by pyxis: a container cannot start others. Use apptainer."
            )


def command_of(plan: RunPlan, mounts: Sequence[str] = ()) -> list[str]:
    """Return the command that a job runs on a node: its own, or the one that runs it in its image.

    Args:
        plan: of its run, checked.
        mounts: further folders that it sees, such as `/data:/data:ro`.
    """
    own = [*plan.command, *plan.args]
    if plan.image is None:
        return own
    image = plan.resolved_image or plan.image
    own_folders = [plan.output_dir, *([plan.input_dir] if plan.input_files else [])]
    binds = [str(folder.absolute()) for folder in own_folders]
    binds += [*([str(plan.project_dir)] if plan.project_dir else []), *mounts]
    program = slurm_options.container(plan.options["container"])
    if program == "pyxis":
        return [*_pyxis(image, binds, plan.working_dir), *own]
    verb = "exec" if plan.command else "run"
    bound = [part for bind in binds for part in ("--bind", bind)]
    where = ["--pwd", plan.working_dir] if plan.working_dir and not plan.project_dir else []
    gpus = ["--nv"] if _asks_for_gpus(plan.options) else []
    return [program, verb, *gpus, *bound, *where, f"docker://{image}", *own]


def variables_of_image(plan: RunPlan, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the program gets which runs an image on a node.

    It is found by the node's own `PATH`; one that was given is for the inside of the image.

    Args:
        plan: of its run, checked.
        variables: the job's.
    """
    given, own = given_variables(plan), inherited_variables()
    kept = {name: value for name, value in variables.items() if name not in ("PATH", "LD_LIBRARY_PATH")}
    kept["PATH"] = own.get("PATH", os.defpath)
    program = slurm_options.container(plan.options["container"])
    if "PATH" in given and program != "pyxis":
        kept[f"{program.upper()}ENV_PATH"] = given["PATH"]
    return kept


def _pyxis(image: str, binds: Sequence[str], working_dir: str | None) -> list[str]:
    registry, slash, rest = image.partition("/")
    # enroot writes REGISTRY#IMAGE; a first part without a dot or a port is a user of Docker Hub.
    name = f"{registry}#{rest}" if slash and ("." in registry or ":" in registry or registry == "localhost") else image
    mounts = ",".join(bind if ":" in bind else f"{bind}:{bind}" for bind in binds)
    where = [f"--container-workdir={working_dir}"] if working_dir else []
    return ["srun", "--ntasks=1", f"--container-image={name}", f"--container-mounts={mounts}", *where]


def _asks_for_gpus(given: Mapping[str, Any]) -> bool:
    return bool(slurm_options.gpu_count(given.get("gpus", 0))) or "gpu" in str(given.get("gres", ""))
