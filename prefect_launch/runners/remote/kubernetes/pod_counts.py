"""Pods of an object, wherever it has them, and how many of each: for what a whole run asks for.

A pod is found by its containers, so that one counts of which its kind's description says nothing. Its number is what
its kind's paths say, and what the fields on the way to it say: replicas, parallelism, hosts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Final, NamedTuple

from prefect_launch.errors import SpecError
from prefect_launch.runners.option_values import UNLIMITED
from prefect_launch.runners.remote.kubernetes.fields import shown
from prefect_launch.runners.remote.kubernetes.kinds import (
    Keys,
    ObjectKind,
    PodTemplatePath,
    beside,
    find,
    first,
    written,
)

#: Fields next to or above a pod's template that multiply its number.
_TIMES: Final = ("replicas", "parallelism", "numOfHosts")
#: Those that its number may grow to by itself.
_GROWS: Final = ("minReplicas", "maxReplicas")
#: What lets the number grow: a switch of KubeRay, a policy of PyTorchJob (for its workers).
_SCALING: Final = "spec.rayClusterSpec.enableInTreeAutoscaling"
_ELASTIC: Final = "spec.elasticPolicy.maxReplicas"
_ELASTIC_PODS: Final = "Worker"


class Pods(NamedTuple):
    """Pods that are made from one spec.

    Attributes:
        keys: that lead to the spec.
        spec: of each.
        number: how many there may be; infinite: one a node.
        place: of their template, in the description of the object's kind; None: it has none.
    """

    keys: Keys
    spec: Mapping[str, Any]
    number: float
    place: PodTemplatePath | None


def pods_in(manifest: Mapping[str, Any], kind: ObjectKind | None = None) -> Iterator[Pods]:
    """Yield the pods of an object.

    Args:
        manifest: of the object.
        kind: what is known of it.
    """
    places = {
        keys: place for place in (kind.pods if kind else ()) for keys, _ in find(manifest, f"{place.template}.spec")
    }
    for keys, spec in _specs(manifest):
        place = places.get(keys)
        yield Pods(keys, spec, _count(manifest, keys, place), place)


def check_counts(manifest: Mapping[str, Any], kind: ObjectKind | None, path: str) -> None:
    """Refuse numbers of pods that are none.

    Args:
        manifest: of the object.
        kind: what is known of it.
        path: of the object, for messages.

    Raises:
        SpecError: with the path, the value and the rule.
    """
    for pods in pods_in(manifest, kind):
        for keys, value in _numbers(manifest, pods.keys, pods.place).items():
            if not _is_count(value):
                raise SpecError(
                    f"{path}.{written(keys)} is {shown(value)}; it must be a whole number, not below 0. Correct it."
                )


def _specs(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        containers = value.get("containers")
        if isinstance(containers, (list, tuple)) and all(isinstance(one, Mapping) for one in containers):
            yield keys, value
        # On, all the same: a list called so above other pods, as in a resource of its own kind, must not hide them.
        for key, item in value.items():
            yield from _specs(item, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _specs(item, (*keys, index))


def _numbers(manifest: Mapping[str, Any], keys: Keys, place: PodTemplatePath | None) -> dict[Keys, Any]:
    """Return the numbers that the number of pods is made of, each by its place."""
    found: dict[Keys, Any] = {}
    for path in place.counts if place else ():
        found.update(find(manifest, beside(path, keys)))
    current: Any = manifest
    for depth, key in enumerate(keys):
        if isinstance(current, Mapping):
            found |= {(*keys[:depth], name): current[name] for name in _TIMES if current.get(name) is not None}
            if first(manifest, _SCALING) is True:
                grows = [current[name] for name in _GROWS if current.get(name) is not None]
                if grows:
                    where = (*keys[:depth], _TIMES[0])
                    found[where] = max([found.get(where, 0), *grows], key=_as_number)
        current = current[key]
    elastic = first(manifest, _ELASTIC)
    if elastic is not None and _ELASTIC_PODS in keys:
        where = (*keys[: keys.index(_ELASTIC_PODS) + 1], _TIMES[0])
        found[where] = max([found.get(where, 0), elastic], key=_as_number)
    return found


def _count(manifest: Mapping[str, Any], keys: Keys, place: PodTemplatePath | None) -> float:
    if manifest.get("kind") == "DaemonSet":
        return UNLIMITED
    return prod(_as_number(value) for value in _numbers(manifest, keys, place).values())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _as_number(value: object) -> float:
    """Return a number of pods; an invalid one counts as without a limit, until `check_counts` refuses it."""
    return value if isinstance(value, int) and _is_count(value) else UNLIMITED
