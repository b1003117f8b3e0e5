"""Runner of the resource `kubernetes`: a run is a Job, or a custom resource, of the cluster that the agent is let into.

An object is created held, recorded, then released. One watch a namespace tells of all runs there and their pods. A stop
deletes the object and sees that no container of it runs any more. Everything else that a run needs is owned by its
object, so that it goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio

from prefect_launch.core.backoff import Backoff
from prefect_launch.core.output_limits import OUTPUTS_FILE, LeftOut
from prefect_launch.errors import AgentConfigError, InfrastructureError, LaunchError, UnreachableError, clause
from prefect_launch.jobs.model import SourceKind
from prefect_launch.registries.base import DOCKER_HUB, TOKEN_USER, parse_reference
from prefect_launch.runners.base import ExecPlan, Finding, Labels, RunPlan
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Amount, Quantity
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.jobs import JobChange, LogPart, RemoteJob, RemoteState, RemoteStatus, RunHandle
from prefect_launch.runners.remote.kubernetes.amounts import amounts_of
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient, Object
from prefect_launch.runners.remote.kubernetes.code import pack_code
from prefect_launch.runners.remote.kubernetes.diagnosis import diagnose_cluster
from prefect_launch.runners.remote.kubernetes.errors import ConflictError, NotThereError
from prefect_launch.runners.remote.kubernetes.events import RunEvents
from prefect_launch.runners.remote.kubernetes.fill_rules import fill_rule
from prefect_launch.runners.remote.kubernetes.handles import KubernetesHandle, NotedRun, Place, RunNotes
from prefect_launch.runners.remote.kubernetes.holding import Hold, release_patch
from prefect_launch.runners.remote.kubernetes.kinds import JOB
from prefect_launch.runners.remote.kubernetes.login import POD_CONTEXT
from prefect_launch.runners.remote.kubernetes.logs import Container, RunLog, containers_of
from prefect_launch.runners.remote.kubernetes.objects import (
    build_objects,
    check_plan,
    labels_of,
    preview_objects,
    selector_of,
)
from prefect_launch.runners.remote.kubernetes.options import (
    OPTIONS,
    SUBMITTER_OPTIONS,
    KubernetesOptions,
    check_options,
    check_submitter_options,
    check_together,
    one_container_job,
    own_image,
    read_options,
    service_kinds,
)
from prefect_launch.runners.remote.kubernetes.pods import (
    ends_of,
    first_running_container,
    has_started,
    name_of,
    outputs_message,
)
from prefect_launch.runners.remote.kubernetes.problems import PlaceProblems
from prefect_launch.runners.remote.kubernetes.quantities import QUANTITIES
from prefect_launch.runners.remote.kubernetes.rules import check_name, check_object_name
from prefect_launch.runners.remote.kubernetes.run_status import (
    active_pods,
    has_object_ended,
    is_leaving,
    kind_in,
    pods_of_claim,
    status_of_run,
)
from prefect_launch.runners.remote.kubernetes.set_inside import set_inside
from prefect_launch.runners.remote.kubernetes.short_options import check_job_image, check_placing
from prefect_launch.runners.remote.kubernetes.status import is_short_of_pods
from prefect_launch.runners.remote.kubernetes.submission import Kinds, create_run, is_incomplete
from prefect_launch.runners.remote.kubernetes.watch import (
    PODS,
    NamespaceWatch,
    Resource,
    Seen,
    SeenRun,
    object_left_by,
    run_of,
    trimmed,
)
from prefect_launch.spec.option_names import normalise_options

log = logging.getLogger(__name__)

#: Servers from this version on hold a Job by `suspend`.
_SUSPENDS: Final = (1, 22)
#: How long a deleted object may take to be gone.
_GONE_SECONDS: Final = 60.0
#: How long the pods of an object that has ended may still run before they are deleted.
_LATE_SECONDS: Final = 30.0
#: How often a run that was asked to stop is read again, whatever the watch says.
_DOUBT_SECONDS: Final = 3.0
_HUB_KEY: Final = "https://index.docker.io/v1/"


class Cluster:
    """What a runner has of one cluster: the connection, and a watch of each namespace.

    Args:
        context: as `load_login` takes it.
    """

    def __init__(self, context: str) -> None:
        self.context = context
        self.client = KubernetesClient(context)
        self.kinds = Kinds(self.client)
        self._watches: dict[str, NamespaceWatch] = {}
        self._hold: Hold | None = None

    def watch(self, namespace: str, changed: Any) -> NamespaceWatch:
        """Return the watch of a namespace."""
        if namespace not in self._watches:
            self._watches[namespace] = NamespaceWatch(self.client, namespace, changed)
        return self._watches[namespace]

    async def hold(self) -> Hold:
        """Return how the server holds Jobs."""
        if self._hold is None:
            self._hold = Hold.SUSPEND if await self.client.version() >= _SUSPENDS else Hold.PARALLELISM
        return self._hold

    async def aclose(self) -> None:
        """End the watches, and close the connections."""
        for watch in self._watches.values():
            await watch.aclose()
        await self.client.aclose()


class KubernetesRunner(RemoteRunner):
    """Runs jobs on Kubernetes.

    Args:
        home: the agent's folder.
    """

    name: ClassVar[str] = "kubernetes"
    removed_message: ClassVar[str] = "Kubernetes object deleted"
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    needs_image: ClassVar[bool] = True
    submitter_options: ClassVar[frozenset[str]] = SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = OPTIONS
    quantities: ClassVar[Mapping[str, Quantity]] = QUANTITIES
    separates_streams: ClassVar[bool] = False
    keeps_log_bytes: ClassVar[bool] = False
    returns_files: ClassVar[bool] = False
    max_submitted: ClassVar[int] = 500
    can_hold: ClassVar[bool] = True
    has_unique_handles: ClassVar[bool] = True
    tells_changes: ClassVar[bool] = True
    #: What the watch does not show is asked for: the API server is never behind itself.
    lag_seconds: ClassVar[float] = 0.0
    #: How Jobs are held; None: as the server can best.
    hold: ClassVar[Hold | None] = None

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._clusters: dict[str, Cluster] = {}
        self._notes = RunNotes(home / "remote" / self.name)
        self._problems = PlaceProblems()
        self._changes: defaultdict[str, _Changes] = defaultdict(_Changes)
        self._late: dict[KubernetesHandle, float] = {}
        self._stopping: dict[KubernetesHandle, float] = {}
        self._events = RunEvents(lambda context: self._cluster(context).client)

    # --- options ---

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        return check_options(options)

    @classmethod
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        check_submitter_options(options)

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        return fill_rule(option, keys, text)

    @classmethod
    def set_inside(cls, options: Mapping[str, Any]) -> dict[str, str]:
        return set_inside(options)

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        check_together(options)
        check_placing(options)

    @classmethod
    def amounts(cls, options: Mapping[str, Any]) -> dict[str, Amount]:
        return amounts_of(options)

    @classmethod
    def own_image(cls, options: Mapping[str, Any]) -> str | None:
        return own_image(options)

    @classmethod
    def check_image(cls, image: str, options: Mapping[str, Any]) -> None:
        check_job_image(image, options)

    def check(self, plan: RunPlan) -> None:
        check_plan(plan)

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        return preview_objects(plan)

    async def ping(self) -> None:
        await self.ping_place("")

    def place_of(self, options: Mapping[str, Any]) -> str:
        return _plain(normalise_options(options).get("context")) or ""

    async def ping_place(self, place: str) -> None:
        await self._cluster(place).client.version()

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        written = normalise_options(options)
        metadata = written.get("metadata")
        namespace = _plain((metadata if isinstance(metadata, Mapping) else {}).get("namespace"))
        cluster = self._cluster(_plain(written.get("context")) or "")
        try:
            kind = (_plain(written.get("apiversion")) or "batch/v1", _plain(written.get("kind")) or "Job")
            resource = await cluster.kinds.resource(*kind)
            served = [await cluster.kinds.resource(*one) for one in sorted(service_kinds(written))]
        except LaunchError as error:
            return [Finding(name="Kubernetes", is_ok=False, detail=str(error))]
        named = written.get("image-pull-secret") or ()
        secrets = [one for one in ([named] if isinstance(named, str) else named) if _plain(one)]
        chosen = namespace or _plain(written.get("namespace"))
        return await diagnose_cluster(cluster.client, chosen, resource, services=served, secrets=secrets)

    # --- what the cluster offers ---

    async def submit(self, plan: RunPlan) -> RemoteJob:
        options = read_options(plan.options)
        place = await self._place(options)
        cluster = self._cluster(place.context)
        hold = self.hold or await cluster.hold()
        pull_auths = await self._pull_auths(plan, options.image_pull_secret)
        # Last, for it takes the longest: nothing that the cluster, or the plan itself, is refused for comes after it.
        code = await anyio.to_thread.run_sync(pack_code, plan)
        made = build_objects(plan, hold=hold, code=code, pull_auths=pull_auths, stop_seconds=self.stop_seconds)
        await anyio.to_thread.run_sync(self._notes.add_place, place)
        job = await create_run(cluster.client, cluster.kinds, made, place.namespace, place.resource)
        handle = KubernetesHandle(place, job["metadata"]["uid"], plan.name)
        await anyio.to_thread.run_sync(self._notes.add_run, NotedRun(handle, labels_of(job)))
        self._watch(place).put(place.resource, job)
        return await self._seen(handle, self._run(handle))

    async def release(self, handle: str) -> None:
        parsed = KubernetesHandle.parse(handle)
        place = parsed.place
        cluster, run = self._cluster(place.context), self._run(parsed)
        path = place.resource.path(place.namespace, parsed.name)
        job = run.live_job or await cluster.client.find(path, what=f"read {parsed.name}")
        if job is None or job["metadata"]["uid"] != parsed.uid:
            return
        patch = release_patch(job, kind_in(job))
        if patch is not None:
            patch = {**patch, "metadata": {**patch["metadata"], "uid": parsed.uid}}
            try:
                released = await cluster.client.patch(path, patch, what=f"release {parsed.name}")
            except (NotThereError, ConflictError):
                return
            self._watch(place).put(place.resource, released)

    def part_of(self, handle: str) -> str:
        return str(KubernetesHandle.parse(handle).place)

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob | LaunchError]:
        parsed = {handle: KubernetesHandle.parse(handle) for handle in handles}
        of_place: dict[Place, list[KubernetesHandle]] = defaultdict(list)
        for one in parsed.values():
            of_place[one.place].append(one)
        looks = await asyncio.gather(*(self._look(place, runs) for place, runs in of_place.items()))
        found = {handle: job for look in looks for handle, job in look.items()}
        return {handle: job for handle, one in parsed.items() if (job := found.get(one)) is not None}

    async def _look(
        self, place: Place, handles: Collection[KubernetesHandle]
    ) -> dict[KubernetesHandle, RemoteJob | LaunchError]:
        """Return the runs of one place that are there; why it cannot be seen now, of each that cannot."""
        try:
            doubted = [one.name for one in handles if self._is_doubted(one)]
            runs = await self._watch(place).look(place.resource, [one.name for one in handles], doubted)
        except LaunchError as error:
            self._problems.note(place, error)
            return dict.fromkeys(handles, error)
        self._problems.clear(place)

        async def see(handle: KubernetesHandle, run: SeenRun) -> RemoteJob | LaunchError | None:
            try:
                return await self._seen_or_none(handle, run, is_ours=True)
            except LaunchError as error:
                return error

        there = [(one, run) for one in handles if (run := runs.get(one.name)) is not None]
        jobs = await asyncio.gather(*(see(one, run) for one, run in there))
        return {one: job for (one, _), job in zip(there, jobs, strict=True) if job is not None}

    def _is_doubted(self, handle: KubernetesHandle) -> bool:
        """Whether a run was asked to stop a while ago: then its end is not left to a stream."""
        due, now = self._stopping.get(handle, math.inf), time.monotonic()
        if now < due:
            return False
        self._stopping[handle] = now + _DOUBT_SECONDS
        return True

    async def changes(self, part: str = "") -> AsyncIterator[JobChange]:
        changes = self._changes[part] = _Changes()
        yield JobChange()
        while True:
            for handle in await changes.next():
                yield JobChange(str(handle), await self._changed_job(handle))

    async def _changed_job(self, handle: KubernetesHandle) -> RemoteJob | None:
        """Return a run that has changed; None where it is gone, or cannot be seen now: a poll says which."""
        run = self._watch(handle.place).run(handle.name)
        try:
            return None if run is None else await self._seen_or_none(handle, run)
        except LaunchError:
            return None

    async def display_name(self, handle: str) -> str:
        return KubernetesHandle.parse(RunHandle.parse(handle).job).name

    async def seek(self, where: str | RunPlan) -> None:
        with suppress(ValueError, LaunchError):
            if isinstance(where, RunPlan):
                place = await self._place(read_options(where.options))
            else:
                place = KubernetesHandle.parse(RunHandle.parse(where).job).place
                check_name("namespace", place.namespace)
                check_object_name("resource", str(place.resource))
                await self._cluster(place.context).client.namespace()  # An agent elsewhere may have other contexts.
            await anyio.to_thread.run_sync(self._notes.add_place, place)

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        noted = await anyio.to_thread.run_sync(self._notes.places)
        places = await self._places(noted)
        looks = await asyncio.gather(*(self._list_or_why(place, labels) for place in places))
        found: list[RemoteJob] = []
        hidden: dict[Place, LaunchError] = {}
        for place, look in zip(places, looks, strict=True):
            if isinstance(look, list):
                self._problems.clear(place)
                found += look
            elif not noted:
                raise look
            elif place in noted or not isinstance(look, AgentConfigError):
                # Where nothing was ever made, there may be no right to look.
                hidden[place] = look
        unreachable = [error for error in hidden.values() if isinstance(error, UnreachableError)]
        if unreachable and len(hidden) == len(places):
            raise unreachable[0]
        for place, error in hidden.items():
            self._problems.note(place, error)
        if hidden:
            # The runs of this home there count as running.
            runs = await anyio.to_thread.run_sync(self._notes.runs_in, frozenset(hidden), labels)
            found += [_unseen(run, hidden[run.handle.place]) for run in runs]
        return found

    async def _places(self, noted: Collection[Place]) -> list[Place]:
        """Return where runs of this home can be: where it has made some, and where its login leads."""
        try:
            cluster = await self._named_cluster("")
            own = Place(cluster.context, await cluster.client.namespace())
        except AgentConfigError:
            # There may be no such login where queues name theirs.
            if not noted:
                raise
            return [*noted]
        return [*noted, *([own] if own not in noted else [])]

    async def _list_or_why(self, place: Place, labels: Mapping[str, str]) -> list[RemoteJob] | LaunchError:
        try:
            return await self._list(place, labels)
        except LaunchError as error:
            return error

    async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        parsed = KubernetesHandle.parse(handle)
        place = parsed.place
        looked = await self._watch(place).look(place.resource, [parsed.name])
        run = looked.get(parsed.name)
        if run is None:
            return
        log = RunLog(
            self._cluster(place.context).client,
            place.namespace,
            run,
            after,
            containers=partial(_containers, run, parsed.uid),
            has_ended=partial(_has_ended, run, parsed.uid),
        )
        async for part in log.read():
            yield part

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        parsed = KubernetesHandle.parse(handle)
        place = parsed.place
        self._stopping[parsed] = time.monotonic() + _DOUBT_SECONDS
        await self._delete_object(parsed)
        # At 0 the API forgets a pod at once, whether it has ended or not.
        grace = max(1, math.ceil(grace_seconds))
        # Twice: a pod that was just being made exists by the second time.
        for _ in range(2):
            run = await self._watch(place).refresh(place.resource, parsed.name)
            if (job := _job_of(run, parsed.uid)) is None:
                return
            pods = pods_of_claim(job, run.live_pods)
            await asyncio.gather(*(self._delete_pod(place, pod, grace) for pod in pods))

    async def delete(self, handle: str) -> None:
        parsed = KubernetesHandle.parse(handle)
        place = parsed.place
        if _job_of(self._run(parsed), parsed.uid) is None:
            await self._watch(place).refresh(place.resource, parsed.name)  # Whose pods are its own, it says itself.
        await self._delete_object(parsed)
        left_run = await self._watch(place).refresh(place.resource, parsed.name)
        if left_run.live_job is None and (job := _job_of(left_run, parsed.uid)) is not None:
            # Nobody else removes what was left by an object that was gone before.
            await asyncio.gather(*(self._delete_pod(place, pod) for pod in pods_of_claim(job, left_run.live_pods)))
        due = time.monotonic() + _GONE_SECONDS
        pauses = Backoff(0.1, 2.0)
        while left := await self._left_of(parsed):
            if time.monotonic() >= due:
                raise InfrastructureError(
                    f"{parsed.name} is still there {_GONE_SECONDS:g} s after it was deleted: {left}. Look at it there."
                )
            await pauses.sleep()
        await anyio.to_thread.run_sync(self._notes.drop_run, parsed)
        self._late.pop(parsed, None)
        self._stopping.pop(parsed, None)
        self._events.forget(parsed)
        run = self._watch(place).run(parsed.name)
        if run is not None and (run.job is None or run.job.object["metadata"]["uid"] == parsed.uid):
            self._watch(place).forget(parsed.name)

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        run = self._run(KubernetesHandle.parse(handle))
        if run.job is not None:
            message = outputs_message(pods_of_claim(run.job.object, run.all_pods))
            if message is not None:
                path = anyio.Path(plan.output_dir / OUTPUTS_FILE)
                await path.write_text(message, encoding="utf-8")
        return LeftOut()

    async def exec_plan(self, handle: str, command: Sequence[str], *, has_terminal: bool) -> ExecPlan:
        parsed = KubernetesHandle.parse(RunHandle.parse(handle).job)
        place = parsed.place._replace(context=await self._context_here(parsed.place.context))
        run = await self._watch(place).refresh(place.resource, parsed.name)
        job = _job_of(run, parsed.uid)
        found = job and first_running_container(pods_of_claim(job, run.live_pods))
        if not found:
            raise InfrastructureError(
                f"No container of {parsed.name} runs in the namespace {place.namespace} of {place.context}: it has"
                " ended, or is in another cluster. Choose its context in KUBECONFIG, and try again."
            )
        if shutil.which("kubectl") is None:
            raise AgentConfigError("This machine has no kubectl, which runs commands in pods. Install it.")
        pod, container = found
        context = [] if place.context == POD_CONTEXT else [f"--context={place.context}"]
        terminal = ["--tty"] if has_terminal else []
        where = [*context, f"--namespace={place.namespace}", "--stdin", *terminal, pod, f"--container={container}"]
        return ExecPlan(argv=("kubectl", "exec", *where, "--", *command))

    async def _context_here(self, context: str) -> str:
        """Return the name that a run's context has on this machine; its current one, where it knows none of that name.

        That it is the same cluster, the uid of the run's object says.
        """
        try:
            return await self._cluster(context).client.context()
        except AgentConfigError:
            return await self._cluster("").client.context()

    async def annotate(self, handle: str, annotations: Mapping[str, str | None]) -> Mapping[str, str] | None:
        """Set annotations of a job's object, and take away those without a value.

        Returns:
            All that it has then; None when it is gone.
        """
        parsed = KubernetesHandle.parse(handle)
        place = parsed.place
        patch = {"metadata": {"uid": parsed.uid, "annotations": dict(annotations)}}
        path = place.resource.path(place.namespace, parsed.name)
        try:
            found = await self._cluster(place.context).client.patch(path, patch, what=f"mark {parsed.name}")
        except (NotThereError, ConflictError):
            return None
        return dict(found["metadata"].get("annotations") or {})

    def last_message(self, handle: str) -> str:
        """Return the last termination message that a container of an ended job that was watched has left."""
        run = self._run(KubernetesHandle.parse(handle))
        if run.job is None:
            return ""
        ends = [end for pod in pods_of_claim(run.job.object, run.all_pods) for end in ends_of(pod)]
        return next((end.message for end in reversed(ends) if end.message), "")

    async def aclose(self) -> None:
        await super().aclose()
        for cluster in self._clusters.values():
            await cluster.aclose()
        self._clusters.clear()

    # --- inside ---

    def _cluster(self, context: str) -> Cluster:
        if context not in self._clusters:
            self._clusters[context] = Cluster(context)
        return self._clusters[context]

    async def _place(self, options: KubernetesOptions) -> Place:
        """Return where a run with these options goes."""
        cluster = await self._named_cluster(options.context or "")
        namespace = options.namespace or await cluster.client.namespace()
        manifest = options.manifest or one_container_job()
        resource = await cluster.kinds.resource(manifest["apiVersion"], manifest["kind"])
        return Place(cluster.context, namespace, resource)

    async def _named_cluster(self, context: str) -> Cluster:
        """Return the cluster of a context by the name that it has now, where the current one is meant."""
        return self._cluster(context or await self._cluster("").client.context())

    def _watch(self, place: Place) -> NamespaceWatch:
        return self._cluster(place.context).watch(place.namespace, partial(self._note_change, place))

    def _note_change(self, place: Place, name: str, resource: Resource, uid: str) -> None:
        place = place._replace(resource=resource)
        self._changes[str(place)].add(KubernetesHandle(place, uid, name))

    def _run(self, handle: KubernetesHandle) -> SeenRun:
        return self._watch(handle.place).run(handle.name) or SeenRun()

    async def _list(self, place: Place, labels: Mapping[str, str]) -> list[RemoteJob]:
        """List the runs of a place that have these labels."""
        client = self._cluster(place.context).client
        query = {"labelSelector": selector_of(labels)}
        resource = place.resource
        what = f"list the {resource.plural} of the namespace {place.namespace}"
        jobs = await client.list(resource.path(place.namespace), query, what=what)
        pods = await client.list(PODS.path(place.namespace), query, what="list their pods")
        objects = {job["metadata"]["name"]: Seen(trimmed(resource, job)) for job in jobs["items"]}
        of_run: dict[str, list[Object]] = defaultdict(list)
        for pod in pods["items"]:
            of_run[run_of(pod)].append(trimmed(PODS, pod))
        for name in of_run.keys() - objects.keys():
            if (left := object_left_by(resource, of_run[name])) is not None:
                objects[name] = Seen(left, is_gone=True)
        found = []
        for name, seen in objects.items():
            if labels.items() <= labels_of(seen.object).items():
                run = SeenRun(job=seen, asked_at=seen.version)  # Its pods were listed after it.
                run.pods = {name_of(pod): Seen(pod) for pod in of_run[name]}
                found.append(await self._seen(KubernetesHandle(place, seen.object["metadata"]["uid"], name), run))
        return found

    async def _seen_or_none(self, handle: KubernetesHandle, run: SeenRun, *, is_ours: bool = False) -> RemoteJob | None:
        return None if _job_of(run, handle.uid) is None else await self._seen(handle, run, is_ours=is_ours)

    async def _seen(self, handle: KubernetesHandle, run: SeenRun, *, is_ours: bool = False) -> RemoteJob:
        """Return a run as the base of remote runners sees it.

        Args:
            handle: of it.
            run: as the watch sees it.
            is_ours: whether this agent follows it, and so ends what its object leaves running.
        """
        assert run.job is not None
        job = run.job.object
        labels = labels_of(job)
        is_stopped = False
        if run.job.is_gone or is_leaving(job):
            is_stopped = await self._is_stopped(str(RunHandle(str(handle), labels.get(Labels.CLAIM, ""))))
        status = status_of_run(run, is_stopped=is_stopped) or RemoteStatus(state=RemoteState.PENDING)
        if not run.job.is_gone and has_object_ended(run):
            at_work = active_pods(run)
            is_clear = run.pods and not at_work and status.exit is not None and status.exit.succeeded
            if run.asked_at < run.job.version and not is_clear:
                # The end of its object may be told before that of its pods, before why they have failed, or before
                # there are any.
                asked_at = run.job.version
                run = await self._watch(handle.place).refresh(handle.place.resource, handle.name)
                if run.job is None:
                    return RemoteJob(handle=str(handle), name=handle.name, labels=labels, status=status)
                run.asked_at = asked_at
                status = status_of_run(run, is_stopped=is_stopped) or status
                at_work = active_pods(run)
            if is_ours and at_work:
                await self._end_late_pods(handle, at_work)
        if not status.reason and (live := run.live_job) is not None and _may_wait(status, live, run):
            waiting = [pod for pod in pods_of_claim(live, run.live_pods) if not has_started(pod)]
            events = await self._events.of(handle, waiting[:1])
            status = status_of_run(run, is_stopped=is_stopped, events=events) or status
        return RemoteJob(
            handle=str(handle), name=handle.name, labels=labels, status=status, is_complete=not is_incomplete(job)
        )

    async def _end_late_pods(self, handle: KubernetesHandle, pods: Collection[Object]) -> None:
        """Delete pods that still run a while after their object has ended: not every operator ends them."""
        now = time.monotonic()
        if now < self._late.setdefault(handle, now + _LATE_SECONDS):
            return
        self._late[handle] = now + _LATE_SECONDS
        log.warning("%s has ended; deleting its pods that still run: %s", handle.name, ", ".join(map(name_of, pods)))
        await asyncio.gather(*(self._delete_pod(handle.place, pod) for pod in pods))

    async def _delete_pod(self, place: Place, pod: Object, grace_seconds: int | None = None) -> None:
        metadata = pod["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}}
        grace = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        path = PODS.path(place.namespace, metadata["name"])
        client = self._cluster(place.context).client
        await _if_there(client.delete(path, {**body, **grace}, what=f"stop the pod {metadata['name']}"))

    async def _left_of(self, handle: KubernetesHandle) -> str:
        """Say what is left of a run whose object was deleted; empty once it and its pods are gone."""
        place = handle.place
        run = await self._watch(place).refresh(place.resource, handle.name)
        job = run.live_job
        if job is not None and job["metadata"]["uid"] == handle.uid:
            return f"it waits for its finalizers {job['metadata'].get('finalizers') or []}"
        if (job := _job_of(run, handle.uid)) is None:
            return ""
        pods = pods_of_claim(job, run.live_pods)
        return f"its pods {', '.join(map(name_of, pods))} are not gone" if pods else ""

    async def _delete_object(self, handle: KubernetesHandle) -> None:
        """Delete a run's object once what it owns is gone."""
        place = handle.place
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": handle.uid}}
        path = place.resource.path(place.namespace, handle.name)
        client = self._cluster(place.context).client
        await _if_there(client.delete(path, body, what=f"delete {handle.name}"))

    async def _pull_auths(self, plan: RunPlan, named: Collection[str]) -> dict[str, dict[str, str]] | None:
        """Return the credentials for a job's image, where the agent knows some and the queue names no secret."""
        image = plan.resolved_image or plan.image
        if named or not image or self.registry is None:
            return None
        found = await self.registry.credentials_for(image)
        if found is None or found.user == TOKEN_USER:
            return None
        return {auth_key(image): {"username": found.user, "password": found.password}}


