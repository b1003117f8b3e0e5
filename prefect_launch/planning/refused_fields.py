"""Refusal of fields of a launch spec: what nothing would read, and what an agent in secure mode locks.

A key without an effect, for its job and its resource, is a mistake of its author, and is refused at the queue.

In secure mode a submitter may only name a job and set its inputs. Each field of the launch spec is locked unless its
declaration says otherwise (`Option.in_secure_mode`), so that a field that is added later is locked too. Environment
variables, arguments, options of the resource and everything else come from the job and the queue. This holds for all
resources. The reference locks only the fields that it lists, and does not keep the lock on the image that it documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.jobs.model import GitJobSource, SourceKind
from prefect_launch.spec.item_outputs import ItemOutput, Keys, item_outputs
from prefect_launch.spec.launch_spec import DockerSource, LaunchSpec
from prefect_launch.spec.option import fields_of
from prefect_launch.spec.option_names import normalise_option
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job
    from prefect_launch.runners.base import Runner
    from prefect_launch.spec.launch_spec import LaunchSpec


def refuse_unread(spec: LaunchSpec, job: Job | None, runner: type[Runner]) -> None:
    """Refuse what nothing would read of a spec, wherever it is run.

    Raises:
        SpecError: naming the key, its value, and why it has no effect.
    """
    _check_repository(spec, job)
    if job is not None and job.document.keep and not runner.keeps_code_changes:
        raise SpecError(
            f"The job {job.reference} keeps {', '.join(map(repr, job.document.keep))} of its code folder, which the"
            f" resource {runner.name!r} does not see. Have its program write to $LAUNCH_OUTPUT_DIR, and create the job"
            " again without keep."
        )
    outputs = outputs_named_by(spec, job)
    if outputs and runner.input_dir(Path()) is None:
        raise SpecError(
            f"The input {'.'.join(next(iter(outputs)))!r} is a file of another item, which the agent cannot give to a"
            f" run on the resource {runner.name!r}. Have the program fetch it (QueuedRun.download), or use a queue of"
            " local processes, containers or Slurm."
        )
    named = spec.image or (job.image if job else None)
    if not named and (spec.docker.pin is not None or spec.docker.digest):
        raise SpecError(
            "docker.pin and docker.digest are of an image that is named, and this job's code runs"
            f" {'in an image that is made for it' if runner.needs_image else 'without one'}. Leave them out."
        )
    why = _why_unbuilt(job, runner)
    if why is None:
        return
    of_build = {
        "overrides.dockerfile": spec.overrides.dockerfile,
        "builder": spec.builder or None,
        "docker.user_id": spec.docker.user_id,
        "python_version": None if _has_environment(job, runner) else spec.python_version,
    }
    for key, value in of_build.items():
        if value is not None:
            raise SpecError(f"{key} ({value!r}) is for the image that is built of a job's code; {why}. Leave it out.")


def outputs_named_by(spec: LaunchSpec, job: Job | None) -> dict[Keys, ItemOutput]:
    """Return the outputs of other items that the inputs of a spec name.

    Raises:
        InputError: when one names no item, or no file in its outputs.
    """
    return item_outputs(spec.overrides.run_config, job.schema if job is not None else None)


def refuse_unread_at_queue(spec: LaunchSpec, *, build: bool) -> None:
    """Refuse what nothing reads of a spec that is put on a queue.

    Raises:
        SpecError: naming the repository, and the next step.
    """
    if spec.registry.uri and not build:
        raise SpecError(
            f"The repository {spec.registry.uri!r} is where build=True (--build) pushes an image. An agent that builds"
            " one pushes it to builder.destination of its own config. Build it here, or leave the repository out."
        )


def refuse_unread_here(spec: LaunchSpec, job: Job | None, runner: type[Runner]) -> None:
    """Refuse what nothing reads of a spec that is run here and now.

    Raises:
        SpecError: naming the key, its value, and the next step.
    """
    of_queue = {
        "template_variables": spec.template_variables or None,
        "priority": None if spec.priority is Priority.MEDIUM else spec.priority.name.lower(),
        "after": list(spec.after) or None,
        "resumable": spec.resumable,
    }
    for key, value in of_queue.items():
        if value is not None:
            raise SpecError(
                f"{key} ({value!r}) is for a queue, and launch runs the job here and now. Leave it out, or use"
                " launch_add."
            )
    if spec.registry.uri and (why := _why_unbuilt(job, runner)):
        raise SpecError(
            f"The repository {spec.registry.uri!r} is where an image that is built is pushed; {why}. Leave it out."
        )


def _why_unbuilt(job: Job | None, runner: type[Runner]) -> str | None:
    """Say why no image is built; None when one is."""
    if job is None or job.image:
        return "here an image is named that is run as it is"
    if not runner.needs_image:
        return f"the resource {runner.name!r} runs the code without an image"
    return f"the code of {job.reference} runs in its base image as that is" if job.base_image else None


def _has_environment(job: Job | None, runner: type[Runner]) -> bool:
    """Whether an environment of the wanted Python is made for the job's code."""
    return job is not None and job.kind is not SourceKind.IMAGE and not runner.needs_image


