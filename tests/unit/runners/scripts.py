"""What the contract's shell scripts do, for fakes that have no shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_launch.testing import runner_contract as contract
from prefect_launch.testing.script import Err, Script

_SCRIPTS = {
    contract.SUCCEED: Script(),
    contract.FAIL: Script(exit_code=3),
    contract.KILL_ITSELF: Script(exit_code=137),
    contract.LOG: Script(log=(b"one\n", Err(b"two\n"), b"b\xffd, no newline")),
    contract.OUTPUTS: Script(outputs={"outputs.json": b'{"accuracy": 0.9}', "deep/file.txt": b"hello"}),
    contract.BESIDE: Script(),
    contract.INPUT: Script(log=(b"weights\n",)),
    contract.SLEEP: Script(seconds=60),
    contract.SLEEP_SHORTLY: Script(seconds=1, late_log=(b"awake\n",), exit_code=4),
    contract.TWO_PARTS: Script(seconds=1, log=(b"before\n",), late_log=(b"after\n",)),
    contract.IGNORE_TERM: Script(seconds=60, log=(b"deaf\n",), ignores_term=True),
}


def script_of(command: Sequence[str], args: Sequence[str], env: Mapping[str, str]) -> Script:
    """Return what a plan of the contract does."""
    if command[0] == contract.MISSING:
        return Script(missing=True)
    if command[2] == contract.ARGS:
        return Script(log=tuple(f"[{arg}]\n".encode() for arg in args))
    if command[2] == contract.ENV:
        return Script(log=(f"[{env['ODD']}]\n".encode(),))
    return _SCRIPTS[command[2]]
