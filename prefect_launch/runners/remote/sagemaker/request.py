"""Request of a training job, made of a run's plan: image, command, environment, tags, and the fields of the options.

The job's command runs in a small line of the shell, which makes the outputs folder and enters the working directory:
a program that is not there ends with 127 then, as in a shell. A job without a command runs its image's own entry point.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from prefect_launch.core.validation import texts_in
from prefect_launch.errors import SpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners.base import RunPlan, with_default_variables
from prefect_launch.runners.remote.image_plan import (
    ENTER,
    refuse_base_image,
    refuse_file_overrides,
    refuse_shown_secrets,
)
from prefect_launch.runners.remote.sagemaker.options import (
    REQUIRED,
    REQUIRED_OF_OWNER,
    check_shape,
    has_secrets_allowed,
    read_fields,
)

#: What SageMaker brings to S3 at the end of a job, whether it fails or not.
OUTPUT_DIR: Final = "/opt/ml/output/data"
#: SageMaker's own limits (CreateTrainingJob).
MAX_VARIABLE_CHARS: Final = 512
_MAX_VARIABLES: Final = 100
_MAX_WORD_CHARS: Final = 256
_MAX_WORDS: Final = 100
_MAX_TAG_CHARS: Final = 256
_VARIABLE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ROLE_ARN: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/?[\w+=,.@/-]+")
_ROLE_NAME: Final = re.compile(r"[\w+=,.@-]{1,64}(/[\w+=,.@-]{1,64})*")
#: Stands for the account where nobody has asked AWS for it.
_SOME_ACCOUNT: Final = "000000000000"

_ENTER: Final = (*ENTER[:2], f'mkdir -p "${OUTPUT_DIR_VARIABLE}" && {ENTER[2]}')
#: How many words of a container's entry point precede the job's own program.
ENTER_WORDS: Final = len(_ENTER) + 1


def training_job(plan: RunPlan, name: str, role_arn: str) -> dict[str, Any]:
    """Return the request of CreateTrainingJob.

    Args:
        plan: of the run.
        name: of the job.
        role_arn: as `role_arn` makes it.
    """
    fields = read_fields(plan.options)
    tags = [*fields.get("Tags", ()), *({"Key": key, "Value": tag_value(one)} for key, one in plan.labels.items())]
    return {
        **fields,
        "TrainingJobName": name,
        "RoleArn": role_arn,
        "AlgorithmSpecification": _algorithm(plan, fields.get("AlgorithmSpecification", {})),
        "Environment": environment(plan),
        "Tags": tags,
    }


def _algorithm(plan: RunPlan, given: Mapping[str, Any]) -> dict[str, Any]:
    made = {"TrainingInputMode": "File", **given, "TrainingImage": plan.resolved_image or plan.image or "(built)"}
    if plan.command:
        made["ContainerEntrypoint"] = [*_ENTER, plan.working_dir or ".", *plan.command]
    if plan.args:
        made["ContainerArguments"] = list(plan.args)
    return made


def environment(plan: RunPlan) -> dict[str, str]:
    """Return the job's variables: those of `Environment` come before the launch's own, as in the reference."""
    own = {**plan.options.get("env", {}), **plan.env, OUTPUT_DIR_VARIABLE: OUTPUT_DIR}
    return with_default_variables({**own, **read_fields(plan.options).get("Environment", {})}, OUTPUT_DIR)


def role_arn(role: str, account: str = _SOME_ACCOUNT, partition: str = "aws") -> str:
    """Return a role's ARN: a short name is one of the account.

    Raises:
        SpecError: for a text that is neither.
    """
    if _ROLE_ARN.fullmatch(role):
        return role
    if not _ROLE_NAME.fullmatch(role):
        raise SpecError(
            f"resource_args.sagemaker.RoleArn is {role!r}: it must be a role's ARN, such as"
            " 'arn:aws:iam::123456789012:role/sagemaker', or its name in the agent's account. Correct it."
        )
    return f"arn:{partition}:iam::{account}:role/{role}"


# --- tags: a value may hold letters, digits, spaces and _.:/=+-@ ---


def tag_value(label: str) -> str:
    """Return a label's value as a tag may have it: what is not allowed is written as `=` and two digits."""
    return quote(label, safe=" :/+@").replace("%", "=")[:_MAX_TAG_CHARS]


def label_value(tag: str) -> str:
    """Return the label's value that a tag was made of."""
    return unquote(tag.replace("%", "%25").replace("=", "%"))


# --- what SageMaker cannot run ---


