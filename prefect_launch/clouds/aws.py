"""AWS account: clients of AWS's services as the identity that the agent's operator chose.

The identity is that of a profile, of an `AwsCredentials` block, or what the AWS client finds on the machine; or a role
that this one assumes. Keys that expire are renewed by the client itself, also in one that is open for days. Those that
are only written down, in a block or in a file of the machine, are read anew every five minutes. The endpoints are
AWS's, unless AWS's own settings say otherwise (`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3`, `endpoint_url` of a profile).
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

import anyio

from prefect_launch.clouds.settings import AwsSettings
from prefect_launch.errors import AgentConfigError, InfrastructureError, NoIdentityError, UnreachableError, clause
from prefect_launch.server.blocks import AWS, ReadBlock, read_block

_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 60.0
_TRIES: Final = 4
#: The client renews what expires sooner than a quarter of an hour.
_KEYS_LIFE: Final = timedelta(minutes=20)
#: Codes of AWS's refusals that the identity itself causes, in all services.
_WRONG_KEYS: Final = frozenset(
    {
        *("AuthFailure", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSignatureException"),
        *("InvalidToken", "SignatureDoesNotMatch", "UnrecognizedClientException"),
    }
)
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_NOT_ALLOWED: Final = frozenset({"AccessDenied", "AccessDeniedException", "Forbidden", "UnauthorizedOperation"})
_THROTTLED: Final = frozenset(
    {
        *("LimitExceededException", "RequestLimitExceeded", "RequestThrottled", "SlowDown", "Throttling"),
        *("ThrottlingException", "ThrottledException", "TooManyRequestsException"),
    }
)
#: Settings of a block for the client, where each is without effect.
_NO_PARAMETER: Final[dict[str, tuple[Any, ...]]] = {"use_ssl": (None, True), "verify": (None, True)}


class AwsAccount:
    """The agent's account at AWS.

    Args:
        settings: the operator's.
        read_block: reads a block of the Prefect server.
    """

    def __init__(self, settings: AwsSettings | None = None, *, read_block: ReadBlock = read_block) -> None:
        self.settings = settings or AwsSettings()
        self._read_block = read_block
        self._lock = anyio.Lock()
        self._session: Any = None
        self._caller: Mapping[str, str] | None = None

    @asynccontextmanager
    async def client(self, service: str, *, region: str | None = None, config: Any = None) -> AsyncIterator[Any]:
        """Open a client of a service; it may stay open as long as the agent runs.

        Args:
            service: its name in aiobotocore, such as "sagemaker".
            region: of the service; default: the account's.
            config: an `AioConfig` over this account's defaults: time limits, and four tries with jitter.

        Raises:
            AgentConfigError: when the identity cannot be had, or there is no region.
        """
        session = await self._open(region)
        with aws_errors(f"its service {service!r}"):
            chosen = region or await self.region()
            await anyio.to_thread.run_sync(_load_model, session, service)
            options = _defaults() if config is None else _defaults().merge(config)
            opened = session.create_client(service, region_name=chosen, config=options)
            client = await opened.__aenter__()
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await opened.__aexit__(None, None, None)

    async def region(self) -> str:
        """Return the account's region.

        Raises:
            AgentConfigError: when nothing says it.
        """
        found = (await self._open()).get_config_variable("region")
        if not found:
            self._session = None  # The next one reads the machine's files anew.
            raise AgentConfigError(
                "AWS needs a region, and nothing names one. Set clouds.aws.region in the agent's config, such as"
                " eu-west-1, or AWS_DEFAULT_REGION."
            )
        return str(found)

    async def account_id(self) -> str:
        """Return the number of the AWS account.

        Raises:
            LaunchError: when AWS does not tell it.
        """
        return (await self._who())["Account"]

    async def partition(self) -> str:
        """Return the part of AWS that the account is in: `aws`, `aws-cn`, `aws-us-gov`.

        Raises:
            LaunchError: when AWS does not tell it.
        """
        return (await self.identity()).split(":")[1]

    async def identity(self) -> str:
        """Return the ARN of who the agent is at AWS.

        Raises:
            LaunchError: when AWS does not tell it.
        """
        return (await self._who())["Arn"]

    async def _who(self) -> Mapping[str, str]:
        if self._caller is None:
            async with self.client("sts") as sts:
                with aws_errors("who the agent is (sts:GetCallerIdentity)"):
                    answer = await sts.get_caller_identity()
            self._caller = {key: answer[key] for key in ("Account", "Arn")}
        return self._caller

    async def _open(self, region: str | None = None) -> Any:
        """Return the session, which holds the identity and renews its keys."""
        _check_installed()
        async with self._lock:
            if self._session is None:
                with aws_errors("an identity"):
                    self._session = await self._make_session(region)
        return self._session

    async def _make_session(self, region: str | None) -> Any:
        from aiobotocore.credentials import AioDeferredRefreshableCredentials, AioRefreshableCredentials

        block = await self._block()
        session = self._new_session(block)
        found = await _find_keys(session, block)
        renewed = AioDeferredRefreshableCredentials(self._keys_now, method="read-again")
        source = found if isinstance(found, AioRefreshableCredentials) else renewed
        role = self.settings.role_arn or block.get("assume_role_arn")
        if role and found is None:
            raise AgentConfigError(_nobody(f"and only somebody can assume the role {role!r}"))
        given = {} if self.settings.role_arn else block.get("assume_role_kwargs") or {}
        kept = _assumed(session, source, role, given, region) if role else source
        session.register_component("credential_provider", _Provider(kept))
        return session

    def _new_session(self, block: Mapping[str, Any]) -> Any:
        from aiobotocore.session import AioSession

        session = AioSession(profile=self.settings.profile or block.get("profile_name"))
        if region := self.settings.region or block.get("region_name"):
            session.set_config_variable("region", region)
        return session

    async def _block(self) -> dict[str, Any]:
        name = self.settings.credentials
        if name is None:
            return {}
        found = await self._read_block(AWS, name)
        if bool(found.get("aws_access_key_id")) != bool(found.get("aws_secret_access_key")):
            raise AgentConfigError(
                f"The AwsCredentials block {name!r} has an access key ID or a secret access key, and needs both or"
                " neither. Correct the block."
            )
        for key, value in (found.get("aws_client_parameters") or {}).items():
            if value not in _NO_PARAMETER.get(key, (None,)):
                raise AgentConfigError(
                    f"The AwsCredentials block {name!r} sets aws_client_parameters.{key}, which is not read here. Set"
                    " what AWS's own clients read on this machine (AWS_ENDPOINT_URL, AWS_CA_BUNDLE), and take it out"
                    " of the block."
                )
        return found

    async def _keys_now(self) -> dict[str, str | None]:
        from botocore.exceptions import NoCredentialsError

        block = await self._block()
        found = await _find_keys(self._new_session(block), block)
        if found is None:
            raise NoCredentialsError
        keys = await found.get_frozen_credentials()
        return {
            "access_key": keys.access_key,
            "secret_key": keys.secret_key,
            "token": keys.token,
            "expiry_time": (datetime.now(timezone.utc) + _KEYS_LIFE).isoformat(),
        }


class _Provider:
    """Gives a session its credentials, in the place of AWS's own search for them."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    async def load_credentials(self) -> Any:
        return self._credentials


