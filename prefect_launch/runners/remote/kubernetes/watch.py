"""Watch of a namespace: the jobs that an agent follows there and their pods, by one list and one stream for each kind.

A stream begins at the version of a list. After each break it is resumed from the last version that it reported (events
and bookmarks). All is listed again after a silence that is too long for a living stream, and where the API has
forgotten that version (410). A run that is in doubt, such as one that was asked to stop, is listed whatever the streams
say.

Only what is followed is kept, and only what is read of it. An object that was deleted is kept as it was last, until its
run is forgotten: how its containers ended is known from nowhere else then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from prefect_launch.core.backoff import Backoff
from prefect_launch.core.supervision import restarted
from prefect_launch.errors import LaunchError, UnreachableError
from prefect_launch.runners.base import Labels, run_name
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient, Object, as_json, lines
from prefect_launch.runners.remote.kubernetes.errors import Answer, ExpiredError, OverloadedError, error_of
from prefect_launch.runners.remote.kubernetes.kinds import CUSTOM_KINDS, JOB
from prefect_launch.runners.remote.kubernetes.objects import BESIDE, RUNS

log = logging.getLogger(__name__)

#: How long the API keeps a stream open.
_STREAM_SECONDS: Final = 300
#: A living stream has a bookmark each minute.
_SILENCE_SECONDS: Final = 100.0
_FIRST_PAUSE_SECONDS: Final = 0.2
_MOST_PAUSE_SECONDS: Final = 5.0
#: A stream that has lasted so long was a success: the next pause is the first one again.
_LIVING_SECONDS: Final = 10.0
#: The longest pause that the API may ask for.
_MOST_ASKED_SECONDS: Final = 60.0
#: How many items a selector names; beyond that all are listed, and those that nobody follows are left out.
_SELECTED: Final = 50
_POD_SPEC: Final = ("nodeName", "terminationGracePeriodSeconds", "restartPolicy")
#: A container before the others that is always restarted is a sidecar.
_CONTAINER: Final = ("name", "restartPolicy")
_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "resourceVersion",
)


class Resource(NamedTuple):
    """A kind of object in the API.

    Attributes:
        plural: its name in paths, such as `jobs`.
        version: such as `v1`.
        group: such as `batch`; empty for the core.
    """

    plural: str
    version: str
    group: str = ""

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of one object, or of all in a namespace."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{base}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")

    def __str__(self) -> str:
        return ".".join(filter(None, self))

    @classmethod
    def of_kind(cls, made: Mapping[str, Any]) -> Resource | None:
        """Return what an object, or a reference to it, is of; None where that needs a description of its kind."""
        group, _, version = str(made.get("apiVersion")).rpartition("/")
        known = (one for one in (JOB, *CUSTOM_KINDS) if (one.group, one.kind) == (group, made.get("kind")))
        return next((cls(one.resource, version, group) for one in known), None)

    @classmethod
    def parse(cls, text: str) -> Resource:
        """Read what `str` gives, such as `jobs.v1.batch`."""
        plural, _, rest = text.partition(".")
        version, _, group = rest.partition(".")
        return cls(plural, version, group)


PODS: Final = Resource("pods", "v1")
JOBS: Final = Resource("jobs", "v1", "batch")


@dataclass
class Seen:
    """An object, as the API showed it last.

    Attributes:
        object: what is kept of it.
        is_gone: whether it has been deleted since.
    """

    object: Object
    is_gone: bool = False

    @property
    def version(self) -> int:
        """Its version, which grows."""
        return _version(self.object)


@dataclass
class SeenRun:
    """What is known of a run.

    Attributes:
        job: its Job or custom resource.
        pods: by name.
        changed: set at each change; clear it before you wait for it.
        is_known: whether it was asked for since it is followed.
        asked_at: the version of its job that its pods were asked for again at.
    """

    job: Seen | None = None
    pods: dict[str, Seen] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_known: bool = False
    asked_at: int = -1

    @property
    def live_job(self) -> Object | None:
        """Its job, while it exists."""
        return self.job.object if self.job is not None and not self.job.is_gone else None

    @property
    def live_pods(self) -> list[Object]:
        """Its existing pods; the oldest first."""
        return sorted((pod.object for pod in self.pods.values() if not pod.is_gone), key=_age)

    @property
    def all_pods(self) -> list[Object]:
        """Its pods, also those that are gone, as they were last; the oldest first."""
        return sorted((pod.object for pod in self.pods.values()), key=_age)

    @property
    def exists(self) -> bool:
        """Whether anything is, or was, there."""
        return self.job is not None or bool(self.pods)

    def put(self, resource: Resource, found: Object, *, is_gone: bool = False) -> bool:
        """Take an object as the API shows it; whether it is news."""
        name = found["metadata"]["name"]
        known = self.pods.get(name) if resource == PODS else self.job
        if known is not None and (_version(found), is_gone) <= (known.version, known.is_gone):
            return False
        seen = Seen(trimmed(resource, found), is_gone)
        if resource == PODS:
            self.pods[name] = seen
        elif known is not None and _uid(known.object) != _uid(found):
            # Another job has taken the name: what is kept of the older one's pods says nothing of it.
            self.pods = {key: pod for key, pod in self.pods.items() if not pod.is_gone}
            self.job = seen
        else:
            self.job = seen
        return True


class NamespaceWatch:
    """The runs that are followed in one namespace.

    Args:
        client: of the cluster.
        namespace: to look at.
        changed: is called at each change of a run, with its name, and the resource and uid of its object.
    """

    def __init__(self, client: KubernetesClient, namespace: str, changed: Callable[[str, Resource, str], None]) -> None:
        self._client = client
        self._namespace = namespace
        self._changed = changed
        self._runs: dict[str, SeenRun] = {}
        self._streams: dict[Resource, _Stream] = {}

    async def look(
        self, resource: Resource, names: Collection[str], doubted: Collection[str] = ()
    ) -> Mapping[str, SeenRun]:
        """Return runs by their names, and follow them from now on.

        Args:
            resource: that they are objects of.
            names: of the runs.
            doubted: those of them that are asked for again: a stream may be silent because its connection is dead.

        Raises:
            LaunchError: when what is known may be out of date, since the API does not answer.
        """
        for name in names:
            self._runs.setdefault(name, SeenRun())
        await asyncio.gather(*(self._stream(one).ready() for one in (PODS, resource)))
        unknown = [name for name in names if name in doubted or not self._runs[name].is_known]
        if unknown:
            await self._fill(resource, unknown)
        return {name: self._runs[name] for name in names if name in self._runs}

    async def refresh(self, resource: Resource, name: str) -> SeenRun:
        """Return a run as the API shows it now."""
        run = self._runs.setdefault(name, SeenRun())
        await self._fill(resource, [name])
        return run  # It may be forgotten by now.

    def put(self, resource: Resource, job: Object) -> None:
        """Follow the run of a job that the API has just shown, and take it as it is shown."""
        run = self._runs.setdefault(job["metadata"]["name"], SeenRun())
        # A job that was just made has no pods; of one that was there already, they are to be asked for.
        run.is_known = run.is_known or not job.get("status")
        self._note(run, run.put(resource, job))

    def run(self, name: str) -> SeenRun | None:
        """Return a run that is followed, without asking anybody."""
        return self._runs.get(name)

    def forget(self, name: str) -> None:
        """Follow a run no longer."""
        run = self._runs.pop(name, None)
        if run is not None:
            run.changed.set()

    async def aclose(self) -> None:
        """End the streams."""
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            await stream.aclose()

    # --- inside ---

    def _stream(self, resource: Resource) -> _Stream:
        stream = self._streams.get(resource)
        if stream is None or not stream.is_of_this_loop:
            stream = self._streams[resource] = _Stream(self._client, self._namespace, resource, self)
        return stream

    async def _fill(self, resource: Resource, names: Collection[str]) -> None:
        """List these runs: what they miss then is not there."""
        items = {_item_of(name) for name in names}
        selector = f"{Labels.ITEM} in ({','.join(sorted(items))}),{RUNS}" if len(items) <= _SELECTED else RUNS
        # The job first: its pods are never older than it.
        for one in (resource, PODS):
            found = await self._list(one, selector)
            self.take_list(one, found, names)
        for name in names:
            if (run := self._runs.get(name)) is not None:
                if run.job is None and (left := object_left_by(resource, run.live_pods)) is not None:
                    run.job = Seen(left, is_gone=True)
                run.is_known = run.exists

    async def _list(self, resource: Resource, selector: str) -> Object:
        path = resource.path(self._namespace)
        what = f"list the {resource.plural} of the namespace {self._namespace}"
        return await self._client.list(path, {"labelSelector": selector}, what=what)

    async def list_all(self, resource: Resource) -> Object:
        """List all objects of a kind that an agent has made."""
        return await self._list(resource, RUNS)

    def take_list(self, resource: Resource, found: Object, names: Iterable[str] | None = None) -> None:
        """Take a list: what is followed, older than the list and not in it, is gone."""
        there: set[tuple[str, str]] = set()
        for one in found["items"]:
            there.add((run_of(one), one["metadata"]["name"]))
            self.take(resource, one)
        version = _version(found)
        for name in list(self._runs) if names is None else names:
            run = self._runs.get(name)
            if run is None:
                continue
            kept = run.pods.values() if resource == PODS else [run.job] if run.job is not None else []
            for one in kept:
                is_listed = resource == PODS or one.object["_of"] == str(resource)
                is_there = (name, one.object["metadata"]["name"]) in there
                if is_listed and not is_there and not one.is_gone and one.version <= version:
                    one.is_gone = True
                    self._note(run, True)

    def take(self, resource: Resource, found: Object, *, is_gone: bool = False) -> None:
        """Take an object, if it is of a run that is followed."""
        run = self._runs.get(run_of(found))
        if run is not None:
            self._note(run, run.put(resource, found, is_gone=is_gone))

    def _note(self, run: SeenRun, is_news: bool) -> None:
        if is_news:
            run.changed.set()
            if run.job is not None:
                job = run.job.object
                self._changed(job["metadata"]["name"], Resource.parse(job["_of"]), _uid(job))


class _Stream:
    """The stream of events of one kind of object in one namespace, with its list."""

    def __init__(self, client: KubernetesClient, namespace: str, resource: Resource, watch: NamespaceWatch) -> None:
        self._client, self._namespace, self._resource, self._watch = client, namespace, resource, watch
        self._problem: LaunchError | None = None
        self._told = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(restarted(f"watch of {resource.plural} in {namespace}", self._run))

    @property
    def is_of_this_loop(self) -> bool:
        """Whether it lives."""
        return self._loop is asyncio.get_running_loop() and not self._task.done()

    async def ready(self) -> None:
        """Wait until it has listed everything; raise why it cannot."""
        await self._told.wait()
        if self._problem is not None:
            raise self._problem

    async def aclose(self) -> None:
        """End it."""
        if self._loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        version, pauses = "", Backoff(_FIRST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS)
        while True:
            begun, asked_pause = self._loop.time(), 0.0
            try:
                if not version:
                    found = await self._watch.list_all(self._resource)
                    self._watch.take_list(self._resource, found)
                    version = str(found["metadata"]["resourceVersion"])
                version = await self._follow(version)
            except ExpiredError:
                version = ""
            except _CutError as error:
                # It has been a living stream: continue from its last version, without a log line.
                version = error.version
            except LaunchError as error:
                self._problem = error
                self._told.set()
                asked_pause = (isinstance(error, OverloadedError) and error.retry_after) or 0.0
            if self._problem is None and self._loop.time() - begun >= _LIVING_SECONDS:
                pauses.reset()
            await asyncio.sleep(max(pauses.next(), min(asked_pause, _MOST_ASKED_SECONDS)))

    async def _follow(self, version: str) -> str:
        """Follow the stream until it ends; return the version to continue from."""
        query: dict[str, str | int] = {
            "watch": "true",
            "labelSelector": RUNS,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": _STREAM_SECONDS,
        }
        path = self._resource.path(self._namespace)
        what = f"watch the {self._resource.plural} of the namespace {self._namespace}"
        is_open = False
        try:
            async with self._client.stream(path, query, idle_seconds=_SILENCE_SECONDS, what=what) as pieces:
                is_open, self._problem = True, None
                self._told.set()
                async for batch in lines(pieces):
                    for line in batch:
                        version = self._take(as_json(line), version)
        except UnreachableError as error:
            if not is_open:
                raise
            log.debug("the stream of %s was cut: %s", self._resource.plural, error)
            # After a silence nobody knows what was not told: all is listed again.
            is_silent = isinstance(error.__cause__, asyncio.TimeoutError)
            raise _CutError("" if is_silent else version) from error
        return version

    def _take(self, event: Object, version: str) -> str:
        kind, found = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            answer = Answer.read(int(found.get("code") or 500), _dump(found), {})
            raise error_of(answer, f"watch the {self._resource.plural}", "the watched address")
        if kind != "BOOKMARK":
            self._watch.take(self._resource, found, is_gone=kind == "DELETED")
        return str((found.get("metadata") or {}).get("resourceVersion") or version)


class _CutError(LaunchError):
    """A stream broke while it was read."""

    def __init__(self, version: str) -> None:
        super().__init__("the stream was cut")
        self.version = version


def run_of(found: Mapping[str, Any]) -> str:
    """Return the name of the run that an object is of, by its labels; empty when it is of none."""
    labels = (found.get("metadata") or {}).get("labels") or {}
    item, attempt = labels.get(Labels.ITEM), labels.get(Labels.ATTEMPT)
    return run_name(item, attempt) if item and attempt and BESIDE not in labels else ""


def object_left_by(resource: Resource, pods: Sequence[Object]) -> Object | None:
    """Return what its pods tell of a run's object that is gone; None where they do not tell that it was of a kind.

    A deletion of an object may leave its pods, and a node that is away keeps those that it has: they may still run.
    """
    for pod in pods:
        metadata = pod["metadata"]
        labels, name = metadata.get("labels") or {}, run_of(pod)
        owners = [*(metadata.get("ownerReferences") or ())]
        if labels.get("job-name") == name:
            # Pods that were left on purpose have no owner any more.
            owners.append({"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": labels.get("controller-uid")})
        for owner in owners:
            if owner.get("name") == name and owner.get("uid") and Resource.of_kind(owner) == resource:
                named = {"name": name, "namespace": metadata.get("namespace"), "uid": owner["uid"]}
                told = {key: metadata.get(key) or {} for key in ("labels", "annotations")}
                return trimmed(resource, {**owner, "metadata": {**named, **told}})
    return None


def trimmed(resource: Resource, found: Mapping[str, Any]) -> Object:
    """Return what is read of an object: its templates and the history of its fields are most of its size."""
    metadata = found.get("metadata") or {}
    spec = found.get("spec") or {}
    if resource == PODS:
        containers = {
            key: [{name: one[name] for name in _CONTAINER if name in one} for one in spec.get(key) or ()]
            for key in ("initContainers", "containers")
        }
        spec = {key: spec[key] for key in _POD_SPEC if key in spec} | containers
    elif resource == JOBS:
        spec = {key: value for key, value in spec.items() if key not in ("template", "selector")}
    return {
        "apiVersion": found.get("apiVersion"),
        "kind": found.get("kind"),
        "metadata": {key: metadata[key] for key in _METADATA if key in metadata},
        "spec": spec,
        "status": found.get("status") or {},
        "_of": str(resource),
    }


def _item_of(name: str) -> str:
    return name.removeprefix(run_name("", "")[:-1]).rpartition("-")[0]


def _version(found: Mapping[str, Any]) -> int:
    version = (found.get("metadata") or {}).get("resourceVersion") or 0
    with suppress(ValueError):
        return int(version)
    return 0


def _uid(found: Mapping[str, Any]) -> str:
    return str((found.get("metadata") or {}).get("uid") or "")


def _age(pod: Mapping[str, Any]) -> tuple[str, str]:
    metadata = pod.get("metadata") or {}
    return str(metadata.get("creationTimestamp") or ""), str(metadata.get("name") or "")


def _dump(found: Object) -> bytes:
    import json

    return json.dumps(found).encode()