def check_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that options set, with the role's ARN; those that a submitter may set may still be to come.

    Raises:
        SpecError: naming each that is not as SageMaker takes it.
    """
    fields = read_fields(options)
    _check_there(fields, REQUIRED_OF_OWNER)
    fields["RoleArn"] = role_arn(fields["RoleArn"])
    check_shape(fields, is_whole=False)
    output = str(fields["OutputDataConfig"].get("S3OutputPath", ""))
    if not re.fullmatch(r"s3://[^/]+(/.*)?", output):
        raise SpecError(
            f"resource_args.sagemaker.OutputDataConfig.S3OutputPath is {output!r}: it must be a place in S3, such as"
            " 's3://bucket/launch'. Correct it in the queue's config."
        )
    for key in ("AlgorithmName", "ContainerEntrypoint", "ContainerArguments"):
        if key in fields.get("AlgorithmSpecification", {}):
            raise SpecError(
                f"resource_args.sagemaker.AlgorithmSpecification.{key} says what a job runs, and an item brings that"
                " itself: its image, entry point and arguments. Leave it out."
            )
    return fields


def _check_there(fields: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name not in fields:
            raise SpecError(
                f"A training job needs resource_args.sagemaker.{name}, and neither the queue nor the item sets it."
                " Set it in the queue's config ('prefect-launch queue edit')."
            )


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan that SageMaker cannot run.

    Raises:
        SpecError: with the value seen, the rule and the next step.
        QueueError: when it has secrets, which its queue does not let AWS show.
    """
    if plan.is_agent_program:
        raise SpecError(
            "A program of prefect-launch's own, such as a sweep's scheduler, does not run on sagemaker: it needs the"
            " agent's environment. Give the sweep a queue of the resource local-process."
        )
    fields = check_fields(plan.options)
    _check_there(fields, REQUIRED)
    _check_image(plan)
    _check_words(plan)
    _check_environment(plan)
    check_shape(training_job(plan, plan.name, fields["RoleArn"]))


def _check_image(plan: RunPlan) -> None:
    is_built = plan.build_request is not None or plan.built_code_dir is not None
    if plan.code_dir is not None and not is_built:
        refuse_base_image(plan.image, "SageMaker")
    if plan.image is None and not is_built:
        raise SpecError("A training job needs an image. Name one (docker.docker_image), or queue a job with code.")
    refuse_file_overrides(plan, "SageMaker")


def _check_words(plan: RunPlan) -> None:
    entry, arguments = (*_ENTER, ".", *plan.command), plan.args
    for word in (*entry, *arguments):
        if len(word) > _MAX_WORD_CHARS or "\n" in word:
            what = f"{len(word):,} characters" if len(word) > _MAX_WORD_CHARS else "several lines"
            raise SpecError(
                f"The command or an argument has {what} ({plan.mask.text(word[:60])!r} …); SageMaker takes one line of"
                f" {_MAX_WORD_CHARS}. Put it into the job's config, or into a file of the code."
            )
    if max(len(entry), len(arguments)) > _MAX_WORDS:
        raise SpecError(
            f"The job has {len(plan.command)} words of a command and {len(arguments)} arguments; SageMaker takes"
            f" {_MAX_WORDS - ENTER_WORDS} and {_MAX_WORDS}. Put them into the job's config."
        )


def _check_environment(plan: RunPlan) -> None:
    made = environment(plan)
    for name, value in made.items():
        if not _VARIABLE.fullmatch(name) or len(name) > MAX_VARIABLE_CHARS:
            raise SpecError(
                f"The variable {name!r} cannot be set on SageMaker: a name has letters, digits and '_', and no digit"
                " first. Rename it."
            )
        if len(value) > MAX_VARIABLE_CHARS:
            raise SpecError(
                f"The variable {name!r} has {len(value):,} characters; SageMaker takes {MAX_VARIABLE_CHARS}. Put it"
                " into the job's config, or into a file of the code."
            )
    if len(made) > _MAX_VARIABLES:
        raise SpecError(
            f"The job has {len(made)} variables, of which its config and those of launch may be many; SageMaker takes"
            f" {_MAX_VARIABLES}. Set fewer, or shorten the config."
        )
    others = {name: one for name, one in read_fields(plan.options).items() if name != "Environment"}
    if not has_secrets_allowed(plan.options):
        refuse_shown_secrets(
            plan,
            made,
            {"options": texts_in(others)},
            resource="sagemaker",
            seen="whoever may describe training jobs in the AWS account can read a job's environment and arguments",
            instead="Or let the job read them from AWS Secrets Manager by its role.",
        )
