"""What a submitter's Kubernetes manifest may not hold, anywhere in it: the ways out of a pod, and other identities.

The list is the reference's. Keys are compared without regard to case and underscores, since not every reader of a
manifest is strict about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefect_launch.errors import UnsafeSpecError

_NOT_AT_ALL = ("securityContext", "hostPath", "serviceAccountToken")
_NOT_TRUE = (
    "hostPID",
    "hostIPC",
    "hostNetwork",
    "shareProcessNamespace",
    "hostUsers",
    "automountServiceAccountToken",
    "hostPort",
    # An account is a name: any but the empty one.
    "serviceAccountName",
    "serviceAccount",
)
_UNCONFINED = "unconfined"
_PROFILE_ANNOTATIONS = (
    "container.apparmor.security.beta.kubernetes.io",
    "seccomp.security.alpha.kubernetes.io",
    "container.seccomp.security.alpha.kubernetes.io",
)

_Rule = Callable[[Any], bool]


def check_kubernetes_manifest(manifest: Any) -> None:
    """Refuse a submitter's manifest, or a list of them, that reaches out of its pod.

    Args:
        manifest: `resource_args.kubernetes`, or an additional service's config. It is not changed.

    Raises:
        UnsafeSpecError: naming the option, where it stands, and the next step.
    """
    for path, key, value in walk(manifest):
        rule = _rule_of(key)
        if rule is not None and rule(value):
            raise UnsafeSpecError(
                f"Unsafe resource_args.kubernetes option {key!r} is not allowed: found {path} = {_short(value)}."
                " It would reach out of the job's own pod. Remove it, or ask the queue's owner to set it in the queue."
            )


def walk(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the path, key and value of every entry of nested mappings and lists, from the top down."""
    # A stack of our own: a manifest nested a thousand deep must end in an answer, not in a RecursionError.
    waiting = [(path, value)]
    while waiting:
        here, current = waiting.pop()
        if isinstance(current, Mapping):
            entries = [(f"{here}.{key}" if here else str(key), str(key), item) for key, item in current.items()]
            yield from entries
            waiting.extend((where, item) for where, _, item in reversed(entries))
        elif isinstance(current, (list, tuple)):
            waiting.extend((f"{here}[{index}]", item) for index, item in reversed(list(enumerate(current))))


def normal_key(key: str) -> str:
    """Return a manifest's key without case and underscores."""
    return key.replace("_", "").casefold()


def _is_there(value: Any) -> bool:
    return True


def _is_bidirectional(value: Any) -> bool:
    return str(value).strip().casefold() == "bidirectional"


def _is_unconfined(value: Any) -> bool:
    return str(value).strip().casefold() == _UNCONFINED


_RULES: dict[str, _Rule] = {
    **{normal_key(key): _is_there for key in _NOT_AT_ALL},
    **{normal_key(key): bool for key in _NOT_TRUE},
    normal_key("mountPropagation"): _is_bidirectional,
}


def _rule_of(key: str) -> _Rule | None:
    if key.casefold().startswith(_PROFILE_ANNOTATIONS):
        return _is_unconfined
    return _RULES.get(normal_key(key))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
