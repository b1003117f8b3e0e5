"""Values of the Prefect server, frozen: items (flow runs), queues (work pools), verdicts.

Only the fields that we read; whatever else a server version sends is ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Final, NamedTuple, TypedDict
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.core.validation import ServerText

#: The most that a Prefect server lists in one request.
PAGE: Final = 200
#: Items in one bulk request. The server takes 100, but no faster (31 to 36 a second; 50: 32 to 40), and a SQLite server
#: lets nobody else write meanwhile: at 25 ms an item, an agent's claim would wait for 2.5 s.
BULK: Final = 50
#: The type of the work pools that are ours.
POOL_TYPE = "launch"
#: The flow of jobs, and the flow of sweeps: an item is a run of one of them.
JOB_FLOW: Final = "launch"
SCHEDULER_FLOW: Final = "launch-sweep"
ITEM_FLOWS: Final = (JOB_FLOW, SCHEDULER_FLOW)
#: The work queue of a pool that its sweeps wait in.
SWEEPS_WORK_QUEUE: Final = "sweeps"
#: Name of the `Cancelled` state of an item that was moved: another item has taken its place.
MOVED: Final = "Moved"
#: No item is due later: what is due by then is all that waits.
END_OF_TIME: Final = datetime(9000, 1, 1, tzinfo=timezone.utc)

_TIME: Final = TypeAdapter(datetime)


class _Value(BaseModel):
    # A NaN must not become null on its way: it is refused.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, ser_json_inf_nan="constants")


class State(_Value):
    """A state that an item was or is in."""

    type: StateType
    name: str
    message: ServerText | None = None
    timestamp: datetime | None = None
    data: Any = None
    state_details: dict[str, Any] = Field(default_factory=dict)

    @property
    def transition_id(self) -> str | None:
        """The id under which it was proposed, if any."""
        found = self.state_details.get("transition_id")
        return None if found is None else str(found)

    @property
    def scheduled_time(self) -> datetime | None:
        """The time for which it is scheduled; of a claim, that of the state it was made from. None: there is none."""
        found = self.state_details.get("scheduled_time")
        return None if found is None else _TIME.validate_python(found)

    @classmethod
    def of(cls, state: ItemState, message: str | None = None) -> State:
        """Make the state that is to be proposed."""
        return cls(type=state.type, name=state.label, message=message)


class Maker(_Value):
    """Who made an item: a user, a deployment, a schedule."""

    id: UUID | None = None
    type: str | None = None


class Item(_Value):
    """A queue item: a flow run, of the flow `launch` when it is a job, and of `launch-sweep` when it is a sweep."""

    id: UUID
    name: str
    created: datetime | None = None
    deployment_id: UUID | None = None
    flow_id: UUID | None = None
    flow: str | None = Field(default=None, description="Its flow's name, which decides its kind; None: was not read.")
    parameters: dict[str, Any] = Field(default_factory=dict)
    job_variables: dict[str, Any] | None = None
    idempotency_key: str | None = None
    created_by: Maker | None = None
    tags: tuple[str, ...] = ()
    labels: dict[str, Any] = Field(default_factory=dict)
    run_count: int = 0
    state: State | None = None
    state_type: StateType | None = None
    state_name: str | None = None
    work_pool_id: UUID | None = None
    work_pool_name: str | None = None
    work_queue_name: str | None = None
    work_queue_id: UUID | None = None
    expected_start_time: datetime | None = None
    next_scheduled_start_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    total_run_time: float = 0.0
    infrastructure_pid: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the item has ended."""
        return self.state_type in TERMINAL

    @property
    def last_attempt(self) -> int:
        """The number of its last attempt; 1 before it has run."""
        return max(1, self.run_count)

    def running_seconds(self, now: datetime) -> float:
        """Return for how long it was Running by then, in all: the times between its attempts are left out."""
        since = self.state.timestamp if self.state and self.state_type is StateType.RUNNING else None
        return self.total_run_time + (0.0 if since is None else max(0.0, (now - since).total_seconds()))

    @property
    def message(self) -> str:
        """The message of its state, or an empty text."""
        return (self.state.message or "") if self.state else ""


class Pool(_Value):
    """A queue, as the server knows it: a work pool."""

    id: UUID
    name: str
    type: str
    description: str | None = None
    is_paused: bool = False
    concurrency_limit: int | None = None
    base_job_template: dict[str, Any] = Field(default_factory=dict)
    status: str | None = None
    created: datetime | None = None