class _Changes:
    """The runs of one place that have changed, and are still to be told of."""

    def __init__(self) -> None:
        self._runs: dict[KubernetesHandle, None] = {}
        self._has_any = asyncio.Event()

    def add(self, handle: KubernetesHandle) -> None:
        """Note that a run has changed."""
        self._runs[handle] = None
        self._has_any.set()

    async def next(self) -> Collection[KubernetesHandle]:
        """Return those that have changed since the last call, once there are any."""
        await self._has_any.wait()
        self._has_any.clear()
        runs, self._runs = self._runs, {}
        return runs


def auth_key(image: str) -> str:
    """Return the name that the registry of an image has in Docker's config file."""
    host = parse_reference(image).host
    return _HUB_KEY if host == DOCKER_HUB else host


def _unseen(run: NotedRun, why: LaunchError) -> RemoteJob:
    """Return a run where nobody can look: it is not known to have ended."""
    status = RemoteStatus(state=RemoteState.PENDING, reason=f"it cannot be seen now: {clause(why)}")
    return RemoteJob(handle=str(run.handle), name=run.handle.name, labels=dict(run.labels), status=status)


def _plain(value: object) -> str | None:
    """Return a text of a queue's options; None where it is none, or its value is not known yet."""
    return value if isinstance(value, str) and not any(mark in value for mark in ("{{", "${")) else None


