"""Fork server for the supervisors of `local-process` jobs: one small process for each agent.

A Python interpreter takes 30 ms of a core to start and to import what a supervisor needs; a fork of one that has done
so takes 2, and shares its memory. `ForkServer` is the agent's side. The process is this file as a script
(`python -I -S forkserver.py SOCKET_FD`), with the standard library only; it only forks, knows nothing of the
runs, and ends with the agent. The supervisors continue.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys

TYPE_CHECKING = False  # `typing` and `subprocess` are not for the script.
if TYPE_CHECKING:
    import subprocess
    from typing import Any

SUPERVISOR_LOG = "supervisor.log"
_MESSAGE_BYTES = 64 * 1024


class ForkServer:
    """An agent's fork server; its process is started at the first use. Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def fork(self, run_dir: str, ready_fd: int, *more: int) -> None:
        """Start the supervisor of a run.

        Args:
            run_dir: the run's folder.
            ready_fd: is open in the supervisor until the job's program runs, or will not.
            more: another file for the supervisor: variables for the program, which are written to no disk.

        Raises:
            OSError: when no process can be started.
        """
        if self._channel is not None:
            try:
                socket.send_fds(self._channel, [os.fsencode(run_dir)], [ready_fd, *more])
                return
            except ConnectionError:  # Somebody has killed it: what it had forked continues, and another one is made.
                self.close()
        self._channel = self._open()
        socket.send_fds(self._channel, [os.fsencode(run_dir)], [ready_fd, *more])

    def close(self) -> None:
        """End the process; the supervisors that it forked continue."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.wait()
        self._channel = self._process = None

    def _open(self) -> socket.socket:
        import subprocess

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(__file__), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours


def serve(channel: socket.socket, supervisor: Any) -> None:
    """In the fork server's process: fork a supervisor for each message; return when the agent has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel collects the supervisors; nobody here waits for them.
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 2)
        if not message:
            return
        if os.fork() == 0:
            channel.close()
            _become_supervisor(supervisor, os.fsdecode(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _become_supervisor(supervisor: Any, run_dir: str, descriptors: list[int]) -> None:
    """In the child: take on a session and a log file of its own, and turn into the supervisor. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(os.path.join(run_dir, SUPERVISOR_LOG), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        supervisor.main(run_dir, *descriptors)
        code = 0
    except BaseException:  # noqa: BLE001 - it is written to the log; nothing of the fork server may go on in this process
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:0] = here, os.path.dirname(here)  # The supervisor's folder, and that of `log_streams`.
    loaded = importlib.import_module("supervisor")  # Before the first fork, so that none pays for it.
    del sys.path[:2]
    serve(socket.socket(fileno=int(sys.argv[1])), loaded)
