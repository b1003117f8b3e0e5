"""Fields that submitters may not set, anywhere in a manifest: the ways out of a pod, other identities, others' secrets.

The list is the reference's, with what names the secrets, the priority and the namespace of others. It holds for what a
submitter wrote; a queue's owner may set all of it. Keys are compared without regard to case and underscores, since not
every reader of a manifest is strict about them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.runners.remote.kubernetes.fields import field_table, shown, walk

_Rule = Callable[[Any], bool]

_NOT_AT_ALL: Final = (
    *("securityContext", "hostPath", "serviceAccountToken"),
    *("secretKeyRef", "secretRef", "secretName", "imagePullSecrets", "nodePublishSecretRef"),
    *("externalIPs", "ownerReferences", "finalizers"),
)
_NOT_TRUE: Final = (
    *("hostPID", "hostIPC", "hostNetwork", "shareProcessNamespace", "hostUsers", "automountServiceAccountToken"),
    # An account is a name: any but the empty one.
    *("hostPort", "serviceAccountName", "serviceAccount", "namespace", "nodePort"),
    *("priorityClassName", "priority", "nodeName", "runtimeClassName"),
)
#: What a volume of a submitter may be made of; every other source that the API knows reaches a network or a host.
_VOLUME_SOURCES: Final = (
    *("configMap", "downwardAPI", "emptyDir", "ephemeral"),
    *("image", "persistentVolumeClaim", "projected", "secret"),
)
_PROFILE_ANNOTATIONS: Final = (
    "container.apparmor.security.beta.kubernetes.io",
    "seccomp.security.alpha.kubernetes.io",
    "container.seccomp.security.alpha.kubernetes.io",
)
#: Of a Secret: the cluster then writes this account's token into it.
_ACCOUNT_ANNOTATION: Final = "kubernetes.io/service-account.name"


def check_safe(value: Any, path: str) -> None:
    """Refuse a submitter's manifest, or part of one, that reaches out of its pod.

    Args:
        value: nested mappings and lists. It is not changed.
        path: of the value, for messages.

    Raises:
        UnsafeSpecError: naming the field, where it stands, and the next step.
    """
    for entry in walk(value, path):
        rule = _rule_of(entry.key)
        if (rule is not None and rule(entry.value)) or _is_foreign_volume(entry.key, entry.value):
            raise unsafe(entry.key, entry.path, entry.value)


def unsafe(key: str, path: str, value: Any) -> UnsafeSpecError:
    """Return the refusal of a field that only the queue's owner may set."""
    return UnsafeSpecError(
        f"Unsafe resource_args.kubernetes option {key!r} is not allowed: found {path} = {shown(value)}. It would reach"
        " out of the job's own pod. Remove it, or ask the queue's owner to set it in the queue."
    )


def _plain(key: str) -> str:
    return re.sub(r"[_-]", "", key).casefold()


def _is_there(value: Any) -> bool:
    return True


def _is_word(word: str) -> _Rule:
    return lambda value: str(value).strip().casefold() == word


_RULES: Final[Mapping[str, _Rule]] = {
    **{_plain(key): _is_there for key in _NOT_AT_ALL},
    **{_plain(key): bool for key in _NOT_TRUE},
    _plain("mountPropagation"): _is_word("bidirectional"),
    # A volume's source; a label may be called so.
    "secret": lambda value: isinstance(value, Mapping),
}


def _is_foreign_volume(key: str, value: Any) -> bool:
    """Whether an entry is the source of a volume that is not made in the cluster for the job, such as `nfs`."""
    # A label or a variable may be called so: a source is a mapping.
    return isinstance(value, Mapping) and _plain(key) in _foreign_volumes()


@lru_cache(maxsize=1)
def _foreign_volumes() -> frozenset[str]:
    known = {_plain(name) for name in field_table()["V1Volume"] if name != "name"}
    return frozenset(known.difference(map(_plain, _VOLUME_SOURCES)))


def _rule_of(key: str) -> _Rule | None:
    if key.casefold().startswith(_PROFILE_ANNOTATIONS):
        return _is_word("unconfined")
    if key.casefold() == _ACCOUNT_ANNOTATION:
        return _is_there
    return _RULES.get(_plain(key))
