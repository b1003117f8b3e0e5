"""Places of a Kubernetes manifest where a submitter's value may be filled in: amounts, variables, labels, arguments.

The list applies anywhere in the objects that are made: in a manifest, in its short form, in an additional service.
Everywhere else only the queue's owner chooses: a namespace, an account, a volume's source, a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.remote.kubernetes.options import SUBMITTER_OPTIONS

#: Mappings of amounts, whose keys are names of resources.
_AMOUNTS: Final = frozenset({"limits", "requests"})
#: Numbers of pods, of tries and of seconds, and sizes. A queue's limits count the pods.
_NUMBERS: Final = frozenset(
    {
        *("replicas", "minReplicas", "maxReplicas", "parallelism", "completions", "minAvailable", "numOfHosts"),
        *("backoffLimit", "maxRetry", "maxRestarts", "activeDeadlineSeconds", "ttlSecondsAfterFinished"),
        *("terminationGracePeriodSeconds", "sizeLimit", "slotsPerWorker", "nprocPerNode", "nprocPerReplica"),
    }
)
#: Mappings whose keys the owner writes. A key with a domain tells a controller of the cluster what to do. A selector is
#: none of them: it takes hold of whatever has its labels, also of pods of others.
_LABELS: Final = frozenset({"labels", "annotations"})
#: Content of an additional service that is data.
_DATA: Final = frozenset({"data", "stringData"})
_PATHS: Final = frozenset({"mountPath", "subPath", "workingDir"})
#: What the item itself brings into its own container.
_OF_JOB: Final = frozenset({"args", "command", "image"})
_VOLUMES: Final = "volumes"


def fill_rule(option: str, keys: Keys, text: str) -> FillRule:
    """Return how freely a submitter's value may stand at a place of a queue's options.

    Args:
        option: under its normal name.
        keys: that lead to the place in the option's value.
        text: that the queue's owner wrote there, with the placeholder.
    """
    if option in SUBMITTER_OPTIONS:
        return FillRule.ANY
    names = [option, *(key for key in keys if isinstance(key, str))]
    above, name = (names[-2] if len(names) > 1 else ""), names[-1]
    if name == _VOLUMES and option == _VOLUMES:
        return _of_volume(text)
    if name in _PATHS:
        return FillRule.PATH
    return FillRule.ANY if _is_free(names, above, name, keys) else FillRule.OWNER


def _is_free(names: Sequence[str], above: str, name: str, keys: Keys) -> bool:
    if above in _AMOUNTS or name in _NUMBERS or above in _DATA:
        return True
    if above in _LABELS:
        return "/" not in name
    if above == "metadata":
        return name in ("name", "generateName")
    if name in _OF_JOB:
        # Of the first container: the others are helpers of the owner's, which may have more rights.
        return len(names) == 1 or (names[0] == "spec" and above == "containers" and _index(keys, above) == 0)
    return (name == "value" and above == "env") or names == ["spec", "entrypoint"]


def _index(keys: Keys, above: str) -> object:
    """Return the index of the item, of a list with this name, that a place is in."""
    return keys[len(keys) - 1 - keys[::-1].index(above) + 1]


def _of_volume(text: str) -> FillRule:
    """Return the rule of `CLAIM:/path` by the part that has the placeholder."""
    source = text.partition(":")[0]
    return FillRule.OWNER if "{" in source else FillRule.PATH