async def _find_keys(session: Any, block: Mapping[str, Any]) -> Any:
    """Return the credentials that a block has, or else this machine now; None: it is nobody."""
    from aiobotocore.credentials import AioCredentials

    if block.get("aws_access_key_id"):
        return AioCredentials(*map(block.get, ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")))
    # Not by the session's own method: the session would keep what it finds.
    return await session.get_component("credential_provider").load_credentials()


def _check_installed() -> None:
    try:
        import aiobotocore  # noqa: F401
    except ImportError:
        raise AgentConfigError(
            "AWS needs its client aiobotocore, which is not installed here. Install it with: pip install"
            " 'prefect-launch[sagemaker]'."
        ) from None


def _assumed(session: Any, source: Any, role: str, given: Mapping[str, Any], region: str | None) -> Any:
    from aiobotocore.credentials import AioAssumeRoleCredentialFetcher, AioDeferredRefreshableCredentials

    where = session.get_config_variable("region") or region
    name = re.sub(r"[^\w+=,.@-]", "-", f"prefect-launch-{socket.gethostname()}")[:64]
    arguments = {"RoleSessionName": name, **{key: value for key, value in given.items() if value is not None}}
    fetcher = AioAssumeRoleCredentialFetcher(
        partial(session.create_client, region_name=where, config=_defaults()), source, role, extra_args=arguments
    )
    return AioDeferredRefreshableCredentials(fetcher.fetch_credentials, method="assume-role")


def _defaults() -> Any:
    from aiobotocore.config import AioConfig

    retries = {"mode": "standard", "total_max_attempts": _TRIES}
    return AioConfig(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries=retries)


def _load_model(session: Any, service: str) -> None:
    """Read a service's model from the disk, which takes up to a second; the session keeps it."""
    loader = session.get_component("data_loader")
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model(service, kind)


@contextmanager
def aws_errors(what: str) -> Iterator[None]:
    """Tell what goes wrong at AWS in this package's own errors.

    Args:
        what: AWS was asked for, as a noun.

    Raises:
        NoIdentityError: when this machine is nobody at AWS.
        AgentConfigError: when the identity is refused, or may not do that.
        UnreachableError: when AWS gives no answer, fails, asks for patience, and when the keys or login have expired.
        InfrastructureError: for any other refusal.
    """
    from aiohttp import ClientError as BrokenBody  # What aiobotocore lets through of a body that breaks off.
    from botocore import exceptions as botocore
    from botocore.parsers import ResponseParserError

    try:
        yield
    except botocore.NoCredentialsError as error:
        raise NoIdentityError(_nobody(f"so AWS cannot be asked for {what} ({clause(error)})")) from error
    except (botocore.HTTPClientError, botocore.ConnectionError, BrokenBody) as error:
        raise UnreachableError(
            f"AWS does not answer: {clause(error)}. It was asked for {what}. Look at the network, and at the region."
        ) from error
    except ResponseParserError as error:
        raise UnreachableError(
            f"What answers at AWS's address is not AWS. It was asked for {what}. Look at the proxy of this machine, and"
            " at AWS_ENDPOINT_URL."
        ) from error
    except botocore.ClientError as error:
        raise _refusal(error, what) from error
    except (
        botocore.CredentialRetrievalError,
        getattr(botocore, "LoginError", botocore.SSOError),  # Of 'aws login', which older ones do not have.
        botocore.RefreshWithMFAUnsupportedError,
        botocore.SSOError,
        botocore.TokenRetrievalError,
    ) as error:
        raise UnreachableError(
            f"The agent's AWS login has expired, or gives no keys: {clause(error)}. Log in again on the agent's machine"
            " ('aws sso login', with the profile of clouds.aws), or correct its ~/.aws/config."
        ) from error
    except botocore.BotoCoreError as error:
        raise AgentConfigError(
            f"AWS cannot be asked for {what}: {clause(error)}. Correct 'clouds.aws' in the agent's config, or this"
            " machine's ~/.aws/config."
        ) from error


def _refusal(error: Any, what: str) -> InfrastructureError | AgentConfigError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # What follows the first line of a refused signature is the request that was signed, with its session token.
    said = clause(str(error).partition("\n")[0])
    if code in _EXPIRED:
        return UnreachableError(
            f"The agent's AWS keys have expired: {said}. Renew them ('aws sso login', or the block that clouds.aws"
            " names), or look at this machine's clock."
        )
    if code in _WRONG_KEYS:
        return AgentConfigError(
            f"AWS does not know the agent's keys: {said}. Correct 'clouds.aws' in the agent's config, its block, or"
            " this machine's AWS login."
        )
    if code in _NOT_ALLOWED:
        return AgentConfigError(
            f"AWS does not let the agent have {what}: {said}. Give its identity that permission in IAM."
        )
    if code in _THROTTLED or status >= 500:
        return UnreachableError(f"AWS is busy or fails: {said}. It was asked for {what} {_TRIES} times. Try later.")
    return InfrastructureError(f"AWS refuses {what}: {said}.")


def _nobody(rest: str) -> str:
    return (
        f"This machine is nobody at AWS, {rest}. Set clouds.aws in the agent's config (a profile, or an AwsCredentials"
        " block), or log in as AWS's own clients do ('aws sso login', AWS_ACCESS_KEY_ID)."
    )
