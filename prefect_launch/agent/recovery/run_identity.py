"""Whether something found on this machine is ours, and whether it is what its item runs in now.

Labels are easily copied, so they prove nothing alone. A run is ours when it goes by the name that its labels tell, and
the claim that they tell is known: to the plan in the run's folder in this agent's own home, or, when that is gone or
broken, to the item itself. What is not ours is not touched. A run is its item's present one when the item's last claim
made it and the attempt is the present one; anything else of ours is left from an attempt that is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from prefect_launch.agent.recovery.ownership import claims_of, last_claim, token_of_claim
from prefect_launch.core.states import ACTIVE, StateType
from prefect_launch.planning.plan import load_plan
from prefect_launch.runners.base import Found, Labels, RunPlan, run_name
from prefect_launch.server.values import Item, State
from prefect_launch.settings.agent_config import Site


class Identity(NamedTuple):
    """What the labels of a run tell."""

    item_id: UUID
    attempt: int
    claim: str


def identity_of(found: Found) -> Identity | None:
    """Read a run's labels; `None` when they are not such as an agent gives."""
    try:
        claim = found.labels.get(Labels.CLAIM, "")
        identity = Identity(
            UUID(found.labels[Labels.ITEM]), int(found.labels[Labels.ATTEMPT]), str(UUID(claim)) if claim else ""
        )
    except (KeyError, ValueError):
        return None
    if found.name not in (None, run_name(identity.item_id, identity.attempt)) or Labels.QUEUE not in found.labels:
        return None
    return identity


def plan_of(site: Site, identity: Identity) -> RunPlan | None:
    """Return the plan of a run from its folder in this home; `None` when it is gone, broken or another run's."""
    plan = load_plan(site.run_dir(str(identity.item_id), identity.attempt, identity.claim))
    if plan is None or plan.labels.get(Labels.CLAIM, "") != identity.claim:
        return None
    return plan if (plan.item_id, plan.attempt) == (str(identity.item_id), identity.attempt) else None


def is_ours(identity: Identity, plan: RunPlan | None, history: Sequence[State]) -> bool:
    """Whether an agent of this home, or one that had claimed the item, has made a run."""
    return plan is not None or identity.claim in [token_of_claim(claim) for claim in claims_of(history)]


def is_present(identity: Identity, item: Item, history: Sequence[State]) -> bool:
    """Whether a run is the item's present attempt: `run_count` grows when the item becomes Running."""
    claim = last_claim(history)
    if item.state_type not in ACTIVE or (claim is not None and token_of_claim(claim) != identity.claim):
        return False
    if item.state_type is StateType.PENDING:
        return item.run_count + 1 == identity.attempt
    if item.state_type is StateType.CANCELLING:
        return item.run_count in (identity.attempt, identity.attempt - 1)
    return item.run_count == identity.attempt
