"""Options of the resource `sagemaker`: the fields of SageMaker's CreateTrainingJob, and who may set which.

A field has its own name (`ResourceConfig`) or that in small letters (`resource_config`), as W&B Launch takes them.
`env` is as on every resource; `secrets` allows a job's environment to hold secrets, which AWS shows. What the runner
makes itself (the job's name) and what is the agent's own (region, profile) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from prefect_launch.errors import SpecError, UnsafeSpecError, clause
from prefect_launch.runners import option_values as values
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Amount, Quantity

_Reader = Callable[[object], Any]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be text, and not empty")
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping of SageMaker's fields, such as {'InstanceCount': 1}")
    return {str(key): one for key, one in value.items()}


def _texts(value: object) -> dict[str, str]:
    found = _mapping(value)
    for key, one in found.items():
        if isinstance(one, bool) or not isinstance(one, (str, int, float)):
            raise ValueError(f"{key!r} must be text or a number")
    return {key: str(one) for key, one in found.items()}


def _list(value: object) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("it must be a list")
    return list(value)


#: What submitters may set, where the queue leaves it open.
_SUBMITTER: Final[dict[str, _Reader]] = {
    "CheckpointConfig": _mapping,
    "EnableManagedSpotTraining": values.boolean,
    "HyperParameters": _texts,
    "InputDataConfig": _list,
    "ResourceConfig": _mapping,
    "StoppingCondition": _mapping,
}
_OWNER: Final[dict[str, _Reader]] = {
    "AlgorithmSpecification": _mapping,
    "DebugHookConfig": _mapping,
    "DebugRuleConfigurations": _list,
    "EnableInterContainerTrafficEncryption": values.boolean,
    "EnableNetworkIsolation": values.boolean,
    "Environment": _texts,
    "ExperimentConfig": _mapping,
    "InfraCheckConfig": _mapping,
    "MlflowConfig": _mapping,
    "ModelPackageConfig": _mapping,
    "OutputDataConfig": _mapping,
    "ProfilerConfig": _mapping,
    "ProfilerRuleConfigurations": _list,
    "RemoteDebugConfig": _mapping,
    "RetryStrategy": _mapping,
    "RoleArn": _text,
    "SessionChainingConfig": _mapping,
    "Tags": _list,
    "TensorBoardOutputConfig": _mapping,
    "VpcConfig": _mapping,
}
_FIELDS: Final = {**_SUBMITTER, **_OWNER}
#: Without these, SageMaker or the runner can do nothing with a job; in the reference's order.
REQUIRED_OF_OWNER: Final = ("RoleArn", "OutputDataConfig")
REQUIRED: Final = (*REQUIRED_OF_OWNER, "ResourceConfig", "StoppingCondition")

_SET_BY_AGENT: Final = (
    "who the agent is at AWS is in its own config ('clouds.aws': profile, region, role_arn, credentials)"
)
#: What a W&B queue may have, and a queue here has not: each with the reason.
UNREAD_OPTIONS: Final = {
    "credentials": _SET_BY_AGENT,
    "ecr-repo-name": "where built images go is 'builder.destination' in the agent's config",
    "profile": _SET_BY_AGENT,
    "region": _SET_BY_AGENT,
    "training-job-name": "a job's name comes from its item and attempt, so that it is made once",
}


def _small(field: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", field).lower()


#: Normal names of options, each with its field.
_FIELD_OF: Final = {_small(field): field for field in _FIELDS}
SUBMITTER_OPTIONS: Final = frozenset({*map(_small, _SUBMITTER), "e", "env"})
OPTIONS: Final = SUBMITTER_OPTIONS | frozenset({*map(_small, _OWNER), "secrets"})

#: Of `ResourceConfig`: what a submitter may say in it. Warm pools, capacity plans and keys are the owner's.
_SUBMITTER_RESOURCES: Final = frozenset({"InstanceType", "InstanceCount", "VolumeSizeInGB", "InstanceGroups"})
_NUMBERS: Final = frozenset(
    {"InstanceCount", "VolumeSizeInGB", "MaxRuntimeInSeconds", "MaxWaitTimeInSeconds", "MaxPendingTimeInSeconds"}
)

_COUNT: Final = Quantity(values.integer)
#: What a queue's limits bound, by the names of the fields that say it.
QUANTITIES: Final = {"instance-count": _COUNT, "max-runtime-in-seconds": _COUNT, "volume-size-in-gb": _COUNT}
#: As a queue of W&B Launch may name the image of its items.
_ITEMS_IMAGE: Final = "${image_uri}"
#: What SageMaker lets a job run that does not say it.
_DEFAULT_RUNTIME: Final = 86_400


def check_values(options: Mapping[str, Any]) -> None:
    """Check the values of options, under their normal names.

    Raises:
        SpecError: for a value that is not right.
    """
    for name, value in options.items():
        _read(name, value)


def _read(name: str, value: object) -> Any:
    if name == "env":
        return value
    field = _FIELD_OF.get(name)
    try:
        return _FIELDS[field](value) if field else values.boolean(value)
    except ValueError as error:
        # Of a mapping, which may hold anything, its keys are shown.
        shown = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else repr(value)
        raise SpecError(f"Invalid resource_args.sagemaker option {field or name!r}: {shown}: {error}.") from None


def read_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of CreateTrainingJob that options set, by SageMaker's names."""
    return {_FIELD_OF[name]: _read(name, value) for name, value in options.items() if name in _FIELD_OF}


