"""What is read from a W&B server, how its faults are told, and where the key goes."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator

import httpx
import pytest
import respx
from pydantic import SecretStr

from prefect_launch.errors import AgentConfigError, ArtifactError, InfrastructureError, NotFoundError, SourceError
from prefect_launch.sources.wandb_client import WandbClient
from prefect_launch.sources.wandb_hosts import RunAddress
from tests.support.wandb_server import KEY, WandbServer

HOST = "wandb.example.com"
ADDRESS = RunAddress(HOST, "team", "digits", "abc")
_FILES = "https://files.example.net/signed"


@pytest.fixture
def server() -> WandbServer:
    """A server with a run and a job of two versions."""
    made = WandbServer(files_at=_FILES)
    made.add_run("team/digits/abc", {"a.txt": "one", "b.txt": "two", "c.txt": "three"}, {"lr": 0.1})
    made.add_artifact("team/digits/train", {"wandb-job.json": "{}"}, aliases=())
    made.add_artifact("team/digits/train", {"wandb-job.json": "{ }"})
    return made


@pytest.fixture
def routes(server: WandbServer) -> Iterator[respx.Router]:
    """Its two routes, `graphql` and `files`; what else is asked for fails the test."""
    with respx.mock(assert_all_called=False) as router:
        ask = router.post(f"https://{HOST}/graphql", name="graphql")
        ask.mock(side_effect=lambda request: httpx.Response(200, json=server.graphql(request.content)))
        router.get(url__startswith=_FILES, name="files").mock(side_effect=lambda request: _file(server, request))
        yield router


def _file(server: WandbServer, request: httpx.Request) -> httpx.Response:
    content = server.file(str(request.url).removeprefix(f"{_FILES}/"))
    return httpx.Response(404 if content is None else 200, content=content)


def _client() -> WandbClient:
    return WandbClient(HOST, SecretStr(KEY), pauses=(0, 0))


async def test_run_is_read_without_the_keys_of_wandb_itself(routes: respx.Router) -> None:
    async with _client() as client:
        run = await client.run(ADDRESS)

    assert (run.title, run.config) == ("brisk-sun-7", {"lr": 0.1})
    sent = routes["graphql"].calls.last.request
    assert sent.headers["authorization"] == f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"


@pytest.mark.parametrize(
    "address", [RunAddress(HOST, "team", "nobody", "abc"), RunAddress(HOST, "team", "digits", "x")]
)
async def test_unknown_project_or_run_may_be_one_that_the_key_may_not_read(
    routes: respx.Router, address: RunAddress
) -> None:
    async with _client() as client:
        with pytest.raises(NotFoundError, match=r"has no run .* or there is one, and the key may not read it"):
            await client.run(address)


async def test_key_that_is_refused_is_told_to_the_operator(routes: respx.Router) -> None:
    routes["graphql"].respond(401)
    async with _client() as client:
        with pytest.raises(AgentConfigError, match=r"refuses the key \(HTTP 401, query Run\)"):
            await client.run(ADDRESS)


async def test_error_in_an_answer_is_told_with_its_query(routes: respx.Router) -> None:
    routes["graphql"].respond(200, json={"errors": [{"message": f"no field of {KEY}"}], "data": None})
    async with _client() as client:
        with pytest.raises(SourceError, match=r"refuses the query Run: no field of \*{8}"):
            await client.run(ADDRESS)


@pytest.mark.parametrize("first", [httpx.Response(429, headers={"Retry-After": "0"}), httpx.Response(502)])
async def test_server_that_is_busy_is_asked_again(
    routes: respx.Router, server: WandbServer, first: httpx.Response
) -> None:
    answers = iter([first])
    routes["graphql"].mock(
        side_effect=lambda request: next(answers, None) or httpx.Response(200, json=server.graphql(request.content))
    )
    async with _client() as client:
        assert (await client.run(ADDRESS)).config == {"lr": 0.1}


async def test_server_that_never_answers_is_given_up(routes: respx.Router) -> None:
    routes["graphql"].mock(side_effect=httpx.ConnectError)
    async with _client() as client:
        with pytest.raises(InfrastructureError, match=r"does not answer the query Run \(ConnectError, 3 times\)"):
            await client.run(ADDRESS)


async def test_files_of_several_pages_are_all_listed(routes: respx.Router, server: WandbServer) -> None:
    server.page = 2
    async with _client() as client:
        files = await client.run_files(ADDRESS)

    assert sorted(files.urls) == ["a.txt", "b.txt", "c.txt"]
    assert server.queries == ["RunFiles", "RunFiles"]


async def test_signed_address_that_has_run_out_is_asked_for_once_more(
    routes: respx.Router, server: WandbServer
) -> None:
    async with _client() as client:
        files = await client.run_files(ADDRESS)
        answers = iter([httpx.Response(403)])
        routes["files"].mock(side_effect=lambda request: next(answers, None) or _file(server, request))
        assert await client.read(files, "a.txt") == b"one"

        routes["files"].mock(return_value=httpx.Response(403))
        with pytest.raises(SourceError, match=r"'a\.txt' of the run 'abc' is not available: files\.example\.net"):
            await client.read(files, "a.txt")
    assert server.queries == ["RunFiles"] * 3


@pytest.mark.parametrize("path", ["../up.py", "/etc/passwd", "code/../../up.py", ".", "a\nb"])
async def test_file_that_leads_out_of_its_folder_is_refused(
    routes: respx.Router, server: WandbServer, path: str
) -> None:
    server.add_run("team/digits/abc", {path: "x"})
    async with _client() as client:
        with pytest.raises(ArtifactError, match="leads out of its folder"):
            await client.run_files(ADDRESS)
    assert not routes["files"].called


async def test_file_whose_digest_differs_is_refused(routes: respx.Router, server: WandbServer) -> None:
    async with _client() as client:
        files = await client.artifact_files("team", "digits", "train", "latest")
        assert await client.read(files, "wandb-job.json") == b"{ }"
        server.artifacts[1].files["wandb-job.json"] = b"other"
        with pytest.raises(ArtifactError, match="has another content than its manifest names"):
            await client.read(files, "wandb-job.json")


async def test_artifact_is_found_by_alias_version_and_id(routes: respx.Router, server: WandbServer) -> None:
    async with _client() as client:
        named = [(await client.artifact_files("team", "digits", "train", alias)).id for alias in ("latest", "v0")]
        by_id = await client.artifact_files_by_id("id-train-0")

    assert named == ["id-train-1", "id-train-0"]
    assert (by_id.of, list(by_id.urls)) == ("the artifact team/digits/train:v0", ["wandb-job.json"])


@pytest.mark.parametrize(("name", "alias"), [("train", "best"), ("nobody", "latest")])
async def test_unknown_alias_or_artifact_is_named(routes: respx.Router, name: str, alias: str) -> None:
    async with _client() as client:
        with pytest.raises(NotFoundError, match=f"has no artifact team/digits/{name}:{alias}"):
            await client.artifact_files("team", "digits", name, alias)


async def test_artifact_that_refers_to_files_elsewhere_is_refused(routes: respx.Router, server: WandbServer) -> None:
    manifest = {"contents": {"data.bin": {"digest": "x", "ref": "s3://bucket/data.bin"}}}
    routes["files"].respond(200, json=manifest)
    async with _client() as client:
        with pytest.raises(SourceError, match=r"refers to 'data\.bin' in another place"):
            await client.artifact_files("team", "digits", "train", "latest")


async def test_key_goes_to_no_other_host_and_into_no_log(
    routes: respx.Router, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with _client() as client:
        files = await client.run_files(ADDRESS)
        await client.read(files, "a.txt")
        routes["graphql"].respond(302, headers={"Location": "https://other.example.com/graphql"})
        with pytest.raises(AgentConfigError, match=r"sends to 'other\.example\.com', where the key is not sent"):
            await client.run(ADDRESS)

    assert [call.request.url.host for call in routes.calls if "authorization" in call.request.headers] == [HOST, HOST]
    assert KEY not in caplog.text
    assert KEY not in repr(vars(client))


async def test_file_that_is_redirected_is_fetched_without_the_key(routes: respx.Router) -> None:
    routes["files"].respond(302, headers={"Location": f"https://{HOST}/storage/a.txt"})
    storage = routes.get(f"https://{HOST}/storage/a.txt").respond(200, text="one")
    async with _client() as client:
        assert await client.read(await client.run_files(ADDRESS), "a.txt") == b"one"
    assert "authorization" not in storage.calls.last.request.headers


async def test_more_than_code_can_be_is_not_fetched(routes: respx.Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.sources.wandb_client.MAX_BYTES", 6)
    async with _client() as client:
        files = await client.run_files(ADDRESS)
        assert [await client.read(files, path) for path in ("a.txt", "b.txt")] == [b"one", b"two"]
        with pytest.raises(SourceError, match=r"more than 6 bytes, counted up to 'c\.txt'"):
            await client.read(files, "c.txt")


async def test_file_without_tls_is_not_fetched_from_a_server_with_tls(
    routes: respx.Router, server: WandbServer
) -> None:
    plain = routes.get("http://files.example.net/a.txt").respond(200, text="one")
    async with _client() as client:
        files = await client.run_files(ADDRESS)
        routes["files"].respond(302, headers={"Location": "http://files.example.net/a.txt"})
        with pytest.raises(SourceError, match="an address without TLS"):
            await client.read(files, "a.txt")
        server.files_at = "http://files.example.net/signed"
        with pytest.raises(SourceError, match="an address without TLS"):
            await client.read(await client.run_files(ADDRESS), "a.txt")
    assert not plain.called


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b'{"data": null}', b'{"data": {"project": {"run": {"files": 1}}}}']
)
async def test_answer_of_another_form_is_told_with_its_query(routes: respx.Router, content: bytes) -> None:
    routes["graphql"].respond(200, content=content)
    async with _client() as client:
        with pytest.raises(SourceError, match="an answer to the query RunFiles that prefect-launch does not know"):
            await client.run_files(ADDRESS)