def _check_repository(spec: LaunchSpec, job: Job | None) -> None:
    """Compare the git repository that is named with a job, or a URI, with its own."""
    if job is None:
        if spec.git.version is not None or spec.git.repo is not None:
            raise SpecError(
                f"git ({spec.git.model_dump(exclude_none=True)!r}) chooses what a git uri is taken at, and"
                f" {spec.image!r} is an image. Choose its version by its tag."
            )
        return
    source = job.document.source
    remotes = {spec.uri, source.git.remote if isinstance(source, GitJobSource) else None} - {None}
    if spec.git.repo is not None and spec.git.repo not in remotes:
        raise SpecError(
            f"git.repo ({spec.git.repo!r}) is not where the code of {job.reference} is from"
            f" ({', '.join(map(str, remotes)) or 'no git repository'}). Name a repository as uri, and leave job out."
        )


# Secure mode of an agent: a submitter names a job and gives it inputs, and decides nothing else.

#: What a submitter may set, by the dotted path of the field in a launch spec.
FREE: Final = frozenset(field.path for field in fields_of(LaunchSpec) if field.option.in_secure_mode)
_WORDS: Final = {
    "overrides.entry_point": 'the "entrypoint" override',
    "docker.docker_image": 'the "image" (it runs jobs only)',
    "image_uri": 'the "image" (it runs jobs only)',
}


def locked_parts(spec: LaunchSpec, *, pins: bool | None = None) -> list[str]:
    """List what a spec sets that an agent in secure mode does not let a submitter decide, in words."""
    return [
        words
        for path, value in _set_fields(spec)
        if path not in FREE and not (path == "docker.pin" and value == pins)
        for words in _in_words(path, value)
    ]


def secured(spec: LaunchSpec, *, pins: bool | None = None) -> LaunchSpec:
    """Return a spec as an agent in secure mode runs it.

    The digest that its image's tag meant when it was queued is the word of who queued it: it counts only where the
    queue's owner wants images pinned so. Else the image is what its name means at the start.

    Raises:
        UnsafeSpecError: naming what is locked, and the next step.
    """
    for locked in locked_parts(spec, pins=pins):
        raise UnsafeSpecError(
            f"This agent is configured to lock {locked} but the job specification attempts to override it."
            " Remove it, make it part of the job, or use a queue whose agents are not in secure mode."
        )
    return spec if pins else spec.model_copy(update={"docker": DockerSource()})


def _set_fields(spec: LaunchSpec) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each field that is not at its default, those of nested parts one by one."""
    for field in fields_of(LaunchSpec):
        value = attrgetter(field.path)(spec)
        if value != field.info.get_default(call_default_factory=True):
            yield field.path, value


def _in_words(path: str, value: Any) -> list[str]:
    if path == "resource_args":
        return [f'"{normalise_option(name)}" in resource_args.{kind}' for kind, args in value.items() for name in args]
    part, _, leaf = path.rpartition(".")
    return [_WORDS.get(path) or (f'the "{leaf}" override' if part == "overrides" else f'"{path}"')]
