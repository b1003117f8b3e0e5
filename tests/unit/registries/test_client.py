"""What a registry's HTTP API is asked, and what becomes of each answer. The registry's side is written out here."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import respx

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import TOKEN_USER, Credentials, parse_reference
from prefect_launch.registries.client import MANIFEST_TYPES, RegistryClient

HOST = "registry.example:5000"
IMAGE = f"{HOST}/team/train:1"
URL = f"https://{HOST}/v2/team/train/manifests/1"
REALM = "https://auth.example/token"
DIGEST = f"sha256:{'a' * 64}"
WHO = Credentials("ann", "secret")
BASIC = f"Basic {base64.b64encode(b'ann:secret').decode()}"
FOUND = httpx.Response(200, headers={"Docker-Content-Digest": DIGEST})
ASKS_TOKEN = {"WWW-Authenticate": f'Bearer realm="{REALM}",service="r.example",scope="repository:team/train:pull,push"'}
ASKS_BASIC = {"WWW-Authenticate": 'Basic realm="Registry"'}


@pytest.fixture
def web() -> Iterator[respx.MockRouter]:
    with respx.mock(assert_all_called=False) as router:
        yield router


async def digest(image: str = IMAGE, **options: Any) -> str | None:
    reference = parse_reference(image)
    settings: dict[str, Any] = {"pauses": (0.0, 0.0), "advice": "Do this.", **options}
    return await RegistryClient(reference.host, api_host=reference.api_host, **settings).digest_of(reference)


def asks(request: httpx.Request, header: dict[str, str], accepted: str) -> httpx.Response:
    return FOUND if request.headers.get("Authorization") == accepted else httpx.Response(401, headers=header)


async def test_digest_is_read_from_the_header_and_all_kinds_of_manifest_are_named(web: respx.MockRouter) -> None:
    asked = web.head(URL).mock(FOUND)

    assert await digest() == DIGEST
    assert all(kind in asked.calls[0].request.headers["Accept"] for kind in MANIFEST_TYPES)


async def test_docker_hub_image_is_asked_for_where_its_api_is(web: respx.MockRouter) -> None:
    web.head("https://registry-1.docker.io/v2/library/ubuntu/manifests/latest").mock(FOUND)

    assert await digest("ubuntu") == DIGEST


async def test_image_named_by_its_digest_is_asked_for_by_it(web: respx.MockRouter) -> None:
    web.head(f"https://{HOST}/v2/team/train/manifests/{DIGEST}").mock(FOUND)

    assert await digest(f"{HOST}/team/train@{DIGEST}") == DIGEST


async def test_image_that_is_not_there_has_no_digest(web: respx.MockRouter) -> None:
    web.head(URL).mock(httpx.Response(404))

    assert await digest() is None


async def test_registry_without_the_header_is_asked_for_the_manifest_itself(web: respx.MockRouter) -> None:
    web.head(URL).mock(httpx.Response(200))
    web.get(URL).mock(httpx.Response(200, content=b"{}", headers={"Content-Type": MANIFEST_TYPES[2]}))

    assert await digest() == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


async def test_web_page_is_not_taken_for_a_registry(web: respx.MockRouter) -> None:
    page = httpx.Response(200, content=b"<html>", headers={"Content-Type": "text/html"})
    web.route(url=URL).mock(page)

    with pytest.raises(RegistryError, match="is no registry"):
        await digest()


async def test_token_is_asked_for_where_the_registry_says(web: respx.MockRouter) -> None:
    realm = web.get(url__startswith=REALM).mock(httpx.Response(200, json={"token": "t0"}))
    web.head(URL).mock(side_effect=lambda request: asks(request, ASKS_TOKEN, "Bearer t0"))

    assert await digest(credentials=WHO) == DIGEST
    request = realm.calls[0].request
    assert dict(request.url.params) == {"service": "r.example", "scope": "repository:team/train:pull,push"}
    assert request.headers["Authorization"] == BASIC


async def test_token_for_anybody_is_asked_for_without_a_password(web: respx.MockRouter) -> None:
    realm = web.get(url__startswith=REALM).mock(httpx.Response(200, json={"access_token": "t0"}))
    web.head(URL).mock(side_effect=lambda request: asks(request, ASKS_TOKEN, "Bearer t0"))

    assert await digest() == DIGEST
    assert "Authorization" not in realm.calls[0].request.headers


async def test_identity_token_is_changed_for_a_token_of_the_registry(web: respx.MockRouter) -> None:
    realm = web.post(REALM).mock(httpx.Response(200, json={"access_token": "t0"}))
    web.head(URL).mock(side_effect=lambda request: asks(request, ASKS_TOKEN, "Bearer t0"))

    assert await digest(credentials=Credentials(TOKEN_USER, "refresh")) == DIGEST
    form = parse_qs(realm.calls[0].request.content.decode())
    assert (form["grant_type"], form["refresh_token"]) == (["refresh_token"], ["refresh"])


async def test_user_and_password_are_shown_to_a_registry_that_asks_for_them(web: respx.MockRouter) -> None:
    asked = web.head(URL).mock(side_effect=lambda request: asks(request, ASKS_BASIC, BASIC))

    assert await digest(credentials=WHO) == DIGEST
    assert "Authorization" not in asked.calls[0].request.headers


async def test_password_is_not_sent_to_a_realm_without_tls(web: respx.MockRouter) -> None:
    header = {"WWW-Authenticate": 'Bearer realm="http://auth.example/token"'}
    realm = web.get(url__startswith="http://auth.example").mock(httpx.Response(200, json={"token": "t0"}))
    web.head(URL).mock(httpx.Response(401, headers=header))

    with pytest.raises(RegistryError, match="no password is sent there"):
        await digest(credentials=WHO)
    assert not realm.called


async def test_missing_credentials_are_reported_with_the_next_step(web: respx.MockRouter) -> None:
    web.head(URL).mock(httpx.Response(401, headers=ASKS_BASIC))

    with pytest.raises(RegistryError, match=r"'team/train' of the registry .* none are known here.* Do this\."):
        await digest()


async def test_wrong_credentials_are_reported_and_not_shown(web: respx.MockRouter) -> None:
    web.head(URL).mock(httpx.Response(401, headers=ASKS_BASIC))

    with pytest.raises(RegistryError, match="refuses the user and password") as caught:
        await digest(credentials=WHO)
    assert "secret" not in str(caught.value)


async def test_realm_that_refuses_the_password_is_reported_as_wrong_credentials(web: respx.MockRouter) -> None:
    web.get(url__startswith=REALM).mock(httpx.Response(401))
    web.head(URL).mock(httpx.Response(401, headers=ASKS_TOKEN))

    with pytest.raises(RegistryError, match="refuses the user and password"):
        await digest(credentials=WHO)


async def test_user_without_the_right_to_read_is_reported(web: respx.MockRouter) -> None:
    web.head(URL).mock(side_effect=[httpx.Response(401, headers=ASKS_BASIC), httpx.Response(403)])

    with pytest.raises(RegistryError, match="may not be read by the user"):
        await digest(credentials=WHO)


async def test_registry_that_fails_for_a_moment_is_asked_again(web: respx.MockRouter) -> None:
    cut = httpx.ConnectError("connection refused")
    web.head(URL).mock(side_effect=[httpx.Response(503), cut, FOUND])

    assert await digest() == DIGEST


async def test_registry_that_asks_for_patience_gets_it(web: respx.MockRouter) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "0"})
    asked = web.head(URL).mock(side_effect=[busy, FOUND])

    assert await digest(pauses=(30.0,)) == DIGEST
    assert asked.call_count == 2


async def test_registry_that_goes_on_failing_is_reported(web: respx.MockRouter) -> None:
    asked = web.head(URL).mock(httpx.Response(500))

    with pytest.raises(RegistryError, match=r"'registry.example:5000' failed \(HTTP 500\), 3 times"):
        await digest()
    assert asked.call_count == 3


async def test_registry_that_does_not_answer_is_reported(web: respx.MockRouter) -> None:
    web.head(URL).mock(side_effect=httpx.ReadTimeout("timed out"))

    with pytest.raises(RegistryError, match=r"does not answer \(timed out\), 3 times"):
        await digest()


async def test_realm_that_fails_for_a_moment_is_asked_again(web: respx.MockRouter) -> None:
    web.get(url__startswith=REALM).mock(side_effect=[httpx.Response(502), httpx.Response(200, json={"token": "t0"})])
    web.head(URL).mock(side_effect=lambda request: asks(request, ASKS_TOKEN, "Bearer t0"))

    assert await digest(credentials=WHO) == DIGEST


async def test_registry_elsewhere_is_never_asked_without_tls(web: respx.MockRouter) -> None:
    plain = web.head(URL.replace("https", "http")).mock(FOUND)
    web.head(URL).mock(side_effect=httpx.ConnectError("connection refused"))

    with pytest.raises(RegistryError, match="does not answer"):
        await digest()
    assert not plain.called
