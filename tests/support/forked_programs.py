"""`prefect-launch` and `prefect` for the PATH of a shell, in processes that are forked, not started.

A program there is a few lines that need no import: it asks this process to fork the command, with its folder, its
variables and its output, waits for its end, and ends with its exit code.
"""

from __future__ import annotations

import json
import shutil
import socketserver
import sys
import tempfile
import threading
from pathlib import Path

from tests.support.forked_cli import ForkedCli
from tests.support.prefect_server import warm_prefect

_STUB = """#!{python} -IS
import json, os, socket, sys
order = [{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid()]
with socket.socket(socket.AF_UNIX) as way:
    way.connect({address!r})
    way.sendall(json.dumps(order).encode() + b"\\n")
    sys.exit(int(way.makefile().readline()))
"""
_SIGNALLED = 128


class ForkedPrograms:
    """A folder of programs for a PATH; the programs inherit nothing from this process.

    Attributes:
        folder: what to put in front of the PATH.
    """

    def __init__(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="launch-test-path-"))
        self.folder = self._scratch / "bin"
        self.folder.mkdir()
        cli = ForkedCli(self._scratch)
        self._cli = cli

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                program, arguments, cwd, environment, pid = json.loads(self.rfile.readline())
                forked = cli if program == "prefect-launch" else warm_prefect()
                out, err = (Path(f"/proc/{pid}/fd/{number}") for number in (1, 2))
                process = forked.start(arguments, cwd=Path(cwd), environment=environment, out=out, err=err)
                code = process.wait()
                self.wfile.write(f"{code if code >= 0 else _SIGNALLED - code}\n".encode())

        address = str(self._scratch / "socket")
        for program in ("prefect-launch", "prefect"):
            stub = self.folder / program
            stub.write_text(_STUB.format(python=sys.executable, program=program, address=address))
            stub.chmod(0o755)
        self._server = socketserver.ThreadingUnixStreamServer(address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="forked programs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what still runs."""
        self._server.shutdown()
        self._thread.join()
        self._cli.close()
        self._server.server_close()
        shutil.rmtree(self._scratch)
