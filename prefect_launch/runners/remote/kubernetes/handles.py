"""Handles of Kubernetes runs, and the notes of the places that a home has made some in.

A handle names an object for ever: its place (context and namespace), its kind, its uid and its name. The notes say
where an agent that starts again looks for what it has left.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from prefect_launch.runners.remote.kubernetes.watch import JOBS, Resource


class Place(NamedTuple):
    """Where runs are.

    Attributes:
        context: of the kubeconfig; empty: the agent's own.
        namespace: in it.
        resource: that they are objects of.
    """

    context: str
    namespace: str
    resource: Resource = JOBS


class KubernetesHandle(NamedTuple):
    """The handle of a run's object.

    Attributes:
        place: where it is.
        uid: of it, which no other object ever has.
        name: that its run has.
    """

    place: Place
    uid: str
    name: str

    def __str__(self) -> str:
        place = self.place
        context = [quote(place.context, safe="")] if place.context else []
        return "/".join([*context, place.namespace, str(place.resource), self.uid, self.name])

    @classmethod
    def parse(cls, text: str) -> KubernetesHandle:
        """Read what `str` gives."""
        *context, namespace, resource, uid, name = text.split("/")
        return cls(Place(unquote("".join(context)), namespace, Resource.parse(resource)), uid, name)


class PlaceNotes:
    """The places that a home has made runs in, each a file; blocks.

    Args:
        folder: of the notes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._noted: set[Place] = set()

    def add(self, place: Place) -> None:
        """Write a place down, once."""
        if place in self._noted:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps([place.context, place.namespace, str(place.resource)])
        (self._folder / quote(text, safe="")).touch()
        self._noted.add(place)

    def all(self) -> Collection[Place]:
        """Return all places that were written down."""
        if self._folder.is_dir():
            for note in self._folder.iterdir():
                context, namespace, resource = json.loads(unquote(note.name))
                self._noted.add(Place(context, namespace, Resource.parse(resource)))
        return frozenset(self._noted)
