"""Code job on a machine that sees the agent's folders: its command, its working directory, its environment.

The runners whose jobs run in the agent's own folders share this: a process of the agent's machine, and a job of a
cluster with a shared file system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prefect_launch.environments.venv import Venv
from prefect_launch.errors import SpecError
from prefect_launch.inputs.config_files import find_config_file, merge_into_file
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners.base import RunPlan, with_default_variables

#: The variables of the agent's environment that a job inherits. The others, such as the server's key, it never sees.
_INHERITED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_")


def inherited_variables() -> dict[str, str]:
    """Return what a job inherits of the agent's environment."""
    return {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


def given_variables(plan: RunPlan) -> dict[str, str]:
    """Return the variables that the queue, the submitter and the plan give, the plan's last."""
    return {**plan.options.get("env", {}), **plan.env}


def job_variables(plan: RunPlan, venv: Venv | None) -> dict[str, str]:
    """Return a job's whole environment: what machines need, the queue's and the submitter's `env`, then what the plan
    says.

    Args:
        plan: of its run.
        venv: the environment that its code runs in; None for a job that has none.
    """
    output_dir = str(plan.output_dir.absolute())
    own = with_default_variables(given_variables(plan), output_dir)
    variables = {**inherited_variables(), **own, OUTPUT_DIR_VARIABLE: output_dir}
    if venv is None:
        return variables
    path = variables.get("PATH", os.defpath)
    return {**variables, "VIRTUAL_ENV": str(venv.path), "PATH": f"{venv.path / 'bin'}{os.pathsep}{path}"}


def check_command(command: Sequence[str], resource: str) -> None:
    """Refuse a code job without an entry point.

    Raises:
        SpecError: naming the resource.
    """
    if not command:
        raise SpecError(
            f"A job on {resource} must have an entry point; give one, such as entry_point=['python', 'main.py']."
        )


def working_dir(plan: RunPlan) -> Path:
    """Return the folder that a code job runs in.

    Raises:
        SpecError: when it is not a folder of the job's code.
    """
    code = (plan.code_dir or plan.run_dir).resolve()
    folder = ((plan.project_dir or code) / (plan.working_dir or ".")).resolve()
    if not folder.is_dir() or not (folder == code or code in folder.parents):
        top = f"its build context {plan.build_context!r}" if plan.build_context else "the code's top"
        raise SpecError(
            f"The working directory {plan.working_dir or '.'!r} is not a folder of the job's code."
            f" Name one that is, relative to {top}."
        )
    return folder


def write_config_files(plan: RunPlan, folder: Path) -> None:
    """Merge the plan's values into the code's config files, which are found from the working directory."""
    for path, values in plan.file_overrides.items():
        merge_into_file(find_config_file(path, folder), values)


def note_warnings(plan: RunPlan, venv: Venv | None) -> None:
    """Write the warnings of a job's environment as the first lines of its log."""
    lines = [f"[prefect-launch] {warning}\n" for warning in (venv.warnings if venv else ())]
    if lines:
        with plan.log_path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
