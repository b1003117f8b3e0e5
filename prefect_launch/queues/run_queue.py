"""Run queues: work pools of type `launch`, with four priorities, a resource and its template variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prefect_launch.core.names import MAX_QUEUE_NAME_CHARS, check_name
from prefect_launch.core.states import StateType
from prefect_launch.errors import QueueError
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.deployment import refresh_forms
from prefect_launch.queues.session import ensure_deployment
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Pool
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.queues.session import Session

#: The queue that is made on first use; every other one must be made by its owner.
DEFAULT_QUEUE: Final = "default"
#: Prefect keeps these names to itself.
_RESERVED_PREFIX: Final = "prefect"
#: How the description of a queue begins that nobody has rewritten.
_DESCRIBED: Final = "Launch queue on"


def check_concurrency(limit: object) -> int | None:
    """Return a good limit of a queue.

    Raises:
        QueueError: when it is no whole number of at least 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise QueueError(f"A queue's concurrency limit must be 1 or more, not {limit!r}. Pause the queue to stop it.")
    return limit


def check_queue_name(name: object) -> str:
    """Return a good name for a queue.

    Raises:
        InvalidNameError: when it is none.
        QueueError: when Prefect keeps it to itself.
    """
    good = check_name("queue", name, max_chars=MAX_QUEUE_NAME_CHARS)
    if good.lower().startswith(_RESERVED_PREFIX):
        raise QueueError(
            f"Queue names that begin with 'prefect' are reserved by Prefect: choose another than {good!r}."
        )
    return good


async def create_queue(
    session: Session, name: str, config: QueueConfig, *, concurrency: int | None = None, replace: bool = False
) -> Pool:
    """Make a queue: its work pool, its priorities, its deployment; with `replace`, bring an existing one up to date.

    Raises:
        QueueError: when it is there already, or its resource would change under waiting items.
    """
    check_queue_name(name)
    server = session.server
    template = config.to_template()
    text = _description(name, config)
    pool = await server.create_pool(name, base_job_template=template, description=text, concurrency_limit=concurrency)
    if pool is None:
        pool = await _replace(server, name, config, concurrency) if replace else None
    if pool is None:
        raise QueueError(
            f"The queue {name!r} is there already. Choose another name, or ask to replace its configuration."
        )
    if config.prioritization_mode != "DISABLED":
        for priority in Priority:
            if priority is not Priority.MEDIUM:
                await server.create_queue(name, priority.work_queue, int(priority))
    session.forget_queue(name)
    await ensure_deployment(server, name, config)
    if replace:
        await refresh_forms(session, name)
    return pool


def _description(name: str, config: QueueConfig) -> str:
    return (
        f"{_DESCRIBED} {config.resource}. Nothing of it runs before an agent is there: start one on a machine with"
        f" 'prefect-launch agent start -q {name}'."
    )


async def _replace(server: Server, name: str, config: QueueConfig, concurrency: int | None) -> Pool | None:
    pool = await server.read_pool(name)
    if pool is None:
        return None
    try:
        resource = QueueConfig.from_template(name, pool.base_job_template).resource
    except QueueError:
        resource = config.resource
    if resource != config.resource:
        waiting = await server.count_items(pool=name, state_types=[StateType.SCHEDULED])
        if waiting:
            raise QueueError(
                f"The queue {name!r} has {waiting} waiting items for {resource}; its resource cannot become"
                f" {config.resource}. Make a new queue, or wait until it is empty."
            )
    changes: dict[str, Any] = {"base_job_template": config.to_template()}
    if pool is not None and (pool.description or "").startswith(_DESCRIBED):  # else somebody has written another
        changes["description"] = _description(name, config)
    if concurrency is not None:
        changes["concurrency_limit"] = concurrency
    await server.update_pool(name, **changes)
    return await server.read_pool(name)


async def delete_queue(session: Session, name: str) -> int:
    """Delete a queue with its deployments and waiting items; what runs goes on.

    Returns:
        How many waiting items went with it.

    Raises:
        NotFoundError: when there is none of that name.
    """
    await session.queue(name)
    waiting = await session.server.count_items(pool=name, state_types=[StateType.SCHEDULED])
    for deployment in await session.server.list_deployments(name):
        await session.server.delete_deployment(deployment.id)
    await session.server.delete_pool(name)
    session.forget_queue(name)
    return waiting


class RunQueue:
    """A run queue.

    Attributes:
        name: of the queue, and of its work pool.
        entity: its owner.
        type: the resource that its items run on.
        template_variables: JSON schemas by name.
        prioritization_mode: `V0` or `DISABLED`.
        limits: the most that an item may ask for, by the option, or `timeout`.
        submitter_options: options that submitters may set besides the resource's usual ones.
        submitter_secrets: names of the Secret blocks that submitters may name.
        pin: whether its items run just the image that their tag meant when they were queued (True), or the one that it
            means at the start (False); None: the former where it can be had.
        fail_impossible_after: seconds after which an item fails that asks for more than any agent has; None: it waits.
        outputs: how much is kept of the outputs of one run; an agent's own limits hold beside them.
        id: of the work pool.
    """

    def __init__(self, api: Api, pool: Pool) -> None:
        config = QueueConfig.from_template(pool.name, pool.base_job_template)
        self._api = api
        self._config = config
        self.name = pool.name
        self.id = str(pool.id)
        self.entity = config.entity or api.entity
        self.type = config.resource
        self.template_variables = dict(config.template_variables)
        self.prioritization_mode = config.prioritization_mode
        self.pin = config.pin
        self.outputs = config.outputs
        self.is_paused = pool.is_paused
        self.concurrency_limit = pool.concurrency_limit
        self.submitter_options = config.submitter_options
        self.limits = dict(config.limits)
        self.submitter_secrets = config.submitter_secrets
        self.fail_impossible_after = config.fail_impossible_after

    def __repr__(self) -> str:
        return f"<RunQueue {self.name} ({self.type})>"

    @property
    def default_resource_config(self) -> dict[str, Any]:
        """What every item of the queue gets: `{"resource_args": {type: options}}`, and its `limits`,
        `docker` (if it says `pin`) and the limits of its `outputs`, where it has any."""
        options: dict[str, Any] = {"resource_args": {self.type: dict(self._config.resource_args)}}
        outputs = self.outputs.model_dump(exclude_none=True)
        return {
            **options,
            **({"limits": dict(self.limits)} if self.limits else {}),
            **({} if self.pin is None else {"docker": {"pin": self.pin}}),
            **({"outputs": outputs} if outputs else {}),
        }

    @property
    def url(self) -> str:
        """The queue's page in the UI."""
        return f"{self._api.ui_url}/work-pools/work-pool/{self.name}"

    @property
    def items(self) -> list[QueuedRun]:
        """All items of the queue, newest first; read anew at each use."""
        return self._api.items(queue=self.name, limit=None)

    def pause(self) -> None:
        """Let no further item start; what runs goes on."""
        self._api.update_run_queue(self.name, is_paused=True)
        self.is_paused = True

    def resume(self) -> None:
        """Let items start again."""
        self._api.update_run_queue(self.name, is_paused=False)
        self.is_paused = False

    def set_concurrency_limit(self, limit: int | None) -> None:
        """Set how many items may be in work at a time (at least 1); `None` for no limit.

        Raises:
            QueueError: for a number below 1.
        """
        check_concurrency(limit)
        self._api.update_run_queue(self.name, concurrency_limit=limit)
        self.concurrency_limit = limit

    def delete(self) -> int:
        """Delete the queue with its waiting items; returns how many those were."""
        return self._api.delete_run_queue(self.name)
