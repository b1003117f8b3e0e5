"""Translation of the keys `registry` and `environment` of the reference's agent config, where that is exact.

Here, built images go to `builder.destination`, and `clouds` says who the agent is in a cloud. What the reference does
not read either, such as keys in an `environment`, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.clouds.settings import AwsSettings, GcpSettings
from prefect_launch.errors import AgentConfigError, SpecError
from prefect_launch.registries.base import parse_repository
from prefect_launch.registries.clouds import CLOUDS, Cloud, cloud_of

_REGISTRY: Final = "registry"
_ENVIRONMENT: Final = "environment"
_LOCAL: Final = "local"
_SETTINGS: Final = {"aws": AwsSettings.model_fields, "gcp": GcpSettings.model_fields}


class _Kind(NamedTuple):
    """A cloud by the reference's words."""

    registry: str
    environment: str
    cloud: Cloud


_KINDS: Final = tuple(
    _Kind(registry, environment, cloud)
    for registry, environment, cloud in zip(("ecr", "gcr", "acr"), ("aws", "gcp", "azure"), CLOUDS, strict=True)
)


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return an agent's settings without the reference's two keys.

    `registry: {type: ecr, uri: REPOSITORY}` becomes `builder.destination`, and `environment: {type: aws, region:
    REGION}` becomes `clouds.aws.region`. That of Azure is left out: the agent has its identity there by itself.

    Raises:
        AgentConfigError: for what cannot be translated, with the next step.
    """
    rest = {key: value for key, value in settings.items() if key not in (_REGISTRY, _ENVIRONMENT)}
    registry = _mapping(_REGISTRY, settings.get(_REGISTRY))
    environment = _mapping(_ENVIRONMENT, settings.get(_ENVIRONMENT))
    builder = rest.get("builder") or {}
    if registry and isinstance(builder, Mapping):
        repository = _repository(registry)
        if builder.get("destination") not in (None, repository, registry.get("uri")):
            raise AgentConfigError(
                f"registry.uri ({registry.get('uri')!r}) and builder.destination ({builder['destination']!r}) name two"
                " places for built images. Keep builder.destination."
            )
        builder = {**builder, "destination": repository}
        rest["builder"] = builder
    if environment and (clouds := _clouds(environment, rest.get("clouds") or {})):
        rest["clouds"] = clouds
    return rest


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise AgentConfigError(f"The agent's {key!r} must be a mapping, not {value!r}.")
    given = {name: item for name, item in value.items() if item is not None}
    return {} if given.get("type") == _LOCAL else given


def _kind(key: str, given: Mapping[str, Any]) -> _Kind:
    words = {getattr(kind, key): kind for kind in _KINDS}
    if given.get("type") not in words:
        raise AgentConfigError(
            f"The agent's {key}.type is {given.get('type')!r}, and must be one of {', '.join(words)}, or local. Leave"
            f" {key!r} out: builder.destination says where built images go."
        )
    return words[given["type"]]


def _repository(registry: Mapping[str, Any]) -> str:
    kind = _kind(_REGISTRY, registry)
    for key in registry.keys() - {"type", "uri"}:
        raise AgentConfigError(
            f"The agent's registry.{key} ({registry[key]!r}) is not read. Write the whole repository as"
            " builder.destination, such as '123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/train', and leave"
            " 'registry' out."
        )
    try:
        repository = parse_repository(str(registry.get("uri") or "").removeprefix("https://"))
    except SpecError as error:
        raise AgentConfigError(f"registry.uri: {error} Write it as builder.destination.") from None
    if cloud_of(repository.partition("/")[0]) is not kind.cloud:
        raise AgentConfigError(
            f"The agent's registry.uri ({registry['uri']!r}) is no repository of {kind.cloud.title}, which its type"
            f" {kind.registry!r} means. Correct one of them, or write builder.destination and leave 'registry' out."
        )
    return repository


def _clouds(environment: Mapping[str, Any], given: Any) -> Any:
    """Return the setting `clouds` with the region of the reference's environment."""
    cloud = _kind(_ENVIRONMENT, environment).environment
    for key in environment.keys() - {"type", "region"}:
        step = "Give the agent's process that identity as the cloud's own client finds it"
        if cloud in _SETTINGS:
            step = f"Say under clouds.{cloud} who the agent is ({', '.join(_SETTINGS[cloud])})"
        raise AgentConfigError(f"The agent's environment.{key} is not read. {step}, and leave it out.")
    region = environment.get("region")
    if region is None or cloud not in _SETTINGS or not isinstance(given, Mapping):
        return given
    part = given.get(cloud) or {}
    if not isinstance(part, Mapping):
        return given
    if part.get("region") not in (None, region):
        raise AgentConfigError(
            f"environment.region ({region!r}) and clouds.{cloud}.region ({part['region']!r}) name two regions. Keep"
            f" clouds.{cloud}.region."
        )
    return {**given, cloud: {**part, "region": region}}
