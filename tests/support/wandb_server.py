"""A stand-in for a W&B server: it answers the five queries that are sent, and serves files at signed addresses.

`graphql` and `file` alone are enough for a test without a socket; `serving` puts them on the loopback.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

KEY = "k" * 40


@dataclass
class Artifact:
    """One version of an artifact, with its aliases."""

    entity: str
    project: str
    name: str
    version: int
    files: dict[str, bytes]
    aliases: tuple[str, ...] = ("latest",)

    @property
    def id(self) -> str:
        """Its id."""
        return f"id-{self.name}-{self.version}"


@dataclass
class WandbServer:
    """What is on the server.

    Attributes:
        files_at: the address that files are served below.
        page: how many files a page of a list has.
        queries: the names of the queries that came.
        requests: path, and Authorization header, of each request of `serving`.
    """

    files_at: str = "https://files.example.net/signed"
    page: int = 100
    runs: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def add_run(self, path: str, files: Mapping[str, str], config: Mapping[str, Any] | None = None) -> None:
        """Put a run there, by `entity/project/id`."""
        entity, project, run_id = path.split("/")
        told = {name: {"value": value, "desc": None} for name, value in {"_wandb": {}, **(config or {})}.items()}
        content = {name: text.encode() for name, text in files.items()}
        self.runs[entity, project, run_id] = {"config": json.dumps(told), "files": content}

    def add_artifact(self, path: str, files: Mapping[str, str], aliases: tuple[str, ...] = ("latest",)) -> Artifact:
        """Put the next version of an artifact there, by `entity/project/name`."""
        entity, project, name = path.split("/")
        version = sum(one.name == name for one in self.artifacts)
        content = {path: text.encode() for path, text in files.items()}
        self.artifacts.append(Artifact(entity, project, name, version, content, aliases))
        return self.artifacts[-1]

    def graphql(self, body: bytes) -> dict[str, Any]:
        """Answer a query."""
        asked = json.loads(body)
        self.queries.append(asked["operationName"])
        answers = {
            "Run": self._run,
            "RunFiles": self._run_files,
            "GetArtifactMembershipFileUrls": self._artifact_files,
            "FetchArtifactManifest": self._manifest,
        }
        return {"data": answers[asked["operationName"]](asked["variables"])}

    def file(self, path: str) -> bytes | None:
        """Return what is at a signed address, by the path below `files_at`."""
        kind, _, rest = unquote(path).partition("/")
        if kind == "run":
            entity, project, run_id, name = rest.split("/", 3)
            found: bytes | None = self.runs[entity, project, run_id]["files"].get(name)
            return found
        artifact_id, _, name = rest.partition("/")
        artifact = next(one for one in self.artifacts if one.id == artifact_id)
        return artifact.files.get(name) if kind == "artifact" else _manifest_of(artifact)

    def _run(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self.runs.get((given["entity"], given["project"], given["name"]))
        if all(given["project"] != project for _, project, _ in self.runs):
            return {"project": None}
        about = {"id": "x", "name": given["name"], "displayName": "brisk-sun-7", "state": "finished"}
        return {"project": {"run": found and {**about, "config": found["config"]}}}

    def _run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        key = (given["entity"], given["project"], given["name"])
        place = f"run/{'/'.join(key)}"
        return {"project": {"run": self._files(place, self.runs[key]["files"], given["fileCursor"])}}

    def _artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        wanted = (given["entity"], given["project"], given["collection"])
        versions = [one for one in self.artifacts if (one.entity, one.project, one.name) == wanted]
        named = [one for one in versions if given["alias"] in (*one.aliases, f"v{one.version}")]
        if not versions:
            return {"project": {"artifactCollection": None}}
        if not named:
            return {"project": {"artifactCollection": {"artifactMembership": None}}}
        found = self._files(f"artifact/{named[-1].id}", named[-1].files, given["cursor"])
        return {"project": {"artifactCollection": {"artifactMembership": {"artifact": {"id": named[-1].id}, **found}}}}

    def _manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        found = next((one for one in self.artifacts if one.id == given["id"]), None)
        if found is None:
            return {"artifact": None}
        project = {"name": found.project, "entityName": found.entity}
        file = {"directUrl": f"{self.files_at}/manifest/{found.id}"}
        sequence = {"name": found.name, "project": project}
        return {
            "artifact": {
                "versionIndex": found.version,
                "artifactSequence": sequence,
                "currentManifest": {"file": file},
            }
        }

    def _files(self, place: str, files: Mapping[str, bytes], cursor: str | None) -> dict[str, Any]:
        start = int(cursor or 0)
        names = list(files)[start : start + self.page]
        edges = [{"node": {"name": name, "directUrl": f"{self.files_at}/{place}/{quote(name)}"}} for name in names]
        more = {"endCursor": str(start + self.page), "hasNextPage": start + self.page < len(files)}
        return {"files": {"edges": edges, "pageInfo": more}}


def _manifest_of(artifact: Artifact) -> bytes:
    digests = {
        name: base64.b64encode(hashlib.md5(content).digest()).decode() for name, content in artifact.files.items()
    }
    contents = {name: {"digest": digest, "size": len(artifact.files[name])} for name, digest in digests.items()}
    return json.dumps({"version": 1, "contents": contents}).encode()


@contextmanager
def serving(server: WandbServer) -> Iterator[str]:
    """Serve it on the loopback, to whoever has the key, and yield its address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{http.server_address[1]}"
    server.files_at = f"{address}/files"
    try:
        yield address
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    wanted = f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.requests.append((self.path, self.headers.get("Authorization")))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != wanted:
                self._send(401, b"{}")
            else:
                self._send(200, json.dumps(server.graphql(body)).encode())

        def do_GET(self) -> None:
            server.requests.append((self.path, self.headers.get("Authorization")))
            content = server.file(self.path.removeprefix("/files/"))
            self._send(404 if content is None else 200, content or b"")

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *about: Any) -> None:
            """Say nothing."""

    return Handler
