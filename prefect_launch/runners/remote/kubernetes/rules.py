"""Rules of the Kubernetes API server that a table of fields does not have: names, labels, containers, quantities.

They are checked before anything is queued, with the path, the value, the rule and the next step. What depends on the
cluster (a namespace, a quota, an admission rule) only the server can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.kubernetes.fields import join, shown
from prefect_launch.runners.remote.kubernetes.quantities import parse_quantity

#: Of the keys by which agents know their runs (`Labels`).
OWN_PREFIX: Final = Labels.ITEM.partition(".")[0] + "."
_MAX_NAME: Final = 63
_MAX_LONG_NAME: Final = 253
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII)
_DNS_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_LABEL: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?", re.ASCII)
_ENV_NAME: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*", re.ASCII)
_NAME_RULE: Final = "at most 63 small letters, digits and '-', a letter or a digit first and last"


def is_label_value(value: str) -> bool:
    """Whether a text can be the value of a label."""
    return len(value) <= _MAX_NAME and bool(_LABEL.fullmatch(value))


def check_name(path: str, value: Any) -> str:
    """Return a name of one DNS label, such as a namespace's or a container's.

    Raises:
        SpecError: when it is none.
    """
    if not isinstance(value, str) or len(value) > _MAX_NAME or not _DNS_LABEL.fullmatch(value):
        raise SpecError(f"{path} is {shown(value)}; a name there must be {_NAME_RULE}. Choose another.")
    return value


def check_object_name(path: str, value: Any) -> str:
    """Return the name of an object, such as a claim's or a secret's.

    Raises:
        SpecError: when it is none.
    """
    if not isinstance(value, str) or len(value) > _MAX_LONG_NAME or not _DNS_NAME.fullmatch(value):
        raise SpecError(
            f"{path} is {shown(value)}; an object's name must be at most 253 small letters, digits, '-' and '.', a"
            " letter or a digit first and last. Choose another."
        )
    return value


def check_label_key(path: str, key: Any) -> None:
    """Refuse what cannot be the key of a label or an annotation.

    Raises:
        SpecError: with the rule.
    """
    prefix, slash, name = key.rpartition("/") if isinstance(key, str) else ("", "", "")
    good = (
        name and is_label_value(name) and (not slash or (len(prefix) <= _MAX_LONG_NAME and _DNS_NAME.fullmatch(prefix)))
    )
    if not good:
        raise SpecError(
            f"{path} has the key {shown(key)}; a key must be a name of at most 63 letters, digits, '-', '_' and '.', a"
            " letter or a digit first and last, perhaps after a domain and '/'. Choose another."
        )


def check_labels(path: str, labels: Any, *, are_own: bool = True) -> None:
    """Refuse labels whose keys or values are out of the alphabet.

    Args:
        path: of the labels.
        labels: to check.
        are_own: whether they are an object's own, which may include none of prefect-launch's.

    Raises:
        SpecError: naming the label.
    """
    for key, value in _texts_of(path, labels, are_own=are_own):
        if not is_label_value(value):
            raise SpecError(
                f"{join(path, key)} is {shown(value)}; a label's value must be at most 63 letters, digits, '-', '_' and"
                " '.', a letter or a digit first and last. Put other texts into annotations."
            )


def check_annotations(path: str, annotations: Any) -> None:
    """Refuse annotations whose keys are out of the alphabet, or whose values are no text.

    Raises:
        SpecError: naming the annotation.
    """
    for _ in _texts_of(path, annotations):
        pass


def _texts_of(path: str, given: Any, *, are_own: bool = True) -> Iterator[tuple[str, str]]:
    """Yield labels or annotations, each checked as far as both are held to the same."""
    if not isinstance(given, Mapping):
        raise SpecError(f"{path} is {shown(given)}; it must be a mapping of names to texts.")
    for key, value in given.items():
        check_label_key(path, key)
        if are_own and key.startswith(OWN_PREFIX):
            raise SpecError(
                f"{path} has the key {key!r}; those with {OWN_PREFIX!r} say whose run an object is. Choose another."
            )
        if not isinstance(value, str):
            raise SpecError(f"{join(path, key)} is {shown(value)}: it must be text. Put it in quotes.")
        yield key, value


def check_metadata(path: str, metadata: Mapping[str, Any]) -> None:
    """Refuse names, labels and annotations that the API server would refuse.

    Raises:
        SpecError: naming the first.
    """
    for field, check in (("labels", check_labels), ("annotations", check_annotations)):
        if metadata.get(field) is not None:
            check(join(path, field), metadata[field])
    if metadata.get("name") is not None:
        check_object_name(join(path, "name"), metadata["name"])
    if metadata.get("namespace") is not None:
        check_name(join(path, "namespace"), metadata["namespace"])


def check_pod(path: str, pod: Mapping[str, Any], *, in_job: bool) -> None:
    """Refuse a pod's spec that the API server would refuse.

    Args:
        path: of the pod's spec.
        pod: its spec, whose fields are checked.
        in_job: whether its pods run to an end, so that they may not be restarted forever.

    Raises:
        SpecError: naming the first fault.
    """
    containers = [(f"{path}.containers[{i}]", one) for i, one in enumerate(pod.get("containers") or ())]
    init = [(f"{path}.initContainers[{i}]", one) for i, one in enumerate(pod.get("initContainers") or ())]
    if not containers:
        raise SpecError(f"{path}.containers has no container. Give one, with its image.")
    policy = pod.get("restartPolicy")
    if in_job and policy not in (None, "Never", "OnFailure"):
        raise SpecError(
            f"{path}.restartPolicy is {shown(policy)}; a job's pods may have 'Never' or 'OnFailure': the agent retries"
            " a job as a new item. Leave it out for 'Never'."
        )
    _check_unique("container", ((where, one.get("name")) for where, one in (*init, *containers)))
    volumes = [(f"{path}.volumes[{i}]", one) for i, one in enumerate(pod.get("volumes") or ())]
    _check_unique("volume", ((where, one.get("name")) for where, one in volumes))
    names = {volume.get("name") for _, volume in volumes}
    for where, container in (*init, *containers):
        _check_container(where, container, names)


def _check_unique(noun: str, named: Iterable[tuple[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for where, name in named:
        check_name(f"{where}.name", name)
        if name in seen:
            raise SpecError(
                f"{where}.name is {name!r}, which {seen[name]} has too: a {noun}'s name is its own. Rename one."
            )
        seen[name] = where


def _check_container(path: str, container: Mapping[str, Any], volumes: set[Any]) -> None:
    seen: set[str] = set()
    for i, variable in enumerate(container.get("env") or ()):
        name = check_env_name(f"{path}.env[{i}].name", variable.get("name"))
        if name in seen:
            raise SpecError(f"{path}.env has the variable {name!r} twice. Keep one of them.")
        seen.add(name)
    for i, mount in enumerate(container.get("volumeMounts") or ()):
        if mount.get("name") not in volumes:
            known = ", ".join(sorted(map(str, volumes))) or "none"
            raise SpecError(
                f"{path}.volumeMounts[{i}].name is {shown(mount.get('name'))}, and the pod has no volume of that name"
                f" (it has: {known}). Add it to the pod's volumes."
            )
    check_resources(f"{path}.resources", container.get("resources") or {})


def check_env_name(path: str, name: Any) -> str:
    """Return the name of an environment variable that Kubernetes takes.

    Raises:
        SpecError: when it does not.
    """
    if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
        raise SpecError(
            f"{path} is {shown(name)}; on Kubernetes a variable's name must be letters, digits, '_', '-' and '.', no"
            " digit first. Rename it."
        )
    return name


def check_resources(path: str, resources: Mapping[str, Any]) -> None:
    """Refuse requests and limits that are no quantities, or do not go together.

    Raises:
        SpecError: naming the first fault.
    """
    read: dict[str, dict[str, Any]] = {}
    for part in ("limits", "requests"):
        for name, value in (resources.get(part) or {}).items():
            try:
                number = parse_quantity(value)
            except ValueError as error:
                raise SpecError(f"{path}.{part}.{name} is {shown(value)}: {error}. Correct it.") from None
            if name == "memory" and 0 < number < 1024:
                raise SpecError(
                    f"{path}.{part}.memory is {shown(value)}, which is {number.normalize():f} bytes: a small 'm' means"
                    " thousandths. Write '512Mi' for mebibytes."
                )
            if "/" in name and number != int(number):
                raise SpecError(
                    f"{path}.{part}.{name} is {shown(value)}; a device cannot be shared. Give a whole number."
                )
            read.setdefault(name, {})[part] = number
    for name, given in read.items():
        if "limits" in given and given.get("requests", 0) > given["limits"]:
            raise SpecError(f"{path}.requests.{name} is above its limit {resources['limits'][name]!r}. Lower it.")
        if "/" in name and given.get("requests", given.get("limits")) != given.get("limits"):
            raise SpecError(f"{path}.limits.{name} must be the same as its request, for devices are not overcommitted.")
