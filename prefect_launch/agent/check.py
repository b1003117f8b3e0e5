"""Check of an agent's surroundings before its first job fails: server, clock, home, registry, queues and resources.

Nothing is changed but for a file that is written to the home and removed again. `prefect-launch agent check` prints
what is found.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Final

import anyio
from pydantic import BaseModel, ConfigDict

from prefect_launch.agent.open_files import open_files_missing
from prefect_launch.clouds.accounts import Clouds
from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.core.units import counted, format_size
from prefect_launch.errors import LaunchError
from prefect_launch.policy.template import QueueConfig
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import Finding, Runner
from prefect_launch.runners.registry import make_runner

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session
    from prefect_launch.registries.base import Registry
    from prefect_launch.settings.agent_config import AgentConfig

#: A difference of clocks that confuses: times in logs and on pages, and when items are due.
_CLOCK_SECONDS: Final = 5.0
#: What the answer to one question may take.
_ANSWER_SECONDS: Final = 30.0
#: Less room than this fills up with the first environments and outputs.
_FREE_BYTES: Final = 1024**3


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    where: str
    finding: Finding


async def check_agent(
    api: Api,
    config: AgentConfig,
    *,
    runners: Mapping[str, Runner] | None = None,
    registry: Registry | None = None,
) -> list[Check]:
    """Look at all that an agent of this configuration needs.

    Args:
        api: the server.
        config: the agent's.
        runners: ready-made runners, by resource, in the place of the ones that it would make.
        registry: the registries; by default those that the configuration names.

    Returns:
        What was found, also what is well. What fails is a finding, and raises nothing.
    """
    checks: list[Check] = []
    clouds = Clouds(config.clouds)

    def add(where: str, *findings: Finding) -> None:
        checks.extend(Check(where=where, finding=finding) for finding in findings)

    try:
        async with api.open() as session:
            add("server", *await _server(session))
            if not config.queues:
                add("queues", _bad("queues", "The agent has no queue: name some with -q QUEUE, or in its config file."))
            for queue in config.queues:
                add(f"queue {queue}", *await _queue(session, queue, config, clouds, runners or {}))
    except LaunchError as error:
        add("server", _bad("reachable", str(error)))
    add("home", *await anyio.to_thread.run_sync(_home, config.home))
    missing = open_files_missing(config)
    enough = f"enough for {counted(config.max_jobs, 'job')}"
    add("machine", _bad("open files", missing) if missing else _good("open files", enough))
    add("clouds", *await _clouds(clouds))
    if config.builder.builds_in_cluster:
        add("builder", *await _builder(config))
    if config.builder.destination is not None:
        where = config.builder.destination
        add("registry", await _registry(registry or RemoteRegistries(config.keychain(clouds), pauses=()), where))
    return checks


async def _server(session: Session) -> list[Finding]:
    asked = datetime.now(timezone.utc)
    about = await session.server.about()
    answered = datetime.now(timezone.utc)
    found = [_good("reachable", f"Prefect {about.version} at {session.server.api_url}")]
    if not about.version.startswith("3."):
        found.append(_bad("version", f"The server is Prefect {about.version}: run one of version 3, 3.8 or newer."))
    if about.time is not None:
        # The server gives its clock in whole seconds, read at any moment of the request.
        ahead = (about.time - answered).total_seconds()
        behind = (asked - about.time).total_seconds() - 1.0
        difference = max(ahead, behind, 0.0)
        text = f"The clocks differ by {difference:.0f} s. Set both by NTP: due times and logs go by them."
        good = "as the server's" if difference < 1 else f"{difference:.0f} s from the server's"
        found.append(_bad("clock", text) if difference > _CLOCK_SECONDS else _good("clock", good))
    return found


async def _queue(
    session: Session, name: str, config: AgentConfig, clouds: Clouds, runners: Mapping[str, Runner]
) -> list[Finding]:
    """Look at a queue, and at the resource that it names."""
    try:
        pool = await session.pool(name)
        queue = QueueConfig.from_template(name, pool.base_job_template)
    except LaunchError as error:
        return [_bad("queue", str(error))]
    found = [_bad("queue", f"It is paused: 'prefect-launch queue resume {name}' resumes it.")]
    if not pool.is_paused:
        found = [_good("queue", f"resource {queue.resource}")]
    try:
        runner = runners.get(queue.resource) or make_runner(queue.resource, config.home, clouds=clouds)
    except LaunchError as error:
        return [*found, _bad(queue.resource, str(error))]
    runner.agent = config.name
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            findings = await runner.diagnose(queue.resource_args)
    except TimeoutError:
        text = f"{queue.resource} has not answered within {_ANSWER_SECONDS:g} s. Look at it, and at its address."
        findings = [_bad(queue.resource, text)]
    except Exception as error:  # noqa: BLE001 - one resource that fails hides nothing of the others
        findings = [_bad(queue.resource, str(error) or type(error).__name__)]
    finally:
        if queue.resource not in runners:
            await runner.aclose()
    return [*found, *findings]


async def _clouds(clouds: Clouds) -> list[Finding]:
    """Look who the agent is in each cloud that its config has settings of."""
    ask = {
        "AWS": (clouds.settings.aws, lambda: clouds.aws.identity()),
        "Google Cloud": (clouds.settings.gcp, lambda: clouds.gcp.identity()),
    }
    return [await _cloud(name, who) for name, (settings, who) in ask.items() if settings != type(settings)()]


async def _cloud(name: str, who: Callable[[], Awaitable[str]]) -> Finding:
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            return _good(name, f"as {await who()}")
    except TimeoutError:
        return _bad(name, f"{name} has not answered within {_ANSWER_SECONDS:g} s. Look at the network.")
    except LaunchError as error:
        return _bad(name, str(error))


async def _builder(config: AgentConfig) -> list[Finding]:
    """Look at what builds in a cluster need."""
    from prefect_launch.builds.cluster_images import diagnose_builder

    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            return await diagnose_builder(config.builder, config.home)
    except TimeoutError:
        return [_bad("Kubernetes", f"It has not answered within {_ANSWER_SECONDS:g} s.")]
    except LaunchError as error:
        return [_bad("Kubernetes", str(error))]


def _home(home: Path) -> list[Finding]:
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with NamedTemporaryFile(dir=there, prefix=".prefect-launch-check-"):
            pass
        free = shutil.disk_usage(there).free
        if there == home and not _can_lock(home):
            return [_bad("locks", f"Files in {home} cannot be locked: mount it with locks, or set 'home' elsewhere.")]
    except OSError as error:
        return [_bad("writable", f"{there} cannot be written: {error}. Set 'home' in the agent's config elsewhere.")]
    room = f"{format_size(free)} are free"
    if free < _FREE_BYTES:
        return [_bad("disk", f"Only {room} in {there}. Make room: 'prefect-launch agent clean' does.")]
    return [_good("writable", f"{home}, {room}")]


def _can_lock(home: Path) -> bool:
    """Whether the home's file system has locks; some network mounts have none."""
    with NamedTemporaryFile(dir=home, prefix=".prefect-launch-check-") as file, locked_if_free(Path(file.name)) as held:
        return held


async def _registry(registry: Registry, destination: str) -> Finding:
    """Look whether the repository of built images can be read; whether it can be written, the first push shows."""
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            await registry.digest_of(f"{destination}:prefect-launch-check")
        login = await registry.credentials_for(destination)
    except LaunchError as error:
        return _bad("login", str(error))
    except TimeoutError:
        return _bad("login", f"The registry of {destination} has not answered within {_ANSWER_SECONDS:g} s.")
    return _good("login", f"{destination}, {f'as {login.user}' if login else 'without credentials'}")


def _good(name: str, detail: str) -> Finding:
    return Finding(name=name, is_ok=True, detail=detail)


def _bad(name: str, detail: str) -> Finding:
    return Finding(name=name, is_ok=False, detail=detail)
