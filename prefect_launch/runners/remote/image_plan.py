"""Plans for a service that runs images: no code beside the image, no changed files, and no secrets that it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NoReturn

from prefect_launch.errors import QueueError, SpecError
from prefect_launch.runners.base import RunPlan

#: A line of the shell that runs a command in a folder of its image: the folder and the command follow it.
ENTER: Final = ("sh", "-c", 'cd "$0" && exec "$@"')


def refuse_base_image(image: str | None, service: str) -> NoReturn:
    """Refuse a job whose code is to run in an image that it is not built into.

    Raises:
        SpecError: naming the image.
    """
    raise SpecError(
        f"The job's code is to run in the image {image!r} as it is, and {service} takes no code into an image that is"
        " there. Create the job again without a base image, and leave the image out of the queue's config, so that an"
        " image is built of the code; or put the code into the image, and queue that."
    )


def refuse_file_overrides(plan: RunPlan, service: str) -> None:
    """Refuse changes of files in the job's image.

    Raises:
        SpecError: naming the files.
    """
    if plan.file_overrides:
        raise SpecError(
            f"overrides.files changes {', '.join(sorted(plan.file_overrides))} in the job's code, and on {service} the"
            " code is in its image, which nothing is written into. Give the values as the job's config."
        )


def refuse_shown_secrets(
    plan: RunPlan,
    env: Mapping[str, str],
    others: Mapping[str, Iterable[str]],
    *,
    resource: str,
    seen: str,
    instead: str,
) -> None:
    """Refuse secrets that the service would show.

    Args:
        plan: of the run.
        env: the job's variables.
        others: the texts of other parts of the job, by their names.
        resource: its name.
        seen: who sees a job's environment and arguments, as a clause.
        instead: where the secrets should be, as a sentence.

    Raises:
        QueueError: naming where they are.
    """
    shown = sorted(name for name, value in env.items() if plan.mask.text(value) != value)
    for what, texts in {**others, "arguments": (*plan.command, *plan.args)}.items():
        shown += [f"its {what}"] if any(plan.mask.text(one) != one for one in texts) else []
    if shown:
        raise QueueError(
            f"The job has secrets ({', '.join(shown)}), and {seen}. The queue's owner can allow it:"
            f" resource_args.{resource}.secrets = true. {instead}"
        )