def has_secrets_allowed(options: Mapping[str, Any]) -> bool:
    """Whether the queue's owner lets jobs have secrets in their environment, which AWS shows."""
    return values.boolean(options.get("secrets", False))


def check_submitter_options(options: Mapping[str, Any]) -> None:
    """Refuse what of a job's resources only the queue's owner may choose.

    Raises:
        UnsafeSpecError: naming it.
    """
    for key in sorted(read_fields(options).get("ResourceConfig", {}).keys() - _SUBMITTER_RESOURCES):
        raise UnsafeSpecError(
            f"resource_args.sagemaker.ResourceConfig.{key} may be set by the queue's owner only. Leave it out, or ask"
            " the owner."
        )


def fill_rule(option: str, keys: Keys, text: str) -> FillRule:
    """Return how freely a submitter's value may stand at a place of a queue's options."""
    field = _FIELD_OF.get(option)
    if field in ("ResourceConfig", "StoppingCondition", "CheckpointConfig", "InputDataConfig"):
        # An instance's type is a price, and a bucket somebody's data: the owner lists those that may be had.
        return FillRule.ANY if keys and keys[-1] in _NUMBERS else FillRule.OWNER
    if keys == ("TrainingImage",) and text == _ITEMS_IMAGE:
        return FillRule.ANY
    return FillRule.ANY if option in SUBMITTER_OPTIONS else FillRule.OWNER


def amounts(options: Mapping[str, Any]) -> dict[str, Amount]:
    """Return what a whole run asks for: instances, their volumes together, and how long it may run."""
    try:
        fields = read_fields(options)
        resources = fields.get("ResourceConfig", {})
        groups = [one for one in resources.get("InstanceGroups") or () if isinstance(one, Mapping)]
        count = values.integer(resources.get("InstanceCount", 0 if groups else 1))
        count += sum(values.integer(one.get("InstanceCount", 1)) for one in groups)
        volume = count * values.integer(resources.get("VolumeSizeInGB", 0))
        runtime = values.integer(fields.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", _DEFAULT_RUNTIME))
    except (SpecError, ValueError):  # Not filled in yet, or refused elsewhere.
        return {}
    return {
        "instance-count": Amount(count, str(count)),
        "max-runtime-in-seconds": Amount(runtime, str(runtime)),
        "volume-size-in-gb": Amount(volume, str(volume)),
    }


def set_inside(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that a queue sets in `Environment`, which win over those of an item's `env`."""
    given = options.get("environment")
    return {f"env.{name}": f"Environment.{name}" for name in given} if isinstance(given, Mapping) else {}


def own_image(options: Mapping[str, Any]) -> str | None:
    """Return the image that the options name; not one that a macro names."""
    image: str | None = read_fields(options).get("AlgorithmSpecification", {}).get("TrainingImage")
    return None if image is None or "${" in image else image


# --- botocore's own validation ---


@cache
def _model() -> Any:
    """Return botocore's model of the request, which takes 0.2 s to read; None where botocore is not installed."""
    try:
        from botocore.loaders import create_loader
        from botocore.model import ServiceModel
    except ImportError:
        return None
    model = ServiceModel(create_loader().load_service_model("sagemaker", "service-2"), "sagemaker")
    return model.shape_for("CreateTrainingJobRequest")


def check_shape(request: Mapping[str, Any], *, is_whole: bool = True) -> None:
    """Refuse a request whose fields are not as botocore knows them; blocks for a moment at its first call.

    Where botocore is not installed, as on a submitter's machine, nothing is looked at: the agent does so.

    Args:
        request: of CreateTrainingJob.
        is_whole: whether all fields are there that it must have.

    Raises:
        SpecError: naming each field.
    """
    shape = _model()
    if shape is None:
        return
    from botocore.validate import ParamValidator

    known = set(shape.members)
    report = ParamValidator().validate({name: one for name, one in request.items() if name in known}, shape)
    missing = 'Missing required parameter in input: "'
    faults = [one for one in report.generate_report().splitlines() if is_whole or not one.startswith(missing)]
    faults += [f"this botocore does not know {name!r}" for name in request if name not in known]
    if faults:
        raise SpecError(
            f"SageMaker does not take the job: {clause('; '.join(faults))}. Correct resource_args.sagemaker of the item"
            " or of its queue."
        )
