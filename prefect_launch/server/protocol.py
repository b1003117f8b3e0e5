"""Protocol of the Prefect server's client: all that prefect-launch asks of a server.

Two classes implement it: `prefect_launch.server.client.PrefectServer` and the in-memory fake
`prefect_launch.testing.InMemoryServer`. The same contract tests run on both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from prefect_launch.server.values import (
    PAGE,
    Deployment,
    DeploymentFields,
    Item,
    ItemChange,
    ItemDraft,
    ItemFilter,
    LogRecord,
    Pool,
    PriorityQueue,
    ServerAbout,
    State,
    Verdict,
    Worker,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from typing_extensions import Unpack

    from prefect_launch.core.states import StateType


class Server(Protocol):
    """Calls to a Prefect server. Every one raises `ServerUnavailableError` when it does not answer."""

    api_url: str
    ui_url: str

    @property
    def client(self) -> PrefectClient:
        """Prefect's own client of this server, for functions of Prefect; the in-memory server has none."""

    async def about(self) -> ServerAbout:
        """Ask which version of Prefect the server is, and what its clock says."""

    # --- queues ---
    async def read_pool(self, name: str) -> Pool | None:
        """Read one work pool, of any type."""

    async def list_pools(self) -> list[Pool]:
        """List the work pools of type `launch`."""

    async def create_pool(
        self, name: str, *, base_job_template: dict[str, Any], description: str | None, concurrency_limit: int | None
    ) -> Pool | None:
        """Make a work pool of type `launch`; `None` when the name is taken.

        Raises:
            QueueError: when the server refuses the template or the name.
        """

    async def update_pool(self, name: str, **changes: Any) -> None:
        """Change fields of a work pool: `is_paused`, `concurrency_limit`, `base_job_template`, `description`.

        Raises:
            QueueError: when the server refuses the change.
        """

    async def delete_pool(self, name: str) -> bool:
        """Delete a work pool with its work queues; whether it was there."""

    async def list_queues(self, pool: str) -> list[PriorityQueue]:
        """List a pool's work queues, the most urgent first."""

    async def create_queue(self, pool: str, name: str, priority: int) -> None:
        """Make a work queue in the pool; an existing one stays.

        Raises:
            QueueError: when the pool is gone.
        """

    # --- deployments of the flow `launch` ---
    async def read_deployment(self, deployment_id: UUID) -> Deployment | None:
        """Read one deployment."""

    async def find_deployment(self, name: str, *, flow: str = "launch") -> Deployment | None:
        """Read the deployment `flow/name`."""

    async def list_deployments(self, pool: str) -> list[Deployment]:
        """List the deployments whose items go to a pool."""

    async def upsert_deployment(
        self,
        name: str,
        *,
        flow: str = "launch",
        work_queue: str = "default",
        version: str | None = None,
        **fields: Unpack[DeploymentFields],
    ) -> UUID:
        """Make a deployment, or bring the one of that name up to date; its schedules stay.

        Args:
            name: of the deployment.
            flow: that its items are runs of.
            work_queue: of the pool, where its items wait unless they say another.
            version: of the deployment.
            fields: what else it is made of.

        Returns:
            Its id.
        """

    async def deactivate_schedule(self, deployment_id: UUID, schedule_id: UUID) -> None:
        """Deactivate a schedule of a deployment; runs that schedules have made of it and that are not due yet go.

        A schedule that is gone is fine.
        """

    async def delete_deployment(self, deployment_id: UUID) -> None:
        """Delete a deployment and its waiting items; one that is gone is fine."""

    # --- items ---
    async def create_item(self, deployment_id: UUID, draft: ItemDraft) -> Item | None:
        """Make an item, or return the one that was made with the same idempotency key.

        Returns:
            The item; `None` when the deployment is gone.

        Raises:
            SpecError: when the server refuses the parameters or the template variables, with its reason.
        """

    async def create_items(
        self, deployment_id: UUID, drafts: Sequence[ItemDraft], *, progress: Callable[[int], None] = lambda made: None
    ) -> list[Item]:
        """Make many items, each exactly once: what a busy server left out is sent again under the same key.

        Args:
            deployment_id: of the items.
            drafts: what they are.
            progress: is called with how many are made, after each request.

        Raises:
            SpecError: when the server refuses one; those made before it stay (the caller knows their keys).
            ServerUnavailableError: when the server was too busy for a minute to make any of those that were left.
        """

    async def read_item(self, item_id: UUID) -> Item | None:
        """Read one item."""

    async def delete_item(self, item_id: UUID) -> None:
        """Delete an item with its log; one that is gone is fine."""

    async def list_items(
        self, *, limit: int = PAGE, offset: int = 0, by_id: bool = False, **wanted: Unpack[ItemFilter]
    ) -> list[Item]:
        """List items: those that start last first, or by their ids, an order in which no item ever moves."""

    async def count_items(self, **wanted: Unpack[ItemFilter]) -> int:
        """Count items."""

    async def count_due(self, pool: str, *, before: datetime, queues: Collection[str] = ()) -> int:
        """Count what waits in a pool and is due at this time or earlier, of whatever flow, paused or not.

        The cost grows with what is counted, not with what else waits.

        Args:
            pool: the pool.
            before: when.
            queues: only what waits in these of its work queues; by default in all.
        """

    async def list_waiting(self, pool: str, queue: str, *, limit: int) -> list[Item]:
        """List what waits in one work queue of a pool, first in line first: due or not, paused or not."""

    async def poll(
        self, pool: str, *, limit: int, before: datetime, after: datetime | None = None, queues: Collection[str] = ()
    ) -> list[Item]:
        """List what waits in the pool and is due, the most urgent first, inside the pool's and its queues' limits.

        Args:
            pool: the pool; nothing when it is gone or paused.
            limit: the most items.
            before: only what is due at this time or earlier.
            after: only what is due at this time or later.
            queues: only what waits in these of its work queues; by default in all.
        """

    async def propose(
        self, item_id: UUID, state: State, *, transition_id: UUID | None = None, force: bool = False
    ) -> Verdict:
        """Propose a state; under one transition id it takes effect once, also when it is proposed again.

        Raises:
            ItemGoneError: when there is no such item.
            AnswerLostError: when answers are lost again and again; propose it again under the same transition id.
        """

    async def read_states(self, item_id: UUID) -> list[State]:
        """List the states that an item was in, oldest first."""

    async def record_infrastructure(self, item_id: UUID, handle: str | None) -> None:
        """Record what was created for an item, as Prefect's `infrastructure_pid`; `None`: nothing of it exists."""

    async def label_item(self, item_id: UUID, labels: Mapping[str, Any]) -> None:
        """Add labels to an item."""

    async def rename_item(self, item_id: UUID, name: str) -> None:
        """Give an item another name; one that is gone is fine."""

    async def replace_parameters(self, item_id: UUID, parameters: Mapping[str, Any]) -> None:
        """Give an item other parameters; one that is gone is fine."""

    async def replace_tags(self, item_id: UUID, tags: Collection[str]) -> None:
        """Give an item other tags; one that is gone is fine."""

    # --- inputs: texts that an item holds by key ---
    async def put_input(self, item_id: UUID, key: str, value: str) -> bool:
        """Give an item an input, once: whether it took it. False when it has one of that key, which stays.

        Args:
            key: of `[a-z0-9-]`.

        Raises:
            ItemGoneError: when there is no such item.
        """

    async def read_input(self, item_id: UUID, key: str) -> str | None:
        """Read an input; `None` when the item has none of that key, or is gone."""

    async def delete_input(self, item_id: UUID, key: str) -> None:
        """Delete an input; one that is gone is fine."""

    # --- logs, artifacts, events ---
    async def write_logs(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        """Add records to an item's log."""

    async def write_lines(self, lines: Sequence[tuple[UUID, LogRecord]]) -> None:
        """Add records to the logs of several items, in one request."""

    async def read_logs(
        self, item_id: UUID, *, limit: int = PAGE, offset: int = 0, since: datetime | None = None
    ) -> list[LogRecord]:
        """Read an item's log, oldest first; with `since`, what is of that time or later."""

    async def create_artifact(
        self, item_id: UUID, *, key: str, kind: str, data: Any, description: str | None = None, once: str | None = None
    ) -> None:
        """Attach an artifact (`kind`: markdown, table, …) to an item, unless it exists: the key is of `[a-z0-9-]`.

        Args:
            once: what it is about, such as one attempt: the item has it when there is one of the same key that is about
                of the same. Without it, the item has it when there is one of the same key and data.
        """

    async def put_artifact(
        self,
        item_id: UUID,
        *,
        key: str,
        kind: str,
        data: Any,
        description: str | None = None,
        artifact_id: UUID | None = None,
    ) -> UUID:
        """Write an artifact of an item in place: the item has one of the key, which keeps its id.

        Args:
            artifact_id: what an earlier call returned, which saves a lookup.

        Returns:
            Its id: another one when somebody has deleted the artifact.
        """

    async def read_artifacts(self, keys: Collection[str]) -> dict[str, Any]:
        """Return the data of the newest artifact of each of these keys that has one, of whatever item."""

    async def list_artifacts(self, item_id: UUID) -> list[dict[str, Any]]:
        """List the artifacts that an item shows; the data of its states, which the server keeps as some, are not."""

    async def beat_items(self, items: Sequence[Item]) -> None:
        """Tell the server that these items are alive (Prefect's `prefect.flow-run.heartbeat` event)."""

    def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[ItemChange]:
        """Yield an empty change once the stream is open, then each of an item of these pools that is queued,
        claimed, or asked to stop.

        Events before the empty change may be missing: read the state then. An event comes before the server has
            committed the change. The iterator ends when the server closes the connection.

        Raises:
            ServerUnavailableError: when the event stream cannot be reached, or breaks.
        """

    def watch_items(self, tag: str, *item_ids: UUID, state_types: Collection[StateType] = ()) -> AsyncIterator[str]:
        """Yield an empty text once the stream is open, then the id of an item whenever its state changes.

        As for `watch_pools`, an event comes before the change is committed.

        Args:
            tag: the items with this tag are watched.
            item_ids: and these.
            state_types: only changes to a state of one of these types; by default to any.

        Raises:
            ServerUnavailableError: when the event stream cannot be reached, or breaks.
        """

    # --- agents ---
    async def beat_worker(self, pool: str, name: str, interval_seconds: int) -> None:
        """Tell the server that an agent is alive."""

    async def list_workers(self, pool: str) -> list[Worker]:
        """List the agents that have beaten for a pool."""

    async def delete_worker(self, pool: str, name: str) -> None:
        """Take an agent that leaves off the pool's list; one that is gone is fine."""

    # --- variables: small values by name ---
    async def read_variable(self, name: str) -> Any:
        """Read a variable's value; `None` when there is none."""

    async def write_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> None:
        """Set a variable, made when it is not there.

        Raises:
            SpecError: for a bad name, or a value that is too long.
        """

    async def create_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> bool:
        """Make a variable; false when there is one of that name, which stays as it is.

        Raises:
            SpecError: for a bad name, or a value that is too long.
        """

    async def delete_variable(self, name: str) -> bool:
        """Delete a variable; whether it was there."""

    def watch_settings(self, *names: str) -> AsyncIterator[str]:
        """Yield an empty text once the stream is open, then a name whenever what has it is changed.

        That is a variable which is set or deleted, or a queue which is paused, resumed, or given another limit or
        template. Servers before Prefect 3.8 do not tell. As for `watch_pools`, an event comes before the change is
        committed.

        Args:
            names: of variables and queues.

        Raises:
            ServerUnavailableError: when the event stream cannot be reached, or breaks.
        """

    async def list_variables(self, *tags: str) -> dict[str, Any]:
        """Return the values of the variables that have all these tags, by their names."""