class PriorityQueue(_Value):
    """A work queue of a pool: one priority of a queue."""

    id: UUID
    name: str
    priority: int | None = None
    is_paused: bool = False
    concurrency_limit: int | None = None


class Deployment(_Value):
    """A deployment: what items of a queue, or of one job, are made from."""

    id: UUID
    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    parameter_openapi_schema: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    labels: dict[str, Any] | None = None
    work_pool_name: str | None = None
    work_queue_name: str | None = None
    version: str | None = None


class Worker(_Value):
    """An agent, as its heartbeats tell the server."""

    name: str
    last_heartbeat_time: datetime | None = None
    heartbeat_interval_seconds: int | None = None
    status: str | None = None


class Answer(str, Enum):
    """What the server said to a proposed state."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    ABORT = "ABORT"
    WAIT = "WAIT"


class Verdict(_Value):
    """The server's answer to a proposed state."""

    status: Answer
    state: State | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    is_repeated: bool = Field(default=False, description="An earlier request made it: the item may have moved on.")

    @property
    def accepted(self) -> bool:
        """Whether the item is in the proposed state now."""
        return self.status is Answer.ACCEPT

    @property
    def reason(self) -> str:
        """Why not, in the server's words."""
        return str(self.details.get("reason") or "")


class LogRecord(_Value):
    """One record of an item's log, as the UI shows it."""

    name: str = "launch"
    level: int = 20
    message: ServerText
    timestamp: datetime


class ItemDraft(_Value):
    """An item that is to be made."""

    name: str
    parameters: dict[str, Any]
    job_variables: dict[str, Any] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()
    labels: dict[str, Any] = Field(default_factory=dict)
    work_queue_name: str = "default"
    idempotency_key: str
    state: State = Field(default_factory=lambda: State.of(ItemState.QUEUED))
    enforce_parameter_schema: bool | None = Field(
        default=None, description="Whether the server checks the parameters; `None`: as the deployment says."
    )

    def made(self, item_id: UUID, deployment_id: UUID) -> Item:
        """Return the item that was made of this, as far as its maker knows it: without what the deployment adds."""
        return Item(
            id=item_id,
            name=self.name,
            deployment_id=deployment_id,
            parameters=self.parameters,
            job_variables=self.job_variables,
            idempotency_key=self.idempotency_key,
            tags=self.tags,
            labels=self.labels,
            work_queue_name=self.work_queue_name,
            state=self.state,
            state_type=self.state.type,
            state_name=self.state.name,
        )


class ItemFilter(TypedDict, total=False):
    """Which items a list or a count is of. What is left out, or `None`, filters nothing.

    Attributes:
        pool: name of their work pool.
        queue: name of their work queue in it.
        tags: of which they have all.
        keys: their idempotency keys.
        due_before: they are due by then.
        expected_after: they were first due at this time or later.
        flow: the name of their flow; by default any of `ITEM_FLOWS`.
        moved: those that were moved too; by default only what has taken their place.
    """

    pool: str | None
    queue: str | None
    ids: Collection[UUID] | None
    state_types: Collection[StateType] | None
    state_names: Collection[str] | None
    tags: Collection[str] | None
    keys: Collection[str] | None
    names: Collection[str] | None
    due_before: datetime | None
    expected_after: datetime | None
    flow: str | None
    moved: bool


class DeploymentFields(TypedDict):
    """What a deployment is made of.

    Attributes:
        pool: where its items go.
        parameters: of its items, unless they say.
        parameter_schema: JSON schema of the parameters.
        enforce: whether the server checks parameters by that schema.
    """

    pool: str
    parameters: dict[str, Any]
    parameter_schema: dict[str, Any]
    description: str
    tags: Collection[str]
    labels: Mapping[str, Any]
    enforce: bool


class ServerAbout(_Value):
    """What a server says of itself."""

    version: str = Field(description='Of Prefect, such as "3.8.8".')
    time: datetime | None = Field(default=None, description="Of its clock, in whole seconds; None: it did not say.")


class ItemChange(NamedTuple):
    """A change of an item's state, as the event stream tells of it; the first of a stream names no item.

    Attributes:
        item_id: of the item; empty: the stream is open.
        queue: the item's.
        type: of the new state.
        work_queue: name of the item's; empty: not told.
        is_new: the item was made just now, as `Queued`. It waits behind the others of its work queue, unless it was
            moved with its place in line.
    """

    item_id: str = ""
    queue: str = ""
    type: StateType | None = None
    work_queue: str = ""
    is_new: bool = False
