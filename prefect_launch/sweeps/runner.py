"""Scheduler process of a sweep: it reads the sweep's items, decides, queues and stops trials, until the sweep ends.

It keeps nothing that counts. It can be killed at any point and started again, here or elsewhere, and two at once harm
nothing: the server makes one item for each try of a trial, however often it is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.to_thread

from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import (
    ItemGoneError,
    LaunchError,
    NotFoundError,
    ServerFailedError,
    ServerUnavailableError,
    SpecError,
)
from prefect_launch.server.event_stream import follow
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.board import SweepBoard
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.prior_runs import read_prior_runs
from prefect_launch.sweeps.requests import PauseRequest, RetryRequest, SchedulerProcess, TrialCount
from prefect_launch.sweeps.samplers.base import next_params
from prefect_launch.sweeps.samplers.registry import make_sampler
from prefect_launch.sweeps.scheduler import (
    Action,
    Command,
    Control,
    EndSweep,
    Outcome,
    QueueTrial,
    StopTrial,
    decide,
)
from prefect_launch.sweeps.sweep_run import config_of
from prefect_launch.sweeps.trial_items import ENDS, SweepTrials, sweep_tag
from prefect_launch.sweeps.trial_log import TrialLog
from prefect_launch.sweeps.trial_queue import TrialQueue
from prefect_launch.sweeps.trial_reader import WHOLE_SECONDS, TrialReader
from prefect_launch.sweeps.wake import Wake

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session

_logger = logging.getLogger("prefect_launch.sweeps")

#: Without any event, the items are read so often.
LOOK_SECONDS: Final = 10.0
#: A server that is away is asked again so often.
_AWAY_SECONDS: Final = 5.0
_OUTCOMES: Final[Mapping[TrialState, Outcome]] = {
    TrialState.FINISHED: Outcome.FINISHED,
    TrialState.FAILED: Outcome.FAILED,
    TrialState.CANCELLED: Outcome.STOPPED,
}


class SweepRunner:
    """Runs one sweep to its end.

    Args:
        api: whose names are the defaults.
        session: an open connection.
        sweep_id: id of the sweep's flow run.
        config: the sweep's configuration.
        report: is called with each line about what happens.
        look_seconds: how often the items are read when no event comes.
        only_stops: queue nothing, and need no sampler: stop the trials of a sweep that is paused, and leave then, or of
            one that `stop` ends.
    """

    def __init__(
        self,
        api: Api,
        session: Session,
        sweep_id: UUID,
        config: SweepConfig,
        *,
        report: Callable[[str], None] = _logger.info,
        look_seconds: float = LOOK_SECONDS,
        only_stops: bool = False,
    ) -> None:
        self._api = api
        self._session = session
        self._sweep_id = sweep_id
        self._config = config
        self._report = report
        self._look_seconds = look_seconds
        self._only_stops = only_stops
        self._sampler = None if only_stops else make_sampler(config, str(sweep_id))
        self._board = SweepBoard(session.server, sweep_id, config, ui_path=urlsplit(api.ui_url).path)
        self._is_stopping = False
        self._failure: LaunchError | None = None
        self._wake = Wake(look_seconds)
        #: The sweep's parameters as they were read last: they may have changed while this process was started.
        self._parameters: Mapping[str, Any] | None = None
        #: What the sweep's label says, and the newest list of items was asked for after that.
        self._made = 0
        # For speed, and for the report lines; no decision depends on it.
        self._seen: datetime | None = None
        self._is_paused = False
        self._prior: tuple[Trial, ...] | None = None
        self._trial_log = TrialLog(report)
        self._reader = TrialReader(session.server, sweep_id, whole_seconds=WHOLE_SECONDS)
        self._queue = TrialQueue(api, session, sweep_id, config)

    def stop(self) -> None:
        """Stop the sweep: its trials are cancelled, then it ends. Call it on the event loop."""
        self._is_stopping = True
        self._wake.now()

    async def run(self) -> EndSweep:
        """Run the sweep until it ends, or until this process is to leave a paused sweep.

        Returns:
            How it ended; none of its trials waits or runs then. `Outcome.PAUSED` is no end: it goes on when it is
            resumed, in another process.
        """
        async with supervised(self._wake.now) as supervisor, self._board.writing():
            # Without events the items are read as often as without this task.
            supervisor.supervise(
                BackgroundTask("ends of trials", self._listen_for_ends, vital=False),
                BackgroundTask("events of trials", self._listen, vital=False),
            )
            end = await self._until_end()
            await self._board.finish(end)
            return end

    def _follow_parameters(self, sweep: Item) -> None:
        """Use the sweep's new parameters when they have changed: a person has resumed it with others."""
        if sweep.parameters == self._parameters or self._only_stops:
            return
        self._parameters = sweep.parameters
        try:
            config = config_of(sweep)
            if config == self._config:
                return
            sampler = make_sampler(config, str(self._sweep_id))
        except (LaunchError, TypeError) as error:
            self._report(f"The sweep continues as before, for its new parameters are refused: {error}")
            return
        self._config, self._sampler, self._prior = config, sampler, None
        self._queue = TrialQueue(self._api, self._session, self._sweep_id, config)
        self._board.follow(config)
        cap = "no limit" if config.run_cap is None else f"{config.run_cap:,}"
        self._report(f"The sweep has new parameters. Workers: {config.scheduler.num_workers}; trials at most: {cap}.")

    async def _until_end(self) -> EndSweep:
        while True:
            self._wake.begin_look()
            try:
                end = await self._step()
            except (ServerUnavailableError, ServerFailedError) as error:
                self._report(f"The sweep waits for the Prefect server: {error}")
                await anyio.sleep(min(_AWAY_SECONDS, self._look_seconds))
                continue
            if end is not None:
                return end
            await self._wake.wait()

    async def _listen_for_ends(self) -> None:
        """Wake the scheduler at once when one of the items has ended: a worker is free."""
        tag = sweep_tag(self._sweep_id)
        watch = self._session.server.watch_items

        def on_end(item_id: str) -> None:
            self._note(item_id)
            self._wake.at_end_of(item_id)

        await follow(lambda: watch(tag, state_types=tuple(TERMINAL)), on_end)

    async def _listen(self) -> None:
        """Wake the scheduler when the sweep has changed its state, and in a moment when one of the items has."""
        tag, sweep_id = sweep_tag(self._sweep_id), self._sweep_id

        def on_event(item_id: str) -> None:
            if item_id == str(sweep_id):
                self._wake.at_change()
            else:
                self._note(item_id)
                self._wake.soon()

        await follow(lambda: self._session.server.watch_items(tag, sweep_id), on_event)

    def _note(self, item_id: str) -> None:
        """Read an item that has changed at the next look; the first event of a stream, with no id, may hide others."""
        if item_id:
            self._reader.note_changed(UUID(item_id))
        else:
            self._reader.forget()

    # --- one look, and what follows from it ---

    async def _list(self) -> Item | None:
        sweep = await self._reader.list_with_sweep()
        while (made := TrialCount.of(sweep).made) > self._made:
            # What another scheduler has made since the items were listed is missing there, and was not deleted.
            self._made = made
            self._reader.forget()
            sweep = await self._reader.list_with_sweep()
        return sweep

    async def _note_made(self, made: int) -> None:
        """Keep how many trials were made, for the time when the item of the last one is deleted."""
        if made <= self._made or self._config.method == "grid":
            return
        with suppress(ItemGoneError):
            await self._session.server.label_item(self._sweep_id, TrialCount(made=made).labels)
        self._made = made

    async def _step(self) -> EndSweep | None:
        sweep = await self._list()
        if sweep is not None:
            self._follow_parameters(sweep)
        ended = _end_elsewhere(sweep)
        command = await self._command(sweep) if ended is None else Command.STOP
        trials = await self._reader.trials(self._config)
        self._wake.note_ended({str(item_id) for item_id in self._reader.ended})
        self._trial_log.show(trials, self._config)
        self._board.update(sweep, trials)
        if _can_go_on(sweep) and not self._is_stopping:
            return ended  # Its trials wait meanwhile.
        if self._only_stops and command is Command.RUN:
            return EndSweep(Outcome.PAUSED, "The sweep was resumed meanwhile.")
        retries = RetryRequest.of(sweep).tries
        elapsed = sweep.running_seconds(datetime.now(timezone.utc)) if sweep is not None else 0.0
        try:
            await self._note_made(trials.history.made)
            control = Control(command=command, elapsed_seconds=elapsed, retries=retries, made=self._made)
            history = await self._with_prior_runs(trials.history)
            actions = await anyio.to_thread.run_sync(self._decide, history, control)
            if not self._reader.is_whole and any(isinstance(action, EndSweep) for action in actions):
                self._reader.forget()
                return await self._step()
            end = await self._act(actions, trials)
            if end is None and self._leaves(sweep, command, trials.history):
                return EndSweep(Outcome.PAUSED, sweep.message if sweep is not None else "")
            return end and (ended or end)
        except (ServerUnavailableError, ServerFailedError):
            raise
        except LaunchError as error:
            self._failure = error
            self._report(f"The sweep fails, and its trials are stopped: {error}")
            self._wake.now()
            return None

    async def _with_prior_runs(self, history: History) -> History:
        if self._sampler is None:
            return history
        if self._prior is None:
            try:
                self._prior = await read_prior_runs(self._session, self._config, self._sampler)
            except (NotFoundError, SpecError) as error:
                self._prior = ()
                if not history.trials:
                    raise
                self._report(f"The sweep continues without its prior runs: {error}")
        return replace(history, prior=self._prior)

    async def _command(self, sweep: Item | None) -> Command:
        if self._is_stopping and sweep is not None and sweep.state_type is not StateType.CANCELLING:
            state = State.of(ItemState.CANCELLING, "The sweep is being stopped.")
            with suppress(ItemGoneError):
                await self._session.server.propose(self._sweep_id, state)
        if self._is_stopping or self._failure is not None or sweep is None:
            return Command.STOP
        if sweep.state_type in (StateType.CANCELLING, StateType.CANCELLED):
            return Command.STOP
        await (self._keep_paused(sweep) if sweep.state_type is StateType.PAUSED else self._answer(sweep))
        if self._is_paused is not (sweep.state_type is StateType.PAUSED):
            self._is_paused = not self._is_paused
            self._report(sweep.message or "The sweep is paused." if self._is_paused else "The sweep continues.")
        if sweep.state_type is not StateType.PAUSED:
            return Command.RUN
        return Command.PAUSE if PauseRequest.of(sweep).now else Command.DRAIN

    async def _keep_paused(self, sweep: Item) -> None:
        """Take the time limit out of a pause that Prefect's UI has asked for, after which it would fail the sweep.

        The UI also asks for a suspension, which ends in the queue of a deployment, where there is none.
        """
        wanted = PauseRequest.of(sweep).state(sweep)
        details = sweep.state.state_details if sweep.state else {}
        reschedules = bool(details.get("pause_reschedule"))
        if details.get("pause_timeout") or reschedules is not wanted.state_details["pause_reschedule"]:
            await self._session.server.propose(self._sweep_id, wanted, force=True)

    async def _answer(self, sweep: Item) -> None:
        """Say that this process runs the sweep, and has seen that it is to continue."""
        running = sweep.state.timestamp if sweep.state and sweep.state_type is StateType.RUNNING else None
        if running is None or running == self._seen or sweep.deployment_id is not None or self._only_stops:
            return
        await self._session.server.label_item(self._sweep_id, SchedulerProcess.here(sweep).labels)
        self._seen = running

    def _leaves(self, sweep: Item | None, command: Command, history: History) -> bool:
        """Whether this process has no more to do with the sweep until it is resumed."""
        if command not in (Command.DRAIN, Command.PAUSE):
            return False
        if command is Command.PAUSE and history.open:
            return False
        # A run of a deployment continues as another run of it: no agent or worker keeps a place for it meanwhile.
        return self._only_stops or (sweep is not None and sweep.deployment_id is not None)

    def _decide(self, history: History, control: Control) -> tuple[Action, ...]:
        sampler = self._sampler
        return decide(self._config, history, control, lambda so_far: next_params(sampler, so_far) if sampler else None)

    async def _act(self, actions: tuple[Action, ...], trials: SweepTrials) -> EndSweep | None:
        queued = [action for action in actions if isinstance(action, QueueTrial)]
        made = await self._queue.add(queued)
        self._reader.note_changed(*(item.id for item in made))
        await self._note_made(max((action.number for action in queued), default=-1) + 1)
        for action in actions:
            if isinstance(action, StopTrial):
                if await self._queue.cancel(action, trials):
                    self._wake.now()
            elif isinstance(action, EndSweep):
                return action if self._failure is None else EndSweep(Outcome.FAILED, str(self._failure))
        return None


def _end_elsewhere(sweep: Item | None) -> EndSweep | None:
    """Return how another scheduler, or a person, has ended the sweep; one that is cancelled ends here as well."""
    if (
        sweep is None
        or sweep.state_type is None
        or sweep.state_type is StateType.CANCELLED
        or sweep.state_type not in ENDS
    ):
        return None
    return EndSweep(_OUTCOMES[ENDS[sweep.state_type]], sweep.message or f"The sweep is {sweep.state_name}.")


def _can_go_on(sweep: Item | None) -> bool:
    """Whether the sweep has ended only for want of its process."""
    return sweep is not None and sweep.state_type is StateType.CRASHED
