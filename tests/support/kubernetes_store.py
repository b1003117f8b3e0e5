"""The objects of a scripted Kubernetes API: versions, labels, a history that watches replay, cascading deletion."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

Object = dict[str, Any]
#: A resource's place: group and version as in a path ("api/v1", "apis/batch/v1"), and its plural.
Kind = tuple[str, str]
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class ApiError(Exception):
    """An answer that is a Status with a code, a reason and a message."""

    def __init__(self, code: int, reason: str, message: str, *causes: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.causes = causes

    def status(self) -> Object:
        """The Status object, as the real server words it."""
        details = {"causes": [{"reason": "FieldValueInvalid", "message": cause} for cause in self.causes]}
        return {
            **{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": self.code},
            **{"reason": self.reason, "message": self.message, "details": details},
        }


@dataclass(frozen=True)
class Change:
    """One entry of the history."""

    version: int
    kind: Kind
    type: str
    object: Object


@dataclass
class Store:
    """All objects of all kinds.

    Attributes:
        version: Of the last change.
        history: The changes, oldest first.
        forgotten: Changes up to this version are no longer told: who watches from there gets a 410.
        holds_deletions: Whether a deleted object stays, marked as deleted, as on a node that is away.
    """

    version: int = 100
    history: list[Change] = field(default_factory=list)
    forgotten: int = 0
    holds_deletions: bool = False
    _objects: dict[tuple[Kind, str, str], Object] = field(default_factory=dict)

    def create(self, kind: Kind, namespace: str, given: Object) -> Object:
        """Store a new object.

        Raises:
            ApiError: Its name is taken or no name, or a Job's pods would be started for ever.
        """
        new = copy.deepcopy(given)
        metadata = new.setdefault("metadata", {})
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + uuid4().hex[:5]
        name = metadata.get("name", "")
        if not _NAME.fullmatch(name):
            raise ApiError(422, "Invalid", f'{kind[1]} "{name}" is invalid: metadata.name: Invalid value: "{name}"')
        policy = new.get("spec", {}).get("template", {}).get("spec", {}).get("restartPolicy")
        if kind == ("apis/batch/v1", "jobs") and policy not in ("Never", "OnFailure"):
            cause = 'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'
            raise ApiError(422, "Invalid", f'Job.batch "{name}" is invalid: {cause}', cause)
        if (kind, namespace, name) in self._objects:
            raise ApiError(409, "AlreadyExists", f'{kind[1]} "{name}" already exists')
        metadata |= {"namespace": namespace, "uid": str(uuid4()), "creationTimestamp": now(), "generation": 1}
        self._objects[kind, namespace, name] = new
        return self._note(kind, "ADDED", new)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Read an object.

        Raises:
            ApiError: There is none.
        """
        try:
            return self._objects[kind, namespace, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{kind[1]} "{name}" not found') from None

    def list(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """Read the objects of a kind, of one namespace or of all, that selectors match."""
        return [
            found
            for (its_kind, its_namespace, _), found in list(self._objects.items())
            if its_kind == kind and namespace in ("", its_namespace) and matches(found, labels, fields)
        ]

    def patch(self, kind: Kind, namespace: str, name: str, change: Mapping[str, Any]) -> Object:
        """Merge a change into an object; None removes a field.

        Raises:
            ApiError: There is none, or the change names a version or a uid that the object does not have.
        """
        found = self.get(kind, namespace, name)
        wanted, its = change.get("metadata", {}), found["metadata"]
        if wanted.get("uid", its["uid"]) != its["uid"]:
            cause = f'metadata.uid: Invalid value: "{wanted["uid"]}": field is immutable'
            raise ApiError(422, "Invalid", f'{kind[1]} "{name}" is invalid: {cause}', cause)
        if wanted.get("resourceVersion", its["resourceVersion"]) != its["resourceVersion"]:
            said = f'Operation cannot be fulfilled on {kind[1]} "{name}": the object has been modified'
            raise ApiError(409, "Conflict", said)
        _merge(found, change)
        return self._note(kind, "MODIFIED", found)

    def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        uid: str = "",
        *,
        at_once: bool = False,
        keeps_owned: bool = False,
    ) -> Object:
        """Delete an object and all that it owns, unless that is kept for now.

        Raises:
            ApiError: There is none, or it has another uid.
        """
        found = self.get(kind, namespace, name)
        its_uid = found["metadata"]["uid"]
        if uid and uid != its_uid:
            said = f"the UID in the precondition ({uid}) does not match the UID in record ({its_uid})"
            raise ApiError(409, "Conflict", f'Operation cannot be fulfilled on {kind[1]} "{name}": {said}')
        for (other_kind, other_namespace, other_name), other in list(self._objects.items()):
            if not keeps_owned and any(
                owner["uid"] == its_uid for owner in other["metadata"].get("ownerReferences", ())
            ):
                self.delete(other_kind, other_namespace, other_name, at_once=at_once)
        if self.holds_deletions and not at_once:
            found["metadata"]["deletionTimestamp"] = now()
            return self._note(kind, "MODIFIED", found)
        del self._objects[kind, namespace, name]
        return self._note(kind, "DELETED", found)

    def forget(self) -> None:
        """Drop the history, as a server does with changes of five minutes ago."""
        self.version += 1
        self.forgotten = self.version

    def changes(self, kind: Kind, namespace: str, labels: str, fields: str, after: int) -> Iterator[Change]:
        """The changes of a kind after a version, oldest first."""
        for change in list(self.history):
            is_asked_for = change.kind == kind and namespace in ("", change.object["metadata"]["namespace"])
            if is_asked_for and change.version > after and matches(change.object, labels, fields):
                yield change

    def _note(self, kind: Kind, what: str, changed: Object) -> Object:
        self.version += 1
        changed["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Change(self.version, kind, what, copy.deepcopy(changed)))
        return changed


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def matches(found: Object, labels: str = "", fields: str = "") -> bool:
    """Whether an object matches a label selector and a field selector."""
    its_labels = found["metadata"].get("labels") or {}
    terms = re.findall(r"[^,(]+(?:\([^)]*\))?", labels)
    return all(_matches_labels(its_labels, term.strip()) for term in terms) and all(
        _field(found, path) == value for path, _, value in (term.partition("=") for term in fields.split(",") if term)
    )


def _matches_labels(labels: Mapping[str, str], term: str) -> bool:
    if among := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", term):
        key, how, values = among.groups()
        return (labels.get(key) in [value.strip() for value in values.split(",")]) == (how == "in")
    if "!=" in term:
        key, _, value = term.partition("!=")
        return labels.get(key) != value
    if "=" in term:
        key, _, value = term.replace("==", "=").partition("=")
        return labels.get(key) == value
    return term[1:] not in labels if term.startswith("!") else term in labels


def _field(found: Object, path: str) -> str:
    value: Any = found
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


def _merge(into: Object, change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
