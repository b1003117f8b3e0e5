"""Start of an agent from plain Python, and its loop under signals.

The first signal drains the agent, the second ends it at once, a third kills it. Running jobs continue when the agent
ends, unless it was started to stop them. An agent that has just started first adopts the items that its last life has
left unfinished, and then drains: until it has checked, it does not know whether there are any.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.core.early_signals import SIGNALS
from prefect_launch.settings.agent_config import AgentConfig

if TYPE_CHECKING:
    from prefect_launch.agent.agent import LaunchAgent
    from prefect_launch.client.api import Api


def create_and_run_agent(api: Api, config: AgentConfig | Mapping[str, Any], *, until_empty: bool = False) -> None:
    """Make an agent and run its loop until it is stopped.

    Args:
        api: the server.
        config: the agent's settings.
        until_empty: end when its queues hold nothing and all its work is done.

    Raises:
        AgentConfigError: for a wrong setting, or none of its queues given.
        NotFoundError: when a queue does not exist.
        KeyboardInterrupt: when it is asked to stop by the keyboard.
    """
    agent = LaunchAgent(api, config)
    asyncio.run(agent.loop(until_empty=until_empty))


#: What a loop gets to leave in order: it may hang in a call to a server that is away.
LEAVE_SECONDS: Final = 5.0


class Signals:
    """Turns signals into requests to an agent: to drain, then to leave.

    Args:
        agent: whose loop is run.
        stop_jobs: the second signal stops what runs.
        notify: is called with a sentence for the person at the terminal.
        early: signals that came before the loop: see `prefect_launch.core.early_signals`.
    """

    def __init__(
        self,
        agent: LaunchAgent,
        *,
        stop_jobs: bool,
        notify: Callable[[str], None],
        early: Sequence[signal.Signals] = (),
    ) -> None:
        self._agent = agent
        self._stop_jobs = stop_jobs
        self._notify = notify
        self._early = early
        self._work: asyncio.Future[None] | None = None
        self._received: list[signal.Signals] = []

    async def run(self, *, until_empty: bool = False) -> signal.Signals | None:
        """Run the loop to its end.

        Returns:
            The first signal that came, if one did.
        """
        loop = asyncio.get_running_loop()
        self._work = asyncio.ensure_future(self._agent.loop(until_empty=until_empty))
        for number in SIGNALS:
            loop.add_signal_handler(number, self.handle, number)
        for number in self._early:
            self.handle(number)
        try:
            await self._work
        except asyncio.CancelledError:
            if not self._received:
                raise
        finally:
            self._forget()
        return self._received[0] if self._received else None

    def handle(self, number: signal.Signals) -> None:
        """Act on a signal."""
        self._received.append(number)
        agent = self._agent
        count, ids = len(agent.thread_ids), ", ".join(agent.thread_ids)
        if len(self._received) == 1:
            agent.shutdown.drain()
            if not agent.shutdown.at_work:
                what = "it adopts its unfinished items first. Signal again to leave at once"
                asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._leave_unless_begun)
            else:
                what = f"{count} active: {ids}. Signal again to leave at once" if count else "nothing is active"
            self._notify(f"Draining: the agent takes no more items; {what}.")
            return
        self._forget()
        agent.shutdown.leave(stop_jobs=self._stop_jobs)
        if not agent.shutdown.at_work:
            self._notify("Leaving; its next start adopts its unfinished items, if any.")
            self._cancel()
            return
        what = f"{count} {'are stopped' if self._stop_jobs else 'continue'}: {ids}" if count else "nothing is active"
        self._notify(f"Leaving; {what}.")
        if self._stop_jobs:
            return
        asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._cancel)

    def _leave_unless_begun(self) -> None:
        """End an agent that waits for its server: it cannot see whether it has unfinished items."""
        if not self._agent.shutdown.has_begun and self._work is not None and not self._work.done():
            self._notify("Leaving; the server does not answer. Its next start adopts its unfinished items, if any.")
            self._cancel()

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _forget(self) -> None:
        """Leave the next signal to the system: it ends the process."""
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
