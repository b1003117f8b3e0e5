"""What an `Api` does with queues."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from prefect_launch.core.names import check_name
from prefect_launch.core.signature import made_of_arguments
from prefect_launch.errors import QueueError
from prefect_launch.queues.queue_options import QueueOptions

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.agent_status import AgentInfo, QueueActivity
    from prefect_launch.queues.run_queue import RunQueue
    from prefect_launch.queues.session import Session


class QueueCalls:
    """The calls of an `Api` about queues; a part of `Api`, which is what `self` is."""

    entity: str

    @property
    def _api(self) -> Api:
        return cast("Api", self)

    @made_of_arguments(QueueOptions)
    def create_run_queue(self, options: QueueOptions) -> RunQueue:
        """Make a queue; the arguments are the attributes of `QueueOptions`.

        Raises:
            QueueError: when it is there already, or its configuration is wrong.
            InvalidNameError: for a bad name.
            NotFoundError: for an unknown resource or option.
        """
        return self.write_run_queue(options, replace=False)

    @made_of_arguments(QueueOptions)
    def upsert_run_queue(self, options: QueueOptions) -> RunQueue:
        """Make a queue, or bring the one of that name up to date; arguments as `create_run_queue`."""
        return self.write_run_queue(options, replace=True)

    def write_run_queue(self, options: QueueOptions, *, replace: bool) -> RunQueue:
        """Make a queue as its options say.

        Args:
            options: of the queue.
            replace: bring the queue of that name up to date, when it is there, instead of refusing.

        Raises:
            LaunchError: as `create_run_queue`.
        """
        from prefect_launch.queues.options import make_config
        from prefect_launch.queues.run_queue import RunQueue, check_concurrency, check_queue_name, create_queue

        name = check_queue_name(options.name)
        concurrency = check_concurrency(options.concurrency)
        owner = check_name("entity", options.entity or self.entity)
        made = make_config(dataclasses.replace(options, entity=owner))
        pool = self._api.call(
            lambda session: create_queue(session, name, made, concurrency=concurrency, replace=replace)
        )
        return RunQueue(self._api, pool)

    def run_queue(self, name: str) -> RunQueue:
        """Return the queue of that name.

        Raises:
            NotFoundError: when there is none; names the nearest one.
        """
        from prefect_launch.queues.run_queue import RunQueue

        async def read(session: Session) -> Any:
            session.forget_queue(name)
            await session.queue(name)
            return await session.server.read_pool(name)

        return RunQueue(self._api, self._api.call(read))

    def run_queues(self) -> list[RunQueue]:
        """List the queues, by name; work pools of the type that have no launch configuration are left out."""
        from prefect_launch.queues.run_queue import RunQueue

        found = []
        for pool in self._api.call(lambda session: session.server.list_pools()):
            try:
                found.append(RunQueue(self._api, pool))
            except QueueError:
                continue
        return sorted(found, key=lambda queue: queue.name)

    def update_run_queue(self, name: str, **changes: Any) -> None:
        """Change a queue's `is_paused` or `concurrency_limit`.

        Raises:
            NotFoundError: when there is none of that name.
        """

        async def update(session: Session) -> None:
            await session.queue(name)
            await session.server.update_pool(name, **changes)

        self._api.call(update)

    def delete_run_queue(self, name: str) -> int:
        """Delete a queue with its waiting items; returns how many those were.

        Raises:
            NotFoundError: when there is none of that name.
        """
        from prefect_launch.queues.run_queue import delete_queue

        return self._api.call(lambda session: delete_queue(session, name))

    def queue_activity(self, queues: Iterable[str]) -> list[QueueActivity]:
        """Tell how much waits and is in work on each of these queues, and which agents are there for it."""
        from prefect_launch.queues.agent_status import queue_activity

        names = list(queues)
        return self._api.call(lambda session: queue_activity(session, names))

    def agents(self) -> list[AgentInfo]:
        """List the agents of all queues, by name."""
        from prefect_launch.queues.agent_status import agents

        return self._api.call(agents)

    def drain_agent(self, name: str, *, undo: bool = False) -> AgentInfo:
        """Tell an agent, on whatever machine, to take no more items and to leave when its work is done.

        Args:
            name: of the agent.
            undo: let it take items again instead.

        Returns:
            The agent, as it was before.

        Raises:
            NotFoundError: when there is no agent of that name.
            LaunchError: when it is offline, or there is no order to take back.
        """
        from prefect_launch.queues.agent_status import drain_agent

        return self._api.call(lambda session: drain_agent(session, name, undo=undo))
