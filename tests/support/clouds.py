"""Stand-in for what clouds say of an identity, for their real clients.

It has STS and ECR of AWS; the token service, the metadata server and the impersonation of Google; and the authority of
Azure with the token exchange of its registries. It is one program on the loopback with the public APIs' shapes. It
knows the keys that it was told of and those that it has given out; others are refused with the cloud's own code. Tests
make it fail as a cloud fails: `faults` are the next answers, whatever is asked.

Clients that know no address but the cloud's own reach it as the proxy of the machine (`trust`): it ends their TLS, with
a certificate of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl
from uuid import uuid4

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ACCOUNT: Final = "123456789012"
USER: Final = f"arn:aws:iam::{ACCOUNT}:user/agent"
KEY: Final = "AKIAAGENT"
SECRET: Final = "the-secret-of-the-agent"
ROLE: Final = f"arn:aws:iam::{ACCOUNT}:role/launch"
PROJECT: Final = "team-ml"
ROBOT: Final = f"agent@{PROJECT}.iam.gserviceaccount.com"
DEPUTY: Final = f"launch@{PROJECT}.iam.gserviceaccount.com"
TENANT: Final = "00000000-0000-0000-0000-00000000000a"
CLIENT: Final = "the-app"
_HOSTS: Final = ("iamcredentials.googleapis.com", "login.microsoftonline.com", "*.azurecr.io")

_SCOPE: Final = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeCloud:
    """The identity services of the clouds, on the loopback.

    Attributes:
        keys: who is who at AWS, by access key ID.
        assumable: roles that may be assumed.
        life: how long what it gives out is good.
        impersonable: service accounts that may be impersonated.
        faults: answers that come next, in the place of what is asked; one of `None` never comes.
        asked: what was asked, such as `sts:AssumeRole as AKIAAGENT in eu-west-1`.
        forms: what came with it.
        tokens: how many access tokens Google has given out.
    """

    keys: dict[str, str] = field(default_factory=lambda: {KEY: USER})
    assumable: set[str] = field(default_factory=lambda: {ROLE})
    impersonable: set[str] = field(default_factory=lambda: {DEPUTY})
    life: timedelta = timedelta(hours=1)
    faults: list[AwsFault | web.Response | None] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0

    async def __aenter__(self) -> FakeCloud:
        self._stack = AsyncExitStack()
        app = web.Application(middlewares=[self._faulty])
        app.router.add_post("/", self._aws)
        app.router.add_get("/", self._ping)
        app.router.add_post("/token", self._google_token)
        app.router.add_get("/computeMetadata/v1/{path:.*}", self._metadata)
        app.router.add_post("/v1/projects/-/serviceAccounts/{who}:generateAccessToken", self._impersonate)
        app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._authority)
        app.router.add_get("/common/discovery/instance", self._instances)
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._azure_token)
        app.router.add_post("/oauth2/exchange", self._exchange)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        self.host = await self._serve(runner)
        self.url = f"http://{self.host}"
        folder = self._stack.enter_context(TemporaryDirectory())
        self.certificate = write_certificate(Path(folder))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate)
        secure = await self._serve(runner, context)
        proxy = await asyncio.start_server(partial(_tunnel, secure), "127.0.0.1", 0)
        self._stack.callback(proxy.close)
        self.proxy = "http://{}:{}".format(*proxy.sockets[0].getsockname())
        return self

    async def _serve(self, runner: web.AppRunner, context: ssl.SSLContext | None = None) -> str:
        known = set(runner.addresses)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        host, port = next(one for one in runner.addresses if one not in known)[:2]
        return f"{host}:{port}"

    def trust(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process reach the clouds' own addresses here."""
        monkeypatch.setenv("HTTPS_PROXY", self.proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(self.certificate))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @web.middleware
    async def _faulty(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        if not self.faults:
            return await handler(request)
        fault = self.faults.pop(0)
        if fault is None:
            await asyncio.Event().wait()
        assert fault is not None
        return fault.answer(request) if isinstance(fault, AwsFault) else fault

    async def _aws(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl(await request.text()))
        found = _SCOPE.search(request.headers.get("Authorization", ""))
        key, region, service = found.groups() if found else ("", "", "")
        action = form.get("Action") or request.headers["X-Amz-Target"].rpartition(".")[2]
        self.asked.append(f"{service}:{action} as {key} in {region}")
        self.forms.append(form)
        if key not in self.keys:
            return AwsFault("InvalidClientTokenId", "The security token is invalid.", 403).answer(request)
        if action == "GetCallerIdentity":
            return _xml(action, f"<Arn>{self.keys[key]}</Arn><UserId>U</UserId><Account>{ACCOUNT}</Account>")
        if action == "AssumeRole":
            return self._assume(request, form["RoleArn"], key)
        assert action == "GetAuthorizationToken", action
        expires = (datetime.now(timezone.utc) + self.life).timestamp()
        token = base64.b64encode(f"AWS:of {self.keys[key]}".encode()).decode()
        return web.json_response({"authorizationData": [{"authorizationToken": token, "expiresAt": expires}]})

    def _assume(self, request: web.Request, role: str, key: str) -> web.Response:
        if role not in self.assumable:
            said = f"User: {self.keys[key]} is not authorized to perform: sts:AssumeRole on resource: {role}"
            return AwsFault("AccessDenied", said, 403).answer(request)
        given, name = f"ASIA{uuid4().hex[:8].upper()}", role.rpartition("/")[2]
        self.keys[given] = f"arn:aws:sts::{ACCOUNT}:assumed-role/{name}/session"
        ends = (datetime.now(timezone.utc) + self.life).isoformat()
        credentials = (
            f"<Credentials><AccessKeyId>{given}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{ends}</Expiration></Credentials>"
        )
        return _xml("AssumeRole", credentials)

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(headers={"Metadata-Flavor": "Google"})

    async def _google_token(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl(await request.text()))
        claims = form["assertion"].split(".")[1]
        issuer = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iss"]
        self.asked.append(f"google:token as {issuer}")
        if issuer != ROBOT:
            return web.json_response({"error": "invalid_grant", "error_description": "No such account."}, status=400)
        return web.json_response(self._token(issuer))

    async def _impersonate(self, request: web.Request) -> web.Response:
        who, by = request.match_info["who"], request.headers["Authorization"].partition("-of-")[2]
        self.asked.append(f"google:impersonate {who} as {by}")
        if who not in self.impersonable:
            error = {"code": 403, "message": "Permission 'iam.serviceAccounts.getAccessToken' denied", "status": "X"}
            return web.json_response({"error": error}, status=403)
        ends = (datetime.now(timezone.utc) + self.life).strftime("%Y-%m-%dT%H:%M:%SZ")
        return web.json_response({"accessToken": self._token(who)["access_token"], "expireTime": ends})

    async def _authority(self, request: web.Request) -> web.Response:
        base = f"https://{request.host}/{request.match_info['tenant']}"
        return web.json_response(
            {
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "issuer": f"{base}/v2.0",
            }
        )

    async def _instances(self, request: web.Request) -> web.Response:
        return web.json_response({"tenant_discovery_endpoint": "", "metadata": []})

    async def _azure_token(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl(await request.text()))
        self.asked.append(f"azure:token as {form['client_id']}")
        if form["client_secret"] != SECRET:
            said = "AADSTS7000215: Invalid client secret provided."
            return web.json_response({"error": "invalid_client", "error_description": said}, status=401)
        token = f"of-{form['client_id']}"
        return web.json_response({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    async def _exchange(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl(await request.text()))
        self.asked.append(f"azure:exchange {form['access_token']} at {request.host}")
        if form["access_token"] != f"of-{CLIENT}":
            return web.Response(status=401)
        return web.json_response({"refresh_token": f"for-{form['service']}"})

    async def _metadata(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        self.asked.append(f"metadata:{path}")
        headers = {"Metadata-Flavor": "Google"}
        if path == "project/project-id":
            return web.Response(text=PROJECT, headers=headers)
        if path.endswith("/token"):
            return web.json_response(self._token(ROBOT), headers=headers)
        return web.json_response({"email": ROBOT, "scopes": [], "aliases": ["default"]}, headers=headers)

    def _token(self, who: str) -> dict[str, Any]:
        self.tokens += 1
        return {
            "access_token": f"ya29.{self.tokens}-of-{who}",
            "expires_in": int(self.life.total_seconds()),
            "token_type": "Bearer",
        }


class AwsFault(NamedTuple):
    """A refusal of AWS."""

    code: str
    said: str = "Said."
    status: int = 400

    def answer(self, request: web.Request) -> web.Response:
        """Write it in the protocol of the service that was asked."""
        if "X-Amz-Target" in request.headers:
            return web.json_response({"__type": self.code, "message": self.said}, status=self.status)
        error = f"<Error><Code>{self.code}</Code><Message>{self.said}</Message></Error>"
        return web.Response(status=self.status, text=f"<ErrorResponse>{error}</ErrorResponse>")


def _xml(action: str, result: str) -> web.Response:
    return web.Response(text=f"<{action}Response><{action}Result>{result}</{action}Result></{action}Response>")


async def _tunnel(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer CONNECT of a client, and carry bytes until one side ends."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    host, _, port = target.partition(":")
    there, back = await asyncio.open_connection(host, int(port))

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    with suppress(asyncio.CancelledError):  # The loop of a test ends before its last connection.
        await asyncio.gather(carry(reader, back), carry(there, writer))


def write_certificate(folder: Path) -> Path:
    """Write a certificate for the clouds' addresses, and its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clouds")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in _HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "clouds.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM) + _pem(key).encode())
    return file


def _pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@cache
def _robots_key() -> str:
    return _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def service_account_key(token_uri: str, email: str = ROBOT) -> dict[str, str]:
    """Return a service account's key, as Google's console makes one, whose tokens come from `token_uri`."""
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": _robots_key(),
        "client_email": email,
        "client_id": "1",
        "token_uri": token_uri,
    }


def be_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have no identity in any cloud, and ask no network for one."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "aws-config"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CONFIG"),
        *("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"),
    ):
        monkeypatch.delenv(name, raising=False)
