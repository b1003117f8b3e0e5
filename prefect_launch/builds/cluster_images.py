"""Images that a Kubernetes cluster builds and pushes, with no Docker Engine: one Job for each image.

The Job's name comes from the image's tag: an agent that wants an image which is being built joins the Job that does,
and so does one that comes back after it was killed. Each waiting agent has a mark among the Job's annotations. The last
one to leave removes the Job, and stops the build if it still runs. A Job that had ended before somebody came is not
asked: it is removed, and the image built anew. A Job is not held back: where all who waited have died, the cluster ends
it by its deadline, and removes it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from pathlib import Path
from typing import ClassVar, Final
from uuid import uuid4

import anyio

from prefect_launch.builds.build_engine import PushRefusedError, check_pushed
from prefect_launch.builds.build_job import MAKER, WAITERS, BuildFiles, build_plan, cut_context
from prefect_launch.builds.builder import BuildOutput, BuildPlace, ImageBuild, LineSink, failure
from prefect_launch.builds.full_disks import explaining_full_disks
from prefect_launch.builds.settings import BuilderSettings, ClusterSettings
from prefect_launch.core.backoff import Backoff
from prefect_launch.core.cancellation import ended, finished
from prefect_launch.core.masking import Mask
from prefect_launch.core.units import format_duration
from prefect_launch.environments.pip_config import PipAccess, read_pip_access
from prefect_launch.errors import (
    AgentConfigError,
    ImagePullError,
    InfrastructureError,
    LaunchError,
    RunLostError,
    SpecError,
    UnreachableError,
    clause,
    retold,
)
from prefect_launch.registries.base import TOKEN_USER, Credentials, Registry, is_digest, parse_reference
from prefect_launch.runners.base import ExitStatus, Finding, RunPlan
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RunHandle
from prefect_launch.runners.remote.kubernetes.holding import Hold
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner, auth_key

_logger = logging.getLogger(__name__)

#: How often a build is begun that the cluster takes away, or that somebody else removes.
_TRIES: Final = 3
#: In a home: what the runner of builds notes, apart from that of jobs.
_HOME: Final = "builds"
_STOP_SECONDS: Final = 10.0
#: What the making of a Job gets to end by itself when its build is cancelled: what was cut off may be there or not.
_CREATED_SECONDS: Final = 2.0
#: The pause before a cluster that does not answer is asked again.
_AWAY_SECONDS: Final = 2.0
#: How long a cluster may refuse to show a build that goes on.
_REFUSED_SECONDS: Final = 600.0
#: How long those who waited for a build that has ended have to see how.
_SEEN_SECONDS: Final = 60.0
_NOT_TO_BE_RUN: Final = (126, 127)
#: Colours, and what the log of an init container has before each line.
_NOISE: Final = re.compile(r"\x1b\[[0-9;]*m|^\[build\] ", re.MULTILINE)
#: How kaniko, and buildah, say which step begins.
_STEP: Final = re.compile(
    r"(?:INFO\[\d+\] |STEP \d+(?:/\d+)?: |level=info msg=\")"
    r"(?P<step>(?:ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|LABEL|RUN|USER|VOLUME|WORKDIR)\b[^\"]*)"
)
#: How they say why they give up.
_ERROR: Final = re.compile(
    r"(?:FATA\[\d+\] |Error: )?"
    r"(?:error (?:building|checking|getting|pushing|resolving)|checking push|(?:loading|pushing) image|kaniko should).*"
)
_REFUSED: Final = re.compile(
    r"push permission|unauthorized|authentication required|access denied|denied: |no basic auth credentials|forbidden",
    re.IGNORECASE,
)


class _BuildRunner(KubernetesRunner):
    """Runs builds, which are not held: nobody need release one whose agent has died. Its pod waits for its context."""

    hold: ClassVar[Hold | None] = Hold.NONE


class ClusterImages(BuildPlace):
    """The images of a registry that a cluster builds.

    Args:
        settings: how images are built.
        home: the folder of prefect-launch.
        holder: who waits, as the Jobs of builds name it.
        remote: the registries.
    """

    def __init__(self, settings: BuilderSettings, home: Path, holder: str, remote: Registry) -> None:
        self._settings = settings
        self._runner = _BuildRunner(home / _HOME)
        self._holder = holder
        self._remote = remote

    async def base_digest(self, base: str) -> str | None:
        return await self._remote.digest_of(base)

    async def fetch_base(self, base: str, log: LineSink) -> str:
        digest = await self._remote.digest_of(base)
        if digest is None:
            raise ImagePullError(
                f"The base image {base!r} is not in its registry, and a build in the cluster pulls it from there."
                " Correct the Dockerfile, or builder.base_image."
            )
        return digest

    async def find(self, target: ImageBuild) -> str | None:
        name = self._name_of(target)
        digest = await self._remote.digest_of(name)
        return None if digest is None else parse_reference(name).at(digest)

    async def build(self, target: ImageBuild, item: str, log: LineSink) -> str | None:
        if (found := await self.find(target)) is not None:
            return found
        access = await anyio.to_thread.run_sync(lambda: read_pip_access(self._settings.pip_config, folders=False))
        async with anyio.TemporaryDirectory(prefix="launch-build-") as scratch:
            files = await self._files(target, access)
            mark, maker = f"{WAITERS}{item}", str(uuid4())
            made = {mark: self._holder, MAKER: maker}
            plan = build_plan(target, self._name_of(target), self._settings.kubernetes, files, Path(scratch), made)
            one = _ClusterBuild(self._runner, plan, mark, self._holder, maker, self._settings.kubernetes)
            logins = _mask_of(files.push_auths, files.pull_auths)

            def masked(text: str) -> str:
                return logins.text(access.mask.text(text))

            try:
                return await self._until_built(one, target, lambda text: log(masked(text)))
            except LaunchError as error:  # It has the last lines of the log.
                raise retold(error, masked(str(error))) from None

    def explaining_full_disks(self) -> AbstractAsyncContextManager[None]:
        return explaining_full_disks()

    async def aclose(self) -> None:
        await self._runner.aclose()

    def _name_of(self, target: ImageBuild) -> str:
        return f"{self._settings.destination}:{target.tag}"

    async def _files(self, target: ImageBuild, access: PipAccess) -> BuildFiles:
        settings, destination = self._settings.kubernetes, self._name_of(target)
        bases = [base.rpartition("@")[0] for base in target.base.split()]
        login = await self._remote.credentials_for(destination)
        pull_auths: dict[str, dict[str, str]] = {}
        for base in bases if settings.pull_secret is None else ():
            found = await self._remote.credentials_for(base)
            if found is not None and found != login:  # What pushes is not for a submitter's steps.
                pull_auths[auth_key(base)] = _auth_of(found)
        is_made = login is not None and settings.push_secret is None
        hosts = dict.fromkeys(parse_reference(image).host for image in (destination, *bases))
        return BuildFiles(
            parts=await anyio.to_thread.run_sync(cut_context, target),
            secrets=access.files,
            push_auths={auth_key(destination): _auth_of(login)} if login is not None and is_made else {},
            pull_auths=pull_auths,
            insecure=[host for host in hosts if self._remote.is_insecure(host)],
        )

    async def _until_built(self, one: _ClusterBuild, target: ImageBuild, log: LineSink) -> str:
        """Build until the image is there, as long as it is the cluster that fails, and not the build; return it."""
        where = f" on {target.base}" if target.base else ""
        log(f"Building {self._name_of(target)} with {self._settings.kubernetes.image} in the cluster{where}.\n")
        lost = ""
        for left in reversed(range(_TRIES)):
            try:
                digest = await one.run(log)
            except _LostBuildError as error:
                lost = str(error)
                if (found := await self.find(target)) is not None:
                    return found  # Another agent saw its end first, and removed its Job.
                if left:
                    log(f"The build was lost: {clause(lost)}. It begins again.\n")
                continue
            pushed = digest if is_digest(digest) else None
            built = await check_pushed(self._name_of(target), self._remote, pushed)
            log(f"Pushed {built}.\n")
            return built
        raise InfrastructureError(
            f"The build in the cluster was lost {_TRIES} times, last since {clause(lost)}. Look at the cluster's nodes"
            " and at who removes Jobs, then try again."
        )


def _auth_of(found: Credentials) -> dict[str, str]:
    if found.user == TOKEN_USER:
        return {"identitytoken": found.password}
    return {"username": found.user, "password": found.password}


def _mask_of(*auths: Mapping[str, Mapping[str, str]]) -> Mask:
    """Return the mask of logins, and of the form that Docker's config file has them in."""
    logins = [one for known in auths for one in known.values()]
    secrets = [one[name] for one in logins for name in ("identitytoken", "password") if name in one]
    return Mask([*secrets, *(f"{one['username']}:{one['password']}" for one in logins if "password" in one)])


