"""A git host on the loopback: real https with a certificate of its own, a password, and git's own server behind it."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.git_repository import Repository

USER = "robot"


class GitServer:
    """Serves the repositories in a folder.

    Args:
        folder: for the repositories and the certificate.
        password: what a client must give; `None` lets everybody in.

    Attributes:
        sent: how many bytes of answers went out.
        asked: the paths that were asked for.
        was_asked: set by the first request.
        hanging: while set, requests are taken and not answered.
    """

    def __init__(self, folder: Path, password: str | None = None) -> None:
        self.root = folder / "repositories"
        self.root.mkdir(parents=True)
        self.certificate = _make_certificate(folder)
        self.password = password
        self.sent = 0
        self.asked: list[str] = []
        self.was_asked = threading.Event()
        self.hanging = threading.Event()
        self._released = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "key.pem")
        # The handshake is each connection's own, on its thread: a client that goes away must not stop the others.
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        """Host and port."""
        return f"localhost:{self._http.server_address[1]}"

    def url(self, name: str) -> str:
        """The address of a repository."""
        return f"https://{self.host}/{name}"

    def repository(self, name: str) -> Repository:
        """Make an empty repository; what is committed to it is served at once."""
        return Repository(self.root / name)

    def stop(self) -> None:
        """Stop serving."""
        self.hanging.clear()
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def wait_while_hanging(self) -> None:
        """Wait until the server stops, while it is to answer nothing."""
        if self.hanging.is_set():
            self._released.wait()

    def lets_in(self, authorization: str | None) -> bool:
        """Whether a request has the right password."""
        wanted = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        return self.password is None or authorization == f"Basic {wanted}"


def _handler(server: GitServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self._body())

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, body: bytes) -> None:
            server.asked.append(self.path)
            server.was_asked.set()
            server.wait_while_hanging()
            if not server.lets_in(self.headers.get("Authorization")):
                self._send(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")
                return
            status, headers, content = _git_answer(server.root, self.command, self.path, self.headers, body)
            self._send(status, headers, content)

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            server.sent += len(content)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *about: Any) -> None:
            """Say nothing."""

    return Handler


def _git_answer(root: Path, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
    place, _, query = path.partition("?")
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "REQUEST_METHOD": method,
        # A repository with a work tree is served by its own name.
        "PATH_INFO": place.replace("/info/", "/.git/info/").replace("/git-upload-pack", "/.git/git-upload-pack"),
        "QUERY_STRING": query,
        "CONTENT_TYPE": headers.get("Content-Type") or "",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": headers.get("Content-Encoding") or "",
        "GIT_PROTOCOL": headers.get("Git-Protocol") or "",
        "REMOTE_ADDR": "127.0.0.1",
    }
    ended = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
    head, _, content = ended.stdout.partition(b"\r\n\r\n")
    told = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    return int(told.pop("Status", "200 OK").split()[0]), told, content


def _make_certificate(folder: Path) -> Path:
    certificate = folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], capture_output=True, check=True)
    return certificate
