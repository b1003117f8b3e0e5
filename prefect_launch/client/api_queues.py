"""What an `Api` does with queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from prefect_launch.core.names import check_name
from prefect_launch.errors import QueueError

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

    def create_run_queue(
        self,
        name: str,
        type: str,
        entity: str | None = None,
        prioritization_mode: str | None = None,
        config: Mapping[str, Any] | None = None,
        template_variables: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
        *,
        concurrency: int | None = None,
        submitter_options: Iterable[str] = (),
        submitter_secrets: Iterable[str] = (),
        fail_impossible_after: float | str | None = None,
    ) -> RunQueue:
        """Make a queue.

        Args:
            name: 1 to 64 letters, digits, `_`, `.`, `-`.
            type: the resource that its items run on, such as `local-process` or `local-container`.
            entity: its owner; by default this `Api`'s.
            prioritization_mode: `V0` (four priorities, the default) or `DISABLED` (one).
            config: the resource's options; `{{var}}` in it stands for a template variable. `docker: {pin: true}` beside
                them fixes the digest of each item's image when it is queued; `limits: {memory: 16g}` is the
                most that an item may ask for.
            template_variables: `{name: {"schema": {type, enum, minimum, maximum, default}}}`.
            concurrency: how many items may be in work at a time, at least 1; `None` for no limit.
            submitter_options: options that submitters may set besides the resource's usual ones, or though the config
                sets them; `env.NAME` for one variable.
            submitter_secrets: names of the Secret blocks that submitters may name in `env`, and so have; by default
                none. The queue's own config may name any.
            fail_impossible_after: seconds, or a text such as `1h`, after which an item fails that asks for more than
                its agent's machine has, while no other agent is online for the queue that has as much; by default
                it waits.

        Raises:
            QueueError: when it is there already, or its configuration is wrong.
            InvalidNameError: for a bad name.
            NotFoundError: for an unknown resource or option.
        """
        return self._write_queue(
            name,
            type,
            config,
            template_variables,
            concurrency,
            replace=False,
            entity=entity,
            prioritization_mode=prioritization_mode,
            submitter_options=submitter_options,
            submitter_secrets=submitter_secrets,
            fail_impossible_after=fail_impossible_after,
        )

    def upsert_run_queue(
        self,
        name: str,
        type: str,
        entity: str | None = None,
        prioritization_mode: str | None = None,
        config: Mapping[str, Any] | None = None,
        template_variables: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
        *,
        concurrency: int | None = None,
        submitter_options: Iterable[str] = (),
        submitter_secrets: Iterable[str] = (),
        fail_impossible_after: float | str | None = None,
    ) -> RunQueue:
        """Make a queue, or bring the one of that name up to date; arguments as `create_run_queue`."""
        return self._write_queue(
            name,
            type,
            config,
            template_variables,
            concurrency,
            replace=True,
            entity=entity,
            prioritization_mode=prioritization_mode,
            submitter_options=submitter_options,
            submitter_secrets=submitter_secrets,
            fail_impossible_after=fail_impossible_after,
        )

    def _write_queue(
        self,
        name: str,
        resource: str,
        config: Mapping[str, Any] | None,
        variables: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None,
        concurrency: int | None,
        *,
        replace: bool,
        entity: str | None,
        **settings: Any,
    ) -> RunQueue:
        from prefect_launch.queues.options import make_config
        from prefect_launch.queues.run_queue import RunQueue, check_concurrency, check_queue_name, create_queue

        check_queue_name(name)
        check_concurrency(concurrency)
        owner = check_name("entity", entity or self.entity)
        made = make_config(resource, config, variables, entity=owner, **settings)
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
