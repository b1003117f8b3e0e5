"""Handle on one item of a queue (`QueuedRun`)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.client.item_handle import ItemHandle
from prefect_launch.client.patience import when_answered
from prefect_launch.core.caller import caller
from prefect_launch.core.output_limits import OUTPUTS_FILE
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.terminal import printable
from prefect_launch.errors import ArtifactError, ExecutionError, LaunchError, NotFoundError
from prefect_launch.queues.cancel_request import request_cancel
from prefect_launch.server.logs import read_log
from prefect_launch.server.values import Item, LogRecord, State
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.core.metrics import Metrics
    from prefect_launch.jobs.model import Job
    from prefect_launch.queues.session import Session
    from prefect_launch.queues.wait_reason import WaitReason


_POLL_MIN_SECONDS: Final = 0.1
_POLL_MAX_SECONDS: Final = 1.0
#: Log lines in the error of a run that did not complete.
LAST_LINES: Final = 20
_STARTED = frozenset({StateType.RUNNING, StateType.COMPLETED})


#: Begins the names of the loggers of Prefect's engine: `launch` is a flow, and its own lines are no output of the job.
_PREFECT_RECORDS: Final = "prefect."


class QueuedRun(ItemHandle):
    """One item of a queue.

    Attributes:
        id: of the item, which is the flow run's (a UUID as text).
        name: the flow run's.
        run_id: the launch run id.
        queue_name: of its queue.
        entity, project: of the run.
        project_queue: what `launch_add` was given, kept for callers of the reference's library.
        priority: 1 (critical) to 4 (low).
        sweep: id of its sweep, if it is of one.
    """

    def __init__(self, api: Api, item: Item) -> None:
        super().__init__(api, item)
        self.project_queue: str | None = None
        self._set(item)

    def _set(self, item: Item) -> None:
        """Be the handle of an item: of its own, or of the one that has taken its place."""
        from prefect_launch.spec.item_parameters import options_of, run_id_of

        options = options_of(item)
        self._id, self.id, self.name = item.id, str(item.id), item.name
        self.run_id = run_id_of(item)
        self.queue_name = item.work_pool_name or ""
        self.entity = str(options.get("entity") or self._api.entity)
        self.project = str(options.get("project") or self._api.project)
        self.priority = Priority.of_work_queue(item.work_queue_name)
        self.sweep: str | None = options.get("sweep_id")

    def __repr__(self) -> str:
        return f"<QueuedRun {self.name} {self.id} on {self.queue_name}>"

    async def _item(self, session: Session) -> Item:
        from prefect_launch.queues.moved import read_current

        found = await read_current(session.server, self._id)
        if found is None:
            raise NotFoundError(f"Item {self.id} ({self.name}) is not there any more: it was deleted.")
        if found.id != self._id:
            self._set(found)
        return found

    def why_waiting(self) -> WaitReason | None:
        """Return why it waits: its place in the queue, the reason, and about when it will start.

        Returns:
            The reason; `None` when it does not wait. `str()` of it is a sentence or two.
        """
        return self._api.call(self._why_waiting)

    async def awhy_waiting(self) -> WaitReason | None:
        """`why_waiting` for async code."""
        return await self._api.acall(self._why_waiting)

    async def _why_waiting(self, session: Session) -> WaitReason | None:
        from prefect_launch.queues.wait_reason import why_waiting

        item = await session.server.read_item(self._id)
        return None if item is None else await why_waiting(session, item)

    def from_limits(self) -> dict[str, Any]:
        """Return what it gets at most by its queue's limits, as they are now, of what it does not ask for."""

        async def read(session: Session) -> dict[str, Any]:
            from prefect_launch.planning.item_options import limits_for
            from prefect_launch.policy.template import QueueConfig
            from prefect_launch.spec.item_parameters import spec_of

            name, item = self.queue_name, await self._item(session)
            config = QueueConfig.from_template(name, (await session.pool(name)).base_job_template)
            return limits_for(config, spec_of(item), name)

        if not self.queue_name:  # A run of `launch`.
            return {}
        try:
            return self._api.call(read)
        except LaunchError:  # Its queue is gone, or its spec is wrong: its state says so.
            return {}

    def logs(self, *, since: datetime | None = None) -> list[LogRecord]:
        """Return the records of its log, oldest first; with `since`, those of that time or later."""
        return self._api.call(lambda session: read_log(session.server, self._id, since))

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        """Return the last lines of its log, at most so many, without what Prefect tells of a flow and its tasks."""
        records = [record for record in self.logs() if not record.name.startswith(_PREFECT_RECORDS)][-count:]
        return [line for record in records for line in record.message.splitlines()][-count:]

    def outputs(self) -> dict[str, Any]:
        """Return the named results that its last attempt left in `outputs.json`; empty when it left none.

        Raises:
            ArtifactError: when what it left is no JSON object.
        """

        return self._api.call(self._outputs)

    async def _outputs(self, session: Session) -> dict[str, Any]:
        return await read_outputs(session, await self._item(session))

    def files(self) -> dict[str, int]:
        """Return the files that its last attempt left, with its whole log: their sizes in bytes, by relative path.

        Raises:
            NotFoundError: when none is stored, or not yet.
        """
        from prefect_launch.client.item_files import list_files

        item = self.item
        return self._api.call(lambda session: list_files(session, item))

    def download(
        self, pattern: str | None = None, to: str | Path | None = None, *, overwrite: bool = False
    ) -> list[Path]:
        """Copy the files that its last attempt left into a folder; each appears whole or not at all.

        Args:
            pattern: which files, as in `.gitignore`: `*.pt`, `checkpoints/**`, `/model.pt`; `None` for all.
            to: the folder; by default one of the item's name in the working directory.
            overwrite: replace a file that is there and differs.

        Returns:
            The files in the folder, in the order of their names.

        Raises:
            NotFoundError: when none is stored, or none matches; names the nearest ones.
            LaunchError: when a file would be replaced, or written outside of the folder.
        """
        return self._api.call(lambda session: self._download(session, pattern, to, overwrite=overwrite))

    async def adownload(
        self, pattern: str | None = None, to: str | Path | None = None, *, overwrite: bool = False
    ) -> list[Path]:
        """`download` for async code."""
        return await self._api.acall(lambda session: self._download(session, pattern, to, overwrite=overwrite))

    async def _download(
        self, session: Session, pattern: str | None, to: str | Path | None, *, overwrite: bool
    ) -> list[Path]:
        from prefect_launch.client.item_files import default_folder, download

        folder = default_folder(self.name) if to is None else Path(to)
        return await download(session, await self._item(session), pattern, folder, overwrite=overwrite)

    def metrics(self) -> Metrics:
        """Return the metrics that it has reported, with their histories; empty when it has reported none."""
        return self._read_metrics("metrics")

    def usage(self) -> dict[str, float]:
        """Return what its run uses now, by the names of `prefect_launch.core.usage`; once it has ended, its totals.

        Empty where that is not known: before the first sample, and on a resource that does not tell it.
        """

        async def read(session: Session) -> dict[str, float]:
            from prefect_launch.core.usage import totals_in
            from prefect_launch.queues.agent_status import read_usage

            item = await self._item(session)
            if item.is_terminal:
                return totals_in(item.state.data if item.state else None)
            return (await read_usage(session.server)).get(self.id, {})

        return self._api.call(read)

    def usage_history(self) -> Metrics:
        """Return the histories of what its run has used, by the second; empty before it has ended."""
        return self._read_metrics("usage")

    def _read_metrics(self, kind: str) -> Metrics:
        async def read(session: Session) -> Metrics:
            from prefect_launch.core.metrics import Metrics
            from prefect_launch.server.metrics import read_metrics

            return (await read_metrics(session.server, [self._id], kind)).get(self._id, Metrics())

        return self._api.call(read)

    def wait_until_started(self, timeout: float | None = None) -> Item:
        """Wait until its process exists (or has ended well).

        Args:
            timeout: in seconds; `None` waits as long as it takes.

        Raises:
            ExecutionError: when it ended before, or without success.
            TimeoutError: when it has not started in time; it stays in the queue.
        """
        return self._wait(lambda item: item.state_type in _STARTED, "start", timeout)

    def wait_until_running(self, timeout: float | None = None) -> Item:
        """The reference's name of `wait_until_started`."""
        return self.wait_until_started(timeout)

    def wait_until_finished(self, timeout: float | None = None) -> Item:
        """Wait until it has ended with success.

        Args:
            timeout: in seconds; `None` waits as long as it takes.

        Raises:
            ExecutionError: when it failed, crashed or was cancelled; with the exit code and the last lines of its log.
            TimeoutError: when it has not ended in time; it continues.
        """
        return self._wait(lambda item: item.state_type is StateType.COMPLETED, "finish", timeout)

    def _wait(self, reached: Callable[[Item], bool], what: str, timeout: float | None) -> Item:
        give_up_at = None if timeout is None else time.monotonic() + timeout
        pause = _POLL_MIN_SECONDS
        while True:
            item = when_answered(lambda: self.item, give_up_at=give_up_at)
            if reached(item):
                return item
            if item.is_terminal:
                raise self._failure(item)
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise TimeoutError(
                    f"Item {self.name} ({self.id}) did not {what} within {timeout:g} s: it is {item.state_name}."
                    f" {item.message or 'See ' + self.url}"
                )
            time.sleep(pause if give_up_at is None else max(0.0, min(pause, give_up_at - time.monotonic())))
            pause = min(pause * 1.5, _POLL_MAX_SECONDS)

    def _failure(self, item: Item) -> ExecutionError:
        lines = self.last_lines()
        tail = "\n".join(f"  {line}" for line in lines)
        data = item.state.data if item.state and isinstance(item.state.data, dict) else {}
        message = f"Run {self.name} ({self.id}) ended as {item.state_name}: {item.message or '(no reason)'}\n{tail}"
        return ExecutionError(
            printable(message).rstrip(),  # Mostly read in a terminal.
            exit_code=data.get("exit_code"),
            last_lines=lines,
            cancelled=item.state_type is StateType.CANCELLED,
        )

    def cancel(self) -> str:
        """Cancel it: a waiting item ends at once; the agent stops a running one. The state records who cancelled it.

        Returns:
            The name of the state it is in after that.

        Raises:
            LaunchError: when it has ended already.
        """
        before = self.item
        if before.is_terminal:
            raise LaunchError(
                f"Item {self.name} ({self.id}) has ended already, as {before.state_name}: nothing to stop."
            )
        state = self._api.call(lambda session: request_cancel(session.server, before))
        return state.name if state else self.item.state_name or ""

    def retry(self) -> None:
        """Put an item that failed, crashed or was cancelled back into its queue, unchanged.

        Raises:
            LaunchError: when it has not ended, or has ended well.
        """
        item = self.item
        if item.state_type is StateType.COMPLETED:
            raise LaunchError(
                f"Item {self.name} ({self.id}) has ended well and keeps its result. Queue the same spec again to run it"
                " once more."
            )
        if not item.is_terminal:
            raise LaunchError(f"Item {self.name} ({self.id}) is {item.state_name}: only what has ended can be retried.")
        if item.work_pool_name is None:
            raise LaunchError(
                f"Item {self.name} ({self.id}) cannot be retried: its queue was deleted. Queue its spec on another."
            )
        queued = State.of(ItemState.QUEUED, "Put back by hand.")
        # With a run on record, the server would wait for an agent to end it when the item is cancelled in the queue.
        self._api.call(lambda session: session.server.record_infrastructure(self._id, None))
        verdict = self._api.call(lambda session: session.server.propose(self._id, queued))
        if not verdict.accepted:
            raise LaunchError(f"Item {self.name} ({self.id}) cannot be retried: {verdict.reason}.")

    def rerun(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        args: Sequence[str] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        queue_name: str | None = None,
        priority: int | str | None = None,
        name: str | None = None,
    ) -> QueuedRun:
        """Queue a new item of the same job version, image digest and template variables; this one stays as it is.

        Args:
            inputs: over its own, group by group.
            args: in place of its own.
            template_variables: over its own.
            queue_name: of another queue; by default its own.
            priority: by default its own.
            name: the new run's display name; by default its own, if it was given one.

        Returns:
            A handle on the new item.

        Raises:
            LaunchError: as `launch_add`; for a sweep, and for an item that is on no queue when none is named.
        """
        return self._api.call(
            lambda session: self._rerun(
                session,
                inputs=inputs,
                args=args,
                template_variables=template_variables,
                queue_name=queue_name,
                priority=priority,
                name=name,
            )
        )

    async def _rerun(self, session: Session, **changes: Any) -> QueuedRun:
        from prefect_launch.client.rerun import rerun_item

        return await rerun_item(self._api, session, await self._item(session), **changes)

    def save_job(self, name: str | None = None, *, aliases: Sequence[str] = ()) -> Job:
        """Store what it ran as a job, or its next version: the same code or image and digest.

        Its command, with its arguments, is the job's own, and its inputs are the defaults.

        Args:
            name: of the job; by default that of the job that it ran, or `job-` and the image's name.
            aliases: names for this version besides `latest`.

        Raises:
            SpecError: when it has not ended, or is a sweep.
            NotFoundError: when the job that it ran is deleted.
        """
        from prefect_launch.client.save_job import save_job

        async def save(session: Session) -> Job:
            return (await save_job(session, await self._item(session), name=name, aliases=aliases)).job

        return self._api.call(save)

    def edit(self, inputs: Mapping[str, Any]) -> None:
        """Change inputs while it waits; it keeps its place in the queue.

        Args:
            inputs: over its own, group by group.

        Raises:
            InputError: when they do not match the job's schema.
            LaunchError: when it does not wait: an agent has claimed it, perhaps at this moment. It is unchanged then.
        """

        async def edit(session: Session) -> Item:
            from prefect_launch.client.change_item import edit_item

            return await edit_item(self._api, session, await self._item(session), inputs, caller())

        self._api.call(edit)

    def set_priority(self, priority: int | str) -> None:
        """Give it another priority while it waits; otherwise as `move`."""
        self._move(priority=Priority.parse(priority))

    def move(self, queue_name: str, *, priority: int | str | None = None) -> None:
        """Put it on another queue while it waits, with all checks that adding it there makes.

        Prefect cannot move a flow run: the item ends as `Moved`, and another one takes its place in line. Handles and
        commands follow from the old id to the new one, and so does this handle.

        Args:
            queue_name: the other queue.
            priority: by default its own.

        Raises:
            LaunchError: as `launch_add`; and when it does not wait, or has run before. It is unchanged then.
        """
        self._move(queue_name=queue_name, priority=None if priority is None else Priority.parse(priority))

    def _move(self, **target: Any) -> None:
        async def move(session: Session) -> Item:
            from prefect_launch.client.change_item import move_item

            return await move_item(self._api, session, await self._item(session), caller(), **target)

        self._set(self._api.call(move))

    def delete(self, delete_artifacts: bool = False) -> None:
        """Delete it from its queue and the server, with its log.

        Args:
            delete_artifacts: kept for callers of the reference's library; what a run left in the job store stays.

        Raises:
            LaunchError: while it is active; cancel it first.
        """
        item = self.item
        if item.state_type in (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING):
            raise LaunchError(f"Item {self.name} ({self.id}) is {item.state_name}: cancel it before you delete it.")
        self._api.call(lambda session: session.server.delete_item(self._id))


async def read_outputs(session: Session, item: Item) -> dict[str, Any]:
    """Return the named results that an item's last attempt left; empty when it left none.

    Raises:
        ArtifactError: when what it left is no JSON object.
    """
    content = await session.jobs.read_output(str(item.id), item.last_attempt, OUTPUTS_FILE)
    try:
        found = json.loads(content or b"{}")
    except ValueError as error:
        raise ArtifactError(
            f"The {OUTPUTS_FILE} of {item.name} ({item.id}) is no JSON: {error}. Write it with save_outputs()."
        ) from None
    if not isinstance(found, dict):
        raise ArtifactError(f"The {OUTPUTS_FILE} of {item.name} ({item.id}) holds no object. Use save_outputs().")
    return found
