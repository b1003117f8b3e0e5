"""Client of a W&B server: reads runs, jobs and code artifacts by GraphQL, and their files by signed addresses.

The queries are those that W&B's own library sends; they are no documented interface, so each error names its query. The
key goes with the queries, to the server's own address alone: no redirect is followed with it, and files are fetched
without it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx
from pydantic import SecretStr

from prefect_launch.core.masking import Mask
from prefect_launch.errors import AgentConfigError, ArtifactError, InfrastructureError, NotFoundError, SourceError
from prefect_launch.sources.wandb_hosts import RunAddress, api_of

#: For all files that one client fetches. Code, and what describes it, is far below this; a data set is not.
MAX_BYTES: Final = 512 * 1024**2
#: Before the second and the third try.
PAUSES_SECONDS: Final = (0.5, 2.0)
_LONGEST_PAUSE_SECONDS: Final = 30.0
_TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
_PAGE: Final = 500
_TOO_MANY: Final = 429
_USER: Final = "api"

_RUN: Final = """
query Run($project: String!, $entity: String!, $name: String!) {
  project(name: $project, entityName: $entity) { run(name: $name) { id name displayName state config } }
}"""
_RUN_FILES: Final = """
query RunFiles($project: String!, $entity: String!, $name: String!, $fileCursor: String, $fileLimit: Int) {
  project(name: $project, entityName: $entity) {
    run(name: $name) {
      files(after: $fileCursor, first: $fileLimit) {
        edges { node { name directUrl } } pageInfo { endCursor hasNextPage }
      }
    }
  }
}"""
_ARTIFACT_FILES: Final = """
query GetArtifactMembershipFileUrls(
  $entity: String!, $project: String!, $collection: String!, $alias: String!, $cursor: String, $perPage: Int
) {
  project(name: $project, entityName: $entity) {
    artifactCollection(name: $collection) {
      artifactMembership(aliasName: $alias) {
        artifact { id }
        files(after: $cursor, first: $perPage) {
          edges { node { name directUrl } } pageInfo { endCursor hasNextPage }
        }
      }
    }
  }
}"""
_MANIFEST: Final = """
query FetchArtifactManifest($id: ID!) {
  artifact(id: $id) {
    versionIndex
    artifactSequence { name project { name entityName } }
    currentManifest { file { directUrl } }
  }
}"""


@dataclass(frozen=True)
class WandbRun:
    """A run, as its server tells it."""

    address: RunAddress
    title: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class WandbFiles:
    """Files of a run or of an artifact.

    Attributes:
        of: what they are of, for messages.
        query: that lists them, with its variables.
        urls: signed addresses, by path.
        digests: base64 MD5 of each file of an artifact, by path.
        id: of the artifact.
    """

    of: str
    query: str
    variables: Mapping[str, Any]
    urls: Mapping[str, str] = field(repr=False)
    digests: Mapping[str, str] | None = None
    id: str = ""

    def __contains__(self, path: object) -> bool:
        return path in self.urls


class WandbClient:
    """Reads from one W&B server.

    Args:
        host: that the operator lists.
        key: of that host.
        pauses: seconds before each further try of a request that failed on the server's side.
    """

    def __init__(self, host: str, key: SecretStr, *, pauses: tuple[float, ...] = PAUSES_SECONDS) -> None:
        self.host = host
        self._key = key
        self._mask = Mask([key.get_secret_value()])
        self._url = f"{api_of(host)}/graphql"
        self._pauses = pauses
        self._fetched = 0
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT, headers={"User-Agent": "prefect-launch"}, event_hooks={"request": [self._check_tls]}
        )

    async def __aenter__(self) -> WandbClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    # --- what there is ---

    async def run(self, address: RunAddress) -> WandbRun:
        """Read a run.

        Raises:
            NotFoundError: when there is no such run, or the key may not read it.
            SourceError: when the server refuses, or answers what no W&B server does.
            AgentConfigError: when it refuses the key.
            InfrastructureError: when it does not answer.
        """
        answer = await self._ask(_RUN, _variables(address))
        found = _inside(answer, "project", "run")
        if found is None:
            raise self._unknown(f"run {address.run_id!r} in the project {address.entity}/{address.project}")
        try:
            config = json.loads(found.get("config") or "{}")
            values = {
                name: each["value"] for name, each in config.items() if isinstance(each, dict) and "value" in each
            }
        except (TypeError, ValueError, AttributeError):
            raise self._strange(_RUN, "the run's config is no JSON object") from None
        values.pop("_wandb", None)
        return WandbRun(address, str(found.get("displayName") or address.run_id), values)

    async def run_files(self, address: RunAddress) -> WandbFiles:
        """List the files of a run.

        Raises:
            LaunchError: as `run` does.
        """
        return await self._list(f"the run {address.run_id!r}", _RUN_FILES, _variables(address))

    async def artifact_files(self, entity: str, project: str, name: str, alias: str) -> WandbFiles:
        """List the files of a version of an artifact, with their digests.

        Raises:
            LaunchError: as `run` does.
        """
        variables = {"entity": entity, "project": project, "collection": name, "alias": alias}
        listed = await self._list(f"the artifact {entity}/{project}/{name}:{alias}", _ARTIFACT_FILES, variables)
        _, digests = await self._manifest(listed.id)
        return WandbFiles(listed.of, listed.query, listed.variables, listed.urls, digests, listed.id)

    async def artifact_files_by_id(self, artifact_id: str) -> WandbFiles:
        """List the files of an artifact that is known by its id.

        Raises:
            LaunchError: as `run` does.
        """
        found, digests = await self._manifest(artifact_id)
        sequence = found.get("artifactSequence") or {}
        place = sequence.get("project") or {}
        variables = {
            "entity": place.get("entityName"),
            "project": place.get("name"),
            "collection": sequence.get("name"),
            "alias": f"v{found.get('versionIndex')}",
        }
        of = "the artifact {entity}/{project}/{collection}:{alias}".format(**variables)
        listed = await self._list(of, _ARTIFACT_FILES, variables)
        return WandbFiles(of, listed.query, listed.variables, listed.urls, digests, artifact_id)

    async def read(self, files: WandbFiles, path: str) -> bytes:
        """Fetch one file, without the key; a signed address that has run out is asked for once more.

        Raises:
            ArtifactError: when its digest is not the one that the artifact names.
            SourceError: when it is gone, or too large.
            InfrastructureError: when its host does not answer.
        """
        answer = await self._fetch(files.urls[path], path)
        if answer.status_code == 403:
            again = await self._list(files.of, files.query, files.variables)
            answer = await self._fetch(again.urls.get(path, files.urls[path]), path)
        if answer.status_code != 200:
            host = urlsplit(files.urls[path]).netloc
            raise SourceError(
                f"The file {path!r} of {files.of} is not available: {host} answers HTTP {answer.status_code}. See"
                f" whether the file is still there, on the pages of {self.host}."
            )
        if files.digests is not None:
            found = base64.b64encode(hashlib.md5(answer.content, usedforsecurity=False).digest()).decode()
            if found != files.digests.get(path):
                raise ArtifactError(
                    f"The file {path!r} of {files.of} has another content than its manifest names: expected the MD5"
                    f" {files.digests.get(path)}, found {found}. Ask the owner of the artifact to log it again."
                )
        return answer.content

    # --- inside ---

    async def _manifest(self, artifact_id: str) -> tuple[Mapping[str, Any], dict[str, str]]:
        found = _inside(await self._ask(_MANIFEST, {"id": artifact_id}), "artifact")
        url = _inside(found or {}, "currentManifest", "file", "directUrl")
        if found is None or not isinstance(url, str):
            raise self._unknown(f"artifact of the id {artifact_id!r}: it may be deleted")
        answer = await self._fetch(url, "the manifest")
        try:
            contents = json.loads(answer.content)["contents"]
            remote = next((path for path, entry in contents.items() if "ref" in entry), None)
            digests = {path: str(entry["digest"]) for path, entry in contents.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._strange(_MANIFEST, "the artifact's manifest cannot be read") from None
        if remote is not None:
            raise SourceError(
                f"The artifact {artifact_id!r} of {self.host} refers to {remote!r} in another place, which is not"
                " fetched. Log its files themselves, or make a job of the folder."
            )
        return found, digests

    async def _list(self, of: str, query: str, variables: Mapping[str, Any]) -> WandbFiles:
        urls: dict[str, str] = {}
        cursor, artifact_id = None, ""
        while True:
            answer = await self._ask(query, {**variables, **_paged(query, cursor)})
            if query is _RUN_FILES:
                holder = _inside(answer, "project", "run")
            else:
                holder = _inside(answer, "project", "artifactCollection", "artifactMembership")
                artifact_id = str(_inside(holder or {}, "artifact", "id") or "")
            if holder is None:
                raise self._unknown(of.removeprefix("the "))
            try:
                for edge in holder["files"]["edges"]:
                    urls[_checked(edge["node"]["name"], of)] = str(edge["node"]["directUrl"])
                more = holder["files"]["pageInfo"]
                if not more["hasNextPage"]:
                    return WandbFiles(of, query, variables, urls, id=artifact_id)
                cursor = more["endCursor"]
            except (KeyError, TypeError):
                raise self._strange(query, "the list of files has another form than is known") from None

    async def _ask(self, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask until there is an answer that another try would not change, and return its data."""

        async def send() -> httpx.Response:
            return await self._http.post(
                self._url,
                json={"query": query, "operationName": _name(query), "variables": dict(variables)},
                auth=(_USER, self._key.get_secret_value()),
                follow_redirects=False,
            )

        answer, fault = await self._tried(send)
        if answer is None:
            raise InfrastructureError(
                f"The W&B server {self.host!r} does not answer the query {_name(query)} ({fault},"
                f" {len(self._pauses) + 1} times). Check its address, and that it can be reached from here."
            )
        return self._data(query, answer)

    def _data(self, query: str, answer: httpx.Response) -> Mapping[str, Any]:
        if answer.status_code in (401, 403):
            raise AgentConfigError(
                f"The W&B server {self.host!r} refuses the key (HTTP {answer.status_code}, query {_name(query)}). Put"
                " a valid one where wandb.yaml says that it is; the server's page /authorize shows it."
            )
        if answer.is_redirect:
            to = urlsplit(answer.headers.get("location", "")).netloc
            raise AgentConfigError(
                f"The W&B server {self.host!r} sends to {to!r}, where the key is not sent. If that is its address now,"
                " list it in wandb.yaml, and use it in the uri."
            )
        try:
            content = answer.json()
            errors, data = content.get("errors") or [], content.get("data")
        except (ValueError, AttributeError):
            raise self._strange(query, f"HTTP {answer.status_code}, and no JSON object") from None
        if errors:
            said = "; ".join(str(each.get("message") if isinstance(each, dict) else each) for each in errors[:3])
            raise SourceError(
                f"The W&B server {self.host!r} refuses the query {_name(query)}:"
                f" {self._mask.text(said)[:300]}. See whether the address is right and the key may read it."
            )
        if not isinstance(data, dict):
            raise self._strange(query, f"HTTP {answer.status_code}, and no data")
        return data

    async def _fetch(self, url: str, path: str) -> httpx.Response:
        """Fetch a signed address, without the key."""
        answer, fault = await self._tried(lambda: self._got(url, path))
        if answer is None:
            raise InfrastructureError(
                f"{urlsplit(url).hostname!r}, where the W&B server {self.host!r} keeps the file {path!r}, does not"
                f" answer ({fault}, {len(self._pauses) + 1} times). See whether it can be reached from here."
            )
        return answer

    async def _check_tls(self, request: httpx.Request) -> None:
        """Refuse an address without TLS, of a redirect too, unless the operator lists the server so."""
        if request.url.scheme != "https" and not self.host.startswith("http://"):
            raise SourceError(
                f"The W&B server {self.host!r} gives a file an address without TLS, at {request.url.host!r}, which is"
                " not fetched. Ask its operator for TLS there."
            )

    async def _tried(self, send: Callable[[], Awaitable[httpx.Response]]) -> tuple[httpx.Response | None, str]:
        """Send a request until another try would not change its answer; return none, and why, when all tries fail."""
        fault = ""
        for pause in (*self._pauses, None):
            wait = pause
            try:
                answer = await send()
            except httpx.TransportError as error:
                fault = type(error).__name__
            else:
                fault = f"HTTP {answer.status_code}"
                if answer.status_code < 500 and answer.status_code != _TOO_MANY:
                    return answer, ""
                wait = _pause(answer, pause)
            if wait is not None:
                await anyio.sleep(wait)
        return None, fault

    async def _got(self, url: str, path: str) -> httpx.Response:
        async with self._http.stream("GET", url, follow_redirects=True) as answer:
            content = bytearray()
            async for chunk in answer.aiter_bytes():
                content += chunk
                self._fetched += len(chunk)
                if self._fetched > MAX_BYTES:
                    raise SourceError(
                        f"The code of the W&B server {self.host!r} has more than {MAX_BYTES:,} bytes, counted up to"
                        f" {path!r}. Have the job read its data from where it lies, and log its code alone."
                    )
            return httpx.Response(answer.status_code, headers=_pausing(answer), content=bytes(content))

    def _unknown(self, what: str) -> NotFoundError:
        return NotFoundError(
            f"The W&B server {self.host!r} has no {what}; or there is one, and the key may not read it. Check the"
            " name, and whose key it is."
        )

    def _strange(self, query: str, what: str) -> SourceError:
        return SourceError(
            f"The W&B server {self.host!r} gives an answer to the query {_name(query)} that prefect-launch does not"
            f" know: {what}. Check that it is a W&B server; if it is, tell us its version."
        )


