"""Translation of the keys `registry` and `environment` of the reference's agent config, where that is exact.

Here, built images go to `builder.destination`, and the credentials for a registry of a cloud are this machine's own
identity in that cloud; the registry's address names the region. So the two keys either add nothing, or ask for
something that is not supported here, and then they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.errors import AgentConfigError, SpecError
from prefect_launch.registries.base import parse_repository
from prefect_launch.registries.clouds import CLOUDS, Cloud, cloud_of

_REGISTRY: Final = "registry"
_ENVIRONMENT: Final = "environment"
_LOCAL: Final = "local"


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

    `registry: {type: ecr, uri: REPOSITORY}` becomes `builder.destination`. `environment: {type: aws, region: REGION}`
    is left out when the images go to that cloud, and region: the agent has its identity there by itself.

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
    if environment:
        _check_environment(environment, str(builder.get("destination") or "") if isinstance(builder, Mapping) else "")
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


def _check_environment(environment: Mapping[str, Any], destination: str) -> None:
    kind = _kind(_ENVIRONMENT, environment)
    for key in environment.keys() - {"type", "region"}:
        raise AgentConfigError(
            f"The agent's environment.{key} ({environment[key]!r}) is not read. Give the agent's process that identity"
            f" as the client of {kind.cloud.title} finds it, or name a block under 'registries', and leave it out."
        )
    host = destination.removeprefix("https://").partition("/")[0]
    region = environment.get("region")
    if cloud_of(host) is not kind.cloud:
        raise AgentConfigError(
            f"The agent's environment ({environment['type']!r}) has no effect here: only a registry of"
            f" {kind.cloud.title} that builder.destination names would ask for it, and that is {destination!r}. Leave"
            " it out."
        )
    if kind.environment != "azure" and region is not None and str(region) not in _region_of(host):
        raise AgentConfigError(
            f"The agent's environment.region ({region!r}) is not that of its registry {host!r}, which alone counts."
            " Correct it, or leave it out."
        )
    if not kind.cloud.is_installed:
        raise AgentConfigError(
            f"The agent's environment ({environment['type']!r}) needs the client of {kind.cloud.title}. Run"
            f" 'pip install prefect-launch[{kind.cloud.extra}]'."
        )


def _region_of(host: str) -> set[str]:
    """Return the parts of an address that may be its region: `eu-west-1` of ECR's, `europe-west1` of Google's."""
    return {*host.split("."), host.removesuffix("-docker.pkg.dev")}
