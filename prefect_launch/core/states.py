"""Item states, and which state may follow which.

An item is a flow run, and its state is the flow run's. Prefect keeps a *type*, by which its server orchestrates, and a
*name*, which people read. docs/design.md, "The life of an item", says who sets which.
"""

from __future__ import annotations

from enum import Enum

#: Key in the data of a failed item's state: the last line of its log, if the job itself is at fault.
LAST_LINE = "last_line"
#: Key in the data of an ended item's state: what its run has used, by the names of `prefect_launch.core.usage`.
USAGE = "usage"


class StateType(str, Enum):
    """Prefect's own state types."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


TERMINAL = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED})
#: States in which an agent holds the item.
ACTIVE = frozenset({StateType.PENDING, StateType.RUNNING, StateType.CANCELLING})


class ItemState(Enum):
    """The states that prefect-launch sets, each with Prefect's type."""

    QUEUED = ("Queued", StateType.SCHEDULED)
    #: Requeued by its retry policy, due at a later time. The name is Prefect's.
    AWAITING_RETRY = ("AwaitingRetry", StateType.SCHEDULED)
    #: The claim. The server refuses a second one only under exactly this name (a `Pending` of any other name is let
    #: through).
    CLAIMED = ("Pending", StateType.PENDING)
    BUILDING = ("Building", StateType.PENDING)
    PULLING = ("Pulling", StateType.PENDING)
    #: Accepted by the cluster that it is to run in, and waiting there; the message is the cluster's reason.
    SUBMITTED = ("Submitted", StateType.PENDING)
    RUNNING = ("Running", StateType.RUNNING)
    COMPLETED = ("Completed", StateType.COMPLETED)
    FAILED = ("Failed", StateType.FAILED)
    CRASHED = ("Crashed", StateType.CRASHED)
    CANCELLING = ("Cancelling", StateType.CANCELLING)
    CANCELLED = ("Cancelled", StateType.CANCELLED)

    def __init__(self, label: str, state_type: StateType) -> None:
        self.label = label
        self.type = state_type


_ON_THE_WAY = frozenset({ItemState.BUILDING, ItemState.PULLING, ItemState.SUBMITTED})

#: From which type of state each state may be entered. `RUNNING` only from `PENDING`: each entry counts as one attempt.
ALLOWED_FROM: dict[ItemState, frozenset[StateType]] = {
    ItemState.QUEUED: frozenset(
        {
            *(StateType.PENDING, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED, StateType.COMPLETED),
            StateType.RUNNING,  # It is sent back, to make place for a more urgent one.
        }
    ),
    ItemState.AWAITING_RETRY: frozenset({StateType.PENDING, StateType.RUNNING}),
    ItemState.CLAIMED: frozenset({StateType.SCHEDULED}),
    **dict.fromkeys(_ON_THE_WAY, frozenset({StateType.PENDING})),
    ItemState.RUNNING: frozenset({StateType.PENDING}),
    ItemState.COMPLETED: frozenset({StateType.PENDING, StateType.RUNNING}),
    ItemState.FAILED: frozenset({StateType.PENDING, StateType.RUNNING}),
    ItemState.CRASHED: frozenset({StateType.PENDING, StateType.RUNNING}),
    ItemState.CANCELLING: frozenset({StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING}),
    ItemState.CANCELLED: frozenset({StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLING, StateType.RUNNING}),
}


def is_allowed(current: StateType, target: ItemState) -> bool:
    """Whether an item in a state of type `current` may be moved to `target`."""
    return current in ALLOWED_FROM[target]
