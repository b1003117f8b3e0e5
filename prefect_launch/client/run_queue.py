"""Run queue as its callers have it: what its owner has set, its items, and a limit or a pause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.options import QueueOptions
from prefect_launch.queues.pool import check_concurrency
from prefect_launch.server.values import Pool

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun


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
        pin: True: an item runs only the image that its tag meant when it was queued. False: the one of its tag at the
            start. None: as with True if the registry answers at the enqueue, else as with False.
        fail_impossible_after: seconds after which an item fails that asks for more than any agent has; None: it waits.
        per_author: how many jobs of one author may be active at a time; None: any number.
        per_author_waiting: how many jobs of one author may wait; None: any number.
        preempt: whether a critical item may send a low one back into the queue that says it can resume.
        outputs: how much is kept of the outputs of one run; an agent's own limits apply as well.
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
        self.per_author = config.per_author
        self.per_author_waiting = config.per_author_waiting
        self.preempt = config.preempt

    @classmethod
    def create(
        cls,
        name: str,
        resource: str,
        entity: str | None = None,
        prioritization_mode: str | None = None,
        config: Mapping[str, Any] | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> RunQueue:
        """Create a queue on the server of calls that name none; `Api.create_run_queue` has more arguments.

        Raises:
            LaunchError: as `Api.create_run_queue` does.
        """
        from prefect_launch.client.api import default_api

        return default_api().create_run_queue(
            name,
            resource,
            entity=entity,
            prioritization_mode=prioritization_mode,
            config=config,
            template_variables=template_variables,
        )

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
    def options(self) -> QueueOptions:
        """What its owner has asked for, to be changed with `dataclasses.replace` and given to `Api.edit_run_queue`."""
        return QueueOptions(
            self.name,
            self.type,
            entity=self.entity,
            prioritization_mode=self.prioritization_mode,
            config=self.default_resource_config,
            template_variables=self.template_variables,
            concurrency=self.concurrency_limit,
            submitter_options=self.submitter_options,
            submitter_secrets=self.submitter_secrets,
            fail_impossible_after=self.fail_impossible_after,
            per_author=self.per_author,
            per_author_waiting=self.per_author_waiting,
            preempt=self.preempt,
        )

    @property
    def url(self) -> str:
        """The queue's page in the UI."""
        return f"{self._api.ui_url}/work-pools/work-pool/{self.name}"

    @property
    def items(self) -> list[QueuedRun]:
        """All items of the queue, newest first; read anew at each use."""
        return self._api.items(queue=self.name, limit=None)

    def pause(self) -> None:
        """Let no further item start, but for those polled in the last seconds; running items continue."""
        self._api.update_run_queue(self.name, is_paused=True)
        self.is_paused = True

    def resume(self) -> None:
        """Let items start again."""
        self._api.update_run_queue(self.name, is_paused=False)
        self.is_paused = False

    def set_concurrency_limit(self, limit: int | None) -> None:
        """Set how many items may be active at a time (at least 1); `None` for no limit.

        Raises:
            QueueError: for a number below 1.
        """
        check_concurrency(limit)
        self._api.update_run_queue(self.name, concurrency_limit=limit)
        self.concurrency_limit = limit

    def delete(self) -> int:
        """Delete the queue with its waiting items; returns how many those were."""
        return self._api.delete_run_queue(self.name)
