"""From a run's plan to what the Docker Engine API is told to create."""

from __future__ import annotations

import posixpath
from typing import Any

from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.default_variables import with_default_variables
from prefect_launch.runners.docker.engine import Image
from prefect_launch.runners.docker.files import CODE_DIR, OUTPUT_DIR
from prefect_launch.runners.docker.options import apply_options

#: Where a run's folder is, on the machine of the agent that made the container.
RUN_DIR_LABEL = "prefect-launch.run-dir"

#: A chatty job may write 2 GiB while no agent copies its log; beyond that its oldest lines are lost.
_LOG_CONFIG = {"Type": "local", "Config": {"max-size": "1g", "max-file": "2", "compress": "false"}}
#: Stands for a working directory that is not known; no path of an image has this name.
_OWN_DIR = "\0"
_ROOT = ("", "0", "root", "0:0", "root:root")


def container_config(plan: RunPlan, image: Image) -> dict[str, Any]:
    """Return what the Docker Engine API is told to create, and `platform` apart.

    What the plan says wins over options. A run as root gets an unnamed volume for its outputs, which costs nothing;
    another user gets the folder above as the volume, and a folder in it that it can write to.
    """
    options = dict(plan.options)
    env = with_default_variables({**options.get("env", {}), **plan.env}, OUTPUT_DIR)
    made = apply_options(
        {
            "Image": plan.image,
            "Labels": {**plan.labels, RUN_DIR_LABEL: str(plan.run_dir)},
            "Env": {**plan.env, OUTPUT_DIR_VARIABLE: OUTPUT_DIR},
            "HostConfig": {"LogConfig": _LOG_CONFIG},
            **({"Entrypoint": list(plan.command)} if plan.command else {}),
        },
        {**options, "env": env},
    )
    made["Env"] = [f"{name}={value}" for name, value in made["Env"].items()]
    home = image.working_dir if plan.code_dir is None else posixpath.join(CODE_DIR, plan.build_context or "")
    base = posixpath.join("/", home, made.get("WorkingDir", ""))
    made["WorkingDir"] = posixpath.normpath(posixpath.join(base, plan.working_dir or ""))
    if plan.command:
        made["Cmd"] = list(plan.args)
    elif plan.args or "Cmd" in made:
        made["Cmd"] = [*made.get("Cmd", []), *plan.args]
    is_root = made.get("User", image.user) in _ROOT
    made["Volumes"] = {OUTPUT_DIR if is_root else posixpath.dirname(OUTPUT_DIR): {}}
    return made


def preview_config(plan: RunPlan) -> dict[str, Any]:
    """Return the same where the image cannot be looked at: its own user and working directory are not known."""
    config = container_config(plan, Image(id="", working_dir=_OWN_DIR))
    own = posixpath.join("/", _OWN_DIR)
    if str(config["WorkingDir"]).startswith(own):
        config["WorkingDir"] = f"the image's own{config['WorkingDir'].removeprefix(own)}"
    return config
