"""Moving the server's flow runs from state to state: each proposal takes effect once.

The answer to a proposal can be lost when the server or the way to it breaks down. The server tells a repeated
proposal by its transition id, but only as long as the item is in that very state; so after a lost answer the item's
states are read first, and what reached the server is not made again over what others have made of the item since.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID, uuid4

import anyio

from prefect_launch.errors import AnswerLostError, ItemGoneError, ServerFailedError
from prefect_launch.server.rest import Rest
from prefect_launch.server.values import Answer, State, Verdict

#: Proposals in a row whose answers are lost, before the caller hears of it.
_LOST_MAX: Final = 5
#: What a server gets to commit a request whose answer cannot reach us any more.
_LOST_PAUSE_SECONDS: Final = 0.3

#: The server keeps a state's data as an artifact. Of this type, as the results of Prefect's own flows are, it is not
#: listed among what a run shows; without one, its page has an artifact of no name and type.
RESULT: Final = "result"


class ProposalCalls:
    """Calls about the states of items."""

    _rest: Rest
    _unanswered: set[UUID]

    async def propose(
        self, item_id: UUID, state: State, *, transition_id: UUID | None = None, force: bool = False
    ) -> Verdict:
        """Propose a state; under one transition id it takes effect once, also when it is proposed again.

        Raises:
            ItemGoneError: when there is no such item.
            AnswerLostError: when answers are lost again and again; propose it again under the same transition id.
        """
        token = transition_id or uuid4()
        lost = 0
        while True:
            if token in self._unanswered and (made := await self._made(item_id, token)):
                self._unanswered.discard(token)
                return Verdict(status=Answer.ACCEPT, state=made)
            try:
                verdict = await self._send(item_id, state, token, force=force)
            except AnswerLostError:
                self._unanswered.add(token)
                lost += 1
                if lost == _LOST_MAX:
                    raise
                await anyio.sleep(_LOST_PAUSE_SECONDS)
            except ServerFailedError:
                self._unanswered.add(token)
                raise
            else:
                self._unanswered.discard(token)
                return verdict

    async def read_states(self, item_id: UUID) -> list[State]:
        """List the states that an item was in, oldest first."""
        found = await self._rest.get("GET", "/flow_run_states/", params={"flow_run_id": str(item_id)})
        return [State.model_validate(state) for state in found or ()]

    async def _made(self, item_id: UUID, token: UUID) -> State | None:
        """Return the state that a proposal has made, if it has."""
        made = [state for state in await self.read_states(item_id) if state.transition_id == str(token)]
        return made[-1] if made else None

    async def _send(self, item_id: UUID, state: State, token: UUID, *, force: bool) -> Verdict:
        proposed = {
            "type": state.type.value,
            "name": state.name,
            "message": state.message,
            "data": _as_result(state.data),
            "state_details": {
                **state.state_details,
                "flow_run_id": str(item_id),
                "transition_id": str(token),
            },
        }
        body = {"state": proposed, "force": force}
        answer = await self._rest.get("POST", f"/flow_runs/{item_id}/set_state", json=body)
        if answer is None:
            raise ItemGoneError(f"Item {item_id} is not on the server any more: it was deleted while it was in work.")
        return Verdict.model_validate(answer)


def _as_result(data: Any) -> Any:
    return {**data, "artifact_type": RESULT} if data and isinstance(data, dict) else data
