"""The systemd unit of an agent, as text: `agent unit` prints it."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prefect_launch.core.units import format_duration
from prefect_launch.errors import OperatorError

#: How long an agent drains when its unit is stopped, if nothing else is said.
STOP_SECONDS: Final = 300.0
#: What an agent that was told to leave gets for it before it is killed; one that stops its jobs waits for their grace.
_LEAVE_SECONDS: Final = 90.0

_UNIT: Final = """\
# {file}
#
# {install}
#
# 'systemctl stop' drains the agent: it takes no more, and finishes what runs. After {stop_time} it leaves; its jobs go
# on, and the next start takes them up. 'systemctl kill --kill-who=main' has it leave at once while it drains; without
# --kill-who, 'systemctl kill' ends its jobs too. The API key of a server that asks for one belongs into
# {secrets}: PREFECT_API_KEY=…
[Unit]
Description=prefect-launch agent {name}
Wants=network-online.target
After=network-online.target docker.service
StartLimitIntervalSec=0

[Service]
Type=exec
{user}ExecStart={command}
{environment}EnvironmentFile=-{secrets}
# Only the agent is signalled: its jobs outlive it.
KillMode=process
KillSignal=SIGTERM
# One signal drains it. When the time is up, systemd sends the next one, and it leaves: were it killed then, it could
# not say so, and the queue's other agents would call it lost.
ExecStop=-/bin/sh -c 'test -z "$$MAINPID" || {{ kill -TERM "$$MAINPID"; exec {wait}; }}'
TimeoutStopSec={kill_seconds:.0f}
# One job that runs out of memory must not take the agent down with it.
OOMPolicy=continue
TasksMax=infinity
# An agent that was told to drain ends with 0 and stays down; one that was lost comes back.
Restart=on-failure
RestartSec=5
SuccessExitStatus=130 143

[Install]
WantedBy={target}
"""


def unit_text(
    name: str, arguments: Sequence[str], environment: dict[str, str], *, of_user: bool, stop_seconds: float
) -> str:
    """Return a unit.

    Args:
        name: of the agent.
        arguments: of `prefect-launch agent start`.
        environment: what the agent finds in its environment.
        of_user: a unit of the user's own systemd, not of the machine's.
        stop_seconds: how long it may drain when it is stopped.
    """
    file = f"prefect-launch-{name}.service"
    folder = "~/.config/systemd/user" if of_user else "/etc/systemd/system"
    control = "systemctl --user" if of_user else "systemctl"
    install = (
        f"Install: put this into {folder}/{file}, then '{control} daemon-reload' and '{control} enable --now {file}'"
    )
    if of_user:
        install += "\n# It runs while you are logged in; 'loginctl enable-linger' lets it run always."
    command = [_program(), "agent", "start", "--name", name, *arguments]
    return _UNIT.format(
        file=f"{folder}/{file}",
        install=install,
        name=name.replace("%", "%%"),
        user="" if of_user else f"User={getpass.getuser()}\n",
        command=" ".join(_quoted(part, "$$") for part in command),
        environment="".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in environment.items()),
        secrets="%h/.config/prefect-launch/agent.env" if of_user else "/etc/prefect-launch/agent.env",
        stop_time=format_duration(stop_seconds),
        wait=f'timeout {stop_seconds:.0f} tail --pid="$$MAINPID" -f /dev/null',
        kill_seconds=stop_seconds + _LEAVE_SECONDS,
        target="default.target" if of_user else "multi-user.target",
    )


def _program() -> str:
    """Return the path of `prefect-launch`, next to this Python.

    Raises:
        OperatorError: when it is not there.
    """
    program = Path(sys.executable).with_name("prefect-launch")
    if not os.access(program, os.X_OK):
        raise OperatorError(f"There is no program {str(program)!r}. Install prefect-launch into this environment.")
    return str(program)


def _quoted(text: str, dollar: str = "$") -> str:
    """Return a text as systemd reads it back: nothing in it is filled in.

    Args:
        text: one word.
        dollar: how a dollar sign is written there: doubled in a command, as it is elsewhere.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", dollar)
    return f'"{escaped}"' if escaped != text or any(char.isspace() or char in "';" for char in text) else text
