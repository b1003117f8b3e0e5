"""Stand-in for what clouds say of an identity: STS and ECR of AWS, token service and metadata server of Google.

One program on the loopback with the public APIs' shapes. It knows the keys that it was told of and those that it has
given out; others are refused with the cloud's own code. Tests make it fail as a cloud fails: `faults` are the next
answers, whatever is asked.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import uuid4

from aiohttp import web

ACCOUNT: Final = "123456789012"
USER: Final = f"arn:aws:iam::{ACCOUNT}:user/agent"
KEY: Final = "AKIAAGENT"
SECRET: Final = "the-secret-of-the-agent"
ROLE: Final = f"arn:aws:iam::{ACCOUNT}:role/launch"
PROJECT: Final = "team-ml"
ROBOT: Final = f"agent@{PROJECT}.iam.gserviceaccount.com"

_SCOPE: Final = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeCloud:
    """The identity services of the clouds, on the loopback.

    Attributes:
        keys: who is who at AWS, by access key ID.
        assumable: roles that may be assumed.
        life: how long what it gives out is good.
        faults: answers that come next, in the place of what is asked; one of `None` never comes.
        asked: what was asked, such as `sts:AssumeRole as AKIAAGENT in eu-west-1`.
        forms: what came with it.
    """

    keys: dict[str, str] = field(default_factory=lambda: {KEY: USER})
    assumable: set[str] = field(default_factory=lambda: {ROLE})
    life: timedelta = timedelta(hours=1)
    faults: list[web.Response | None] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    async def __aenter__(self) -> FakeCloud:
        self._stack = AsyncExitStack()
        app = web.Application(middlewares=[self._faulty])
        app.router.add_post("/", self._aws)
        app.router.add_get("/", self._ping)
        app.router.add_post("/token", self._google_token)
        app.router.add_get("/computeMetadata/v1/{path:.*}", self._metadata)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.host = f"{host}:{port}"
        self.url = f"http://{self.host}"
        return self

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
        return fault

    async def _aws(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl(await request.text()))
        found = _SCOPE.search(request.headers.get("Authorization", ""))
        key, region, service = found.groups() if found else ("", "", "")
        action = form.get("Action") or request.headers["X-Amz-Target"].rpartition(".")[2]
        self.asked.append(f"{service}:{action} as {key} in {region}")
        self.forms.append(form)
        if key not in self.keys:
            return aws_fault(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
        if action == "GetCallerIdentity":
            return _xml(action, f"<Arn>{self.keys[key]}</Arn><UserId>U</UserId><Account>{ACCOUNT}</Account>")
        if action == "AssumeRole":
            return self._assume(form["RoleArn"], key)
        assert action == "GetAuthorizationToken", action
        expires = (datetime.now(timezone.utc) + self.life).timestamp()
        token = base64.b64encode(f"AWS:of {self.keys[key]}".encode()).decode()
        return web.json_response({"authorizationData": [{"authorizationToken": token, "expiresAt": expires}]})

    def _assume(self, role: str, key: str) -> web.Response:
        if role not in self.assumable:
            said = f"User: {self.keys[key]} is not authorized to perform: sts:AssumeRole on resource: {role}"
            return aws_fault(403, "AccessDenied", said)
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
        number = sum(one.endswith(("/token", who)) for one in self.asked)
        return {
            "access_token": f"ya29.{number}-of-{who}",
            "expires_in": int(self.life.total_seconds()),
            "token_type": "Bearer",
        }


def aws_fault(status: int, code: str, said: str) -> web.Response:
    """An answer of AWS that refuses, readable in the protocols of all of its services."""
    body = {"__type": code, "message": said}
    text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{said}</Message></Error></ErrorResponse>"
    headers = {"x-amzn-errortype": code}
    return web.Response(status=status, text=text if code else json.dumps(body), headers=headers)


def _xml(action: str, result: str) -> web.Response:
    return web.Response(text=f"<{action}Response><{action}Result>{result}</{action}Result></{action}Response>")


def service_account_key(token_uri: str, email: str = ROBOT) -> dict[str, str]:
    """Return a service account's key, as Google's console makes one, whose tokens come from `token_uri`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": pem,
        "client_email": email,
        "client_id": "1",
        "token_uri": token_uri,
    }
