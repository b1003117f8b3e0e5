"""Gate for queues that share their slots among authors: who is at the limit is passed over, the others take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefect_launch.queues.author_shares import in_turn, read_in_work
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item


class AuthorGate:
    """Drops the items of a poll whose authors have as many in work as the queue allows, and orders the others.

    Args:
        server: the Prefect server.
        queue: the queue's name.
        per_author: returns how many jobs of one author may be in work; `None`: there is no limit, and nothing to ask.
    """

    def __init__(self, server: Server, queue: str, per_author: Callable[[], int | None]) -> None:
        self._server = server
        self._queue = queue
        self._per_author = per_author

    async def startable(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that may start, in the order in which authors take turns.

        Raises:
            LaunchError: when the server does not answer.
        """
        most = self._per_author()
        if most is None or not items:
            return list(items)
        return in_turn(items, await read_in_work(self._server, self._queue), most)
