"""Checks of a run's overrides against its job's code: entry point, working directory, files in it.

At the enqueue they use the list of files that is stored with the job, so that a misspelt file is refused before
anything is queued. On the agent they use the code itself: for a run that comes straight from the server, and for a job
without a list. They cannot check paths in an image that a Dockerfile makes, or outside of the code.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_launch.builds.dockerfile_selection import OWN_DOCKERFILE
from prefect_launch.core.filesystem import walk
from prefect_launch.errors import SourceError, unknown_name
from prefect_launch.jobs.code_checks import (
    check_build_files,
    check_in_code,
    check_working_dir,
    entry_file,
    may_hold,
)
from prefect_launch.jobs.model import CodeListing
from prefect_launch.spec.option_names import normalise_options

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job
    from prefect_launch.runners.base import Runner
    from prefect_launch.spec.launch_spec import LaunchSpec


def overrides_code(spec: LaunchSpec) -> bool:
    """Whether a spec names something in its job's code."""
    overrides = spec.overrides
    return bool(overrides.entry_point or overrides.working_dir or overrides.dockerfile or overrides.files)


def check_overrides(
    spec: LaunchSpec, job: Job, listing: CodeListing, runner: type[Runner], *, of_queue: Mapping[str, Any] | None = None
) -> None:
    """Refuse a file or folder that a spec names and that its job's code does not have.

    Args:
        spec: the request.
        job: that it runs, of code or git.
        listing: what the job's code has.
        runner: of the resource that it runs on.
        of_queue: the queue's resource options.

    Raises:
        SourceError: for a command's file, a Dockerfile or a config file; names the nearest one.
        SpecError: for a working directory, likewise.
    """
    overrides, where = spec.overrides, f"the code of {job.reference}"
    top, command = posixpath.normpath(job.build_context or "."), overrides.entry_point or job.entry_point
    files = {*listing.files, *_converted(job)}
    in_image = runner.needs_image and not job.base_image
    if in_image and overrides.dockerfile is not None:
        check_build_files(
            files,
            build_context=job.build_context,
            dockerfile=overrides.dockerfile,
            where=where,
            unlisted=listing.unlisted,
        )
    if in_image and (overrides.dockerfile or job.dockerfile or _has_own_dockerfile(files)):
        if overrides.working_dir is None and overrides.entry_point:
            check_in_code(command, files, folder=top, is_copied=True, where=where, unlisted=listing.unlisted)
        return
    options = {**(of_queue or {}), **spec.resource_args.get(runner.name, {})}
    if runner.needs_image and ("workdir" in normalise_options(options) or _leaves(overrides.working_dir)):
        return
    folder = check_working_dir(
        overrides.working_dir, files, build_context=job.build_context, where=where, unlisted=listing.unlisted
    )
    if overrides.entry_point or overrides.working_dir:
        place = "build context" if overrides.working_dir is None else "working directory"
        check_in_code(command, files, folder=folder, where=where, unlisted=listing.unlisted, place=place)
    for path in overrides.files:
        _check_config_file(path, folder, files, where, listing.unlisted)


def list_folder(folder: Path) -> CodeListing:
    """List a folder of code as it is on this machine."""
    found = []
    for parent, folders, names in walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return CodeListing(files=tuple(found))


def _check_config_file(path: str, folder: str, files: Collection[str], where: str, unlisted: Collection[str]) -> None:
    wanted = posixpath.normpath(posixpath.join(folder, path))
    if may_hold(wanted, files, unlisted):
        return
    there = [posixpath.relpath(file, folder) for file in files if folder == "." or file.startswith(f"{folder}/")]
    readable = [file for file in there if file.endswith((".json", ".yaml", ".yml"))]
    raise SourceError(f"{unknown_name('config file', path, readable, where=f' in {where}')} Check overrides.files.")


def _converted(job: Job) -> list[str]:
    """Return where the program lies that the agent makes of a git job's notebook."""
    program = entry_file(job.entry_point) if job.is_notebook else None
    return [] if program is None else [program, posixpath.normpath(posixpath.join(job.build_context or ".", program))]


def _has_own_dockerfile(files: Collection[str]) -> bool:
    return any(posixpath.basename(file) == OWN_DOCKERFILE for file in files)


def _leaves(working_dir: str | None) -> bool:
    """Whether a working directory is one of the image's, outside of the code."""
    given = posixpath.normpath(working_dir or ".")
    return posixpath.isabs(given) or given.split("/")[0] == ".."