def _variables(address: RunAddress) -> dict[str, Any]:
    return {"entity": address.entity, "project": address.project, "name": address.run_id}


def _paged(query: str, cursor: str | None) -> dict[str, Any]:
    names = ("fileCursor", "fileLimit") if query is _RUN_FILES else ("cursor", "perPage")
    return dict(zip(names, (cursor, _PAGE), strict=True))


def _name(query: str) -> str:
    return query.split("(")[0].split()[-1]


def _inside(value: Any, *path: str) -> Any:
    """Return what is at a path of nested objects; `None` when any of it is missing or null."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _checked(path: object, of: str) -> str:
    """Return a file's path when it stays in the folder that it is written to."""
    parts = PurePosixPath(str(path))
    if not str(path).strip("./") or parts.is_absolute() or ".." in parts.parts or not str(path).isprintable():
        raise ArtifactError(
            f"A file of {of} is named {str(path)[:200]!r}, which leads out of its folder. Nothing was fetched. Ask the"
            " owner of the run or artifact who named it so."
        )
    return str(parts)


def _pause(answer: httpx.Response, pause: float | None) -> float | None:
    """Return how long to wait: what the server asks for, within reason, or else the pause, with some jitter."""
    if pause is None:
        return None
    asked = answer.headers.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE_SECONDS) if asked.isdigit() else pause * random.uniform(0.8, 1.2)


def _pausing(answer: httpx.Response) -> dict[str, str]:
    return {"retry-after": answer.headers["retry-after"]} if "retry-after" in answer.headers else {}
