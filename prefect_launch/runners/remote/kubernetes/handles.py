"""Handles of Kubernetes runs, and a home's notes of its runs and their places.

A handle always names the same object: its place (context and namespace), its kind, its uid and its name. The notes say
where an agent that starts again looks for what it has left, and what it has left where it cannot look.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from prefect_launch.runners.remote.kubernetes.watch import JOBS, Resource


class Place(NamedTuple):
    """Where runs are.

    Attributes:
        context: of the kubeconfig, or of the pod: by its name, since another may be the current one tomorrow.
        namespace: in it.
        resource: that they are objects of.
    """

    context: str
    namespace: str
    resource: Resource = JOBS

    def __str__(self) -> str:
        return "/".join([quote(self.context, safe=""), self.namespace, str(self.resource)])


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
        return f"{self.place}/{self.uid}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> KubernetesHandle:
        """Read what `str` gives.

        Raises:
            ValueError: for another text.
        """
        context, namespace, resource, uid, name = text.split("/")
        return cls(Place(unquote(context), namespace, Resource.parse(resource)), uid, name)


class NotedRun(NamedTuple):
    """A run that a home has made.

    Attributes:
        handle: of it.
        labels: that it was made with.
    """

    handle: KubernetesHandle
    labels: Mapping[str, str]


class RunNotes:
    """The places that a home has made runs in, and the runs that it has not removed: each a file; blocks.

    Args:
        folder: of the notes.
    """

    def __init__(self, folder: Path) -> None:
        self._places, self._runs = folder / "places", folder / "runs"
        self._noted: set[Place] = set()

    def add_place(self, place: Place) -> None:
        """Write a place down, once: before anything is made there."""
        if place in self._noted:
            return
        self._places.mkdir(parents=True, exist_ok=True)
        text = json.dumps([place.context, place.namespace, str(place.resource)])
        (self._places / quote(text, safe="")).touch()
        self._noted.add(place)

    def places(self) -> Collection[Place]:
        """Return all places that were written down."""
        if self._places.is_dir():
            for note in self._places.iterdir():
                context, namespace, resource = json.loads(unquote(note.name))
                self._noted.add(Place(context, namespace, Resource.parse(resource)))
        return frozenset(self._noted)

    def add_run(self, run: NotedRun) -> None:
        """Write a run down that was made and is not released yet."""
        self._runs.mkdir(parents=True, exist_ok=True)
        # A run whose note is not whole was never released.
        self._note(run.handle).write_text(json.dumps([str(run.handle), dict(run.labels)]), encoding="utf-8")

    def drop_run(self, handle: KubernetesHandle) -> None:
        """Forget a run that was removed."""
        self._note(handle).unlink(missing_ok=True)

    def runs_in(self, places: Collection[Place], labels: Mapping[str, str]) -> list[NotedRun]:
        """Return the runs of some places with these labels that were written down."""
        found = []
        for note in self._runs.iterdir() if self._runs.is_dir() else ():
            with suppress(FileNotFoundError, ValueError):
                handle, its_labels = json.loads(note.read_text(encoding="utf-8"))
                found.append(NotedRun(KubernetesHandle.parse(handle), its_labels))
        return [run for run in found if run.handle.place in places and labels.items() <= run.labels.items()]

    def _note(self, handle: KubernetesHandle) -> Path:
        return self._runs / quote(handle.uid, safe="")