class _LostBuildError(LaunchError):
    """A build is gone through no fault of its own: it may be begun again."""


class _ClusterBuild:
    """One look at the Job that builds an image, from joining to leaving it.

    Args:
        runner: of the cluster.
        plan: of the Job.
        mark: the annotation that says that its item waits.
        holder: the value of that.
        maker: the value of `MAKER`, if the Job is made here.
        settings: of builds in the cluster.
    """

    def __init__(
        self, runner: KubernetesRunner, plan: RunPlan, mark: str, holder: str, maker: str, settings: ClusterSettings
    ) -> None:
        self._runner = runner
        self._plan = plan
        self._mark = mark
        self._holder = holder
        self._maker = maker
        self._settings = settings

    async def run(self, log: LineSink) -> str:
        """Build; return the digest that the image was pushed with, empty where the program does not tell it.

        Raises:
            _LostBuildError: when it may be begun again.
            LaunchError: when it has failed, or cannot be begun.
        """
        creating = asyncio.ensure_future(self._create())
        try:
            handle = await finished(creating, seconds=_CREATED_SECONDS)
            await self._join(handle, log)
            return await self._follow(handle, log)
        finally:
            if not creating.cancelled() and creating.exception() is None:
                with anyio.CancelScope(shield=True):
                    await self._leave(creating.result())

    async def _create(self) -> RunHandle:
        """Make the Job, or find the existing one."""
        try:
            return RunHandle.parse(await self._runner.create(self._plan))
        except SpecError as error:
            said = clause(str(error).replace("resource_args.kubernetes", "builder.kubernetes"))
            raise AgentConfigError(f"The build cannot be made in the cluster: {said}.") from error

    async def _join(self, handle: RunHandle, log: LineSink) -> None:
        """Mark that somebody waits for the Job; one that had ended before is removed, and its image built anew."""
        marks = await self._runner.annotate(handle.job, {self._mark: self._holder})
        job = await self._runner.poll_one(handle.job)
        is_made_here = marks is not None and marks.get(MAKER) == self._maker
        if marks is None or job is None or (job.status.state is RemoteState.ENDED and not is_made_here):
            # Whether it has just pushed the image, the registry says.
            await self._clear(handle, job)
            is_gone = marks is None or job is None
            raise _LostBuildError("its Job is gone" if is_gone else "an earlier build of this image had ended")
        if others := self._others(marks):
            log(f"{others[0]} builds this image already; its log follows.\n")

    def _others(self, marks: Mapping[str, str]) -> list[str]:
        return [who for key, who in marks.items() if key.startswith(WAITERS) and key != self._mark]

    async def _unmark(self, handle: RunHandle) -> list[str] | None:
        """Take back the mark; return who else waits, None when the Job is gone."""
        marks = await self._runner.annotate(handle.job, {self._mark: None})
        return None if marks is None else self._others(marks)

    async def _clear(self, handle: RunHandle, job: RemoteJob | None) -> None:
        """Remove a Job that has ended: one that has failed once all who waited for it have left, or have died."""
        has_failed = job is not None and not (job.status.exit and job.status.exit.succeeded)
        pauses = Backoff(0.1, _AWAY_SECONDS)
        with anyio.move_on_after(_SEEN_SECONDS):
            while has_failed and await self._unmark(handle):
                await pauses.sleep()
        await self._runner.remove(str(handle))

    async def _follow(self, handle: RunHandle, log: LineSink) -> str:
        await self._runner.start(str(handle))
        output = _Output(log)
        # A pod whose init container builds has not started yet.
        waiting = asyncio.create_task(self._wait_started(handle, log))
        copying = asyncio.create_task(self._copy_log(handle, output, log))
        try:
            _, is_read = await asyncio.gather(waiting, copying)
        finally:
            await ended(waiting, copying)
        end = await self._end_of(handle, log)
        if is_read and not output.lines:  # It had ended before its pod was seen.
            await self._copy_log(handle, output, log)
        if not end.succeeded:
            raise self._error_of(end, output)
        return self._runner.last_message(handle.job).strip()

    async def _wait_started(self, handle: RunHandle, log: LineSink) -> None:
        async def on_wait(reason: str) -> None:
            if reason:
                log(f"The build waits in the cluster: {reason}\n")

        try:
            with suppress(RunLostError):  # `_end_of` says how it ended.
                await self._runner.wait_running(str(handle), on_wait)
        except (ImagePullError, SpecError) as error:
            raise AgentConfigError(
                f"The build in the cluster cannot start: {clause(error)}. Correct builder.kubernetes: its image, its"
                " Secrets, or what its spec names."
            ) from error

    async def _copy_log(self, handle: RunHandle, output: BuildOutput, log: LineSink) -> bool:
        """Log what the build says until it has ended, and return whether that could be read; an error ends no build."""
        position, has_ended, is_told = None, False, False
        while True:
            try:
                async with aclosing(self._runner.read_logs(handle.job, position)) as parts:  # type: ignore[type-var]
                    async for part in parts:
                        output.take(_NOISE.sub("", part.content.decode("utf-8", "replace")))
                        position, is_told = part.position, False
                return True
            except LaunchError as error:
                if not is_told:
                    _logger.warning("the log of the build %s cannot be read: %s", self._plan.name, error)
                    log(f"The log of the build cannot be read now: {clause(error)}. The build continues.\n")
                is_told = True
                if not isinstance(error, UnreachableError):
                    if has_ended:
                        return False  # It was asked once more after the end.
                    job = await self._look(handle, log)
                    has_ended = job is None or job.status.state is RemoteState.ENDED
                await asyncio.sleep(_AWAY_SECONDS)

    async def _look(self, handle: RunHandle, log: LineSink) -> RemoteJob | None:
        """Return the Job as it is; ask again while the cluster does not answer, and for a while when it refuses."""
        due = 0.0
        while True:
            try:
                return await self._runner.poll_one(handle.job)
            except UnreachableError:
                pass
            except LaunchError as error:
                if not due:
                    due = time.monotonic() + _REFUSED_SECONDS
                    log(f"The build cannot be seen now: {clause(error)}. It goes on, and is asked for again.\n")
                elif time.monotonic() >= due:
                    raise
            await asyncio.sleep(_AWAY_SECONDS)

    async def _end_of(self, handle: RunHandle, log: LineSink) -> ExitStatus:
        while True:
            job = await self._look(handle, log)
            if job is None:
                raise _LostBuildError("its Job is gone")
            if job.status.state is RemoteState.ENDED and job.status.exit is not None:
                return job.status.exit
            await asyncio.sleep(0.1)

    def _error_of(self, end: ExitStatus, output: _Output) -> LaunchError:
        """Return the error of a build that did not succeed."""
        said = output.error or end.describe()
        if end.timed_out:
            limit = format_duration(self._settings.timeout_seconds)
            return failure(output.step, f"it took longer than builder.kubernetes.timeout, {limit}", output.lines)
        if end.oom_killed:
            return InfrastructureError(
                f"The build in the cluster ran out of memory in the step {output.step!r}. Raise"
                " builder.kubernetes.memory in the agent's config, or make that step smaller."
            )
        if end.exit_code in _NOT_TO_BE_RUN and not output.lines:
            return AgentConfigError(
                f"The program of builder.kubernetes.image ({self._settings.image!r}) cannot be run: {end.describe()}."
                " Name an image whose entry point builds, as kaniko's does."
            )
        if end.preempted or (end.error and not end.is_own_doing):
            return _LostBuildError(end.describe())
        if output.is_refused and "push" not in output.error:
            return AgentConfigError(
                f"A registry does not let the build pull a base image: {clause(said)}. Name a Secret with a login that"
                " may pull it, and nothing more, in builder.kubernetes.pull_secret: the Dockerfile's steps can read it."
            )
        if output.is_refused:
            who = f"the Secret {self._settings.push_secret!r}" if self._settings.push_secret else "what the agent knows"
            return PushRefusedError(
                f"The registry does not let the build push the image: {clause(said)}. It was asked as {who} says."
                " Correct builder.kubernetes.push_secret, or name credentials of one who may push there in"
                " builder.credentials."
            )
        return failure(output.step, said, output.lines)

    async def _leave(self, handle: RunHandle) -> None:
        """Take back the mark; who is the last removes the Job, and stops what still runs."""
        try:
            if await self._unmark(handle) == []:
                await self._runner.stop(str(handle), _STOP_SECONDS)
                await self._runner.remove(str(handle))
        except LaunchError as error:
            _logger.warning("the build %s was not removed: %s. The cluster does it later.", self._plan.name, error)


class _Output(BuildOutput):
    """Reads what kaniko, or a program like it, says of a build."""

    def __init__(self, log: LineSink) -> None:
        super().__init__(log)
        self.step = "the start of the build"
        self.error = ""
        self.is_refused = False

    def take_line(self, line: str) -> None:
        super().take_line(line)
        if step := _STEP.search(line):
            self.step, self.error, self.is_refused = step["step"].strip(), "", False
        elif error := _ERROR.match(line):
            self.error = error[0]
            self.is_refused = _REFUSED.search(line) is not None


async def diagnose_builder(settings: BuilderSettings, home: Path) -> list[Finding]:
    """Look at what builds in a cluster need: its namespace, the agent's rights there, the Secret to push with."""
    own = settings.kubernetes
    secrets = [one for one in (own.push_secret, own.pull_secret) if one is not None]
    runner = KubernetesRunner(home / _HOME)
    try:
        return await runner.diagnose({**own.options, "image-pull-secret": secrets})
    finally:
        await runner.aclose()
