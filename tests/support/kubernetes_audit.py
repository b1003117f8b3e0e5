"""What an account asks a Kubernetes API server for, as its audit log tells it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

#: The requests of ServiceAccounts, and nothing of what is in them.
AUDIT_POLICY = {
    **{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]},
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


@dataclass(frozen=True)
class Right:
    """What a Role grants: a verb on a resource ("pods/log" with its part) of an API group ("" for the core)."""

    group: str
    resource: str
    verb: str


def rights_used(log: Path, user: str) -> dict[Right, set[int]]:
    """Read what a user has asked for so far.

    Args:
        log: The audit log; it is not there before the first entry.
        user: The user's name.

    Returns:
        What it asked for, with the codes of the answers.
    """
    used = defaultdict[Right, set[int]](set)
    for line in log.read_text().splitlines() if log.exists() else ():
        entry = json.loads(line)
        about = entry.get("objectRef", {})
        if entry["user"]["username"] == user and "resource" in about:
            part = f"/{about['subresource']}" if "subresource" in about else ""
            right = Right(about.get("apiGroup", ""), about["resource"] + part, entry["verb"])
            used[right].add(entry["responseStatus"]["code"])
    return dict(used)