async def _if_there(deleting: Any) -> None:
    """Await a deletion; another object that has the name now is left alone."""
    try:
        await deleting
    except ConflictError:
        return


def _may_wait(status: RemoteStatus, job: Object, run: SeenRun) -> bool:
    """Whether a run that is there waits, or a part of it does."""
    if status.state is RemoteState.RUNNING:
        return is_short_of_pods(job, kind_in(job), pods_of_claim(job, run.live_pods))
    return status.state is RemoteState.PENDING


def _job_of(run: SeenRun, uid: str) -> Object | None:
    """Return a run's object, as it was last; None where none of that uid was seen."""
    return run.job.object if run.job is not None and run.job.object["metadata"]["uid"] == uid else None


def _containers(run: SeenRun, uid: str) -> list[Container]:
    if (job := _job_of(run, uid)) is None:
        return []
    spec = job.get("spec") or {}
    pods = pods_of_claim(job, run.live_pods)
    is_one = (
        kind_in(job) == JOB
        and (spec.get("completions") or 1) == 1
        and (spec.get("parallelism") or 1) == 1
        and all(len(pod["spec"].get("containers") or ()) == 1 for pod in pods)
    )
    return containers_of(pods, is_one=is_one)


def _has_ended(run: SeenRun, uid: str) -> bool:
    if _job_of(run, uid) is None:
        return True
    status = status_of_run(run)
    return status is None or status.state is RemoteState.ENDED
