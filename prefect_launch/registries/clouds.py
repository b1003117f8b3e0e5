"""Cloud registries, and credentials for them by the agent's identity in that cloud.

The identity at AWS and at Google is that of `clouds` in the agent's config; at Azure, what Azure's client finds on the
machine. Each cloud needs its own client, which is an extra of this package (`prefect-launch[ecr]`, `[gar]`, `[acr]`)
and is imported when a registry of that cloud is first used.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import anyio
import httpx
from prefect.logging import get_logger

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.clouds.aws import aws_errors
from prefect_launch.errors import LaunchError, NoIdentityError, RegistryError, clause
from prefect_launch.registries.base import Credentials

_logger = get_logger("launch.registries")

#: What a cloud may take to answer, with all tries of its client.
_ANSWER_SECONDS: Final = 60.0
_GOOGLE_USER: Final = "oauth2accesstoken"
#: The user that Azure's registries expect with a token.
_AZURE_USER: Final = "00000000-0000-0000-0000-000000000000"
_AZURE_SCOPE: Final = "https://management.azure.com/.default"
_AZURE_SECONDS: Final = 15.0
#: Begins the codes of Azure's refusals.
_AZURE_REFUSAL: Final = "AADSTS"
_ECR: Final = re.compile(r"[0-9]{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?\Z")
_GAR: Final = re.compile(r"([a-z0-9-]+-docker\.pkg\.dev|([a-z]+\.)?gcr\.io)\Z")
_ACR: Final = re.compile(r"[a-z0-9-]+\.azurecr\.(io|cn|us)\Z")


async def ecr_credentials(host: str, clouds: Clouds) -> Credentials:
    """Return credentials for an Amazon ECR registry, good for 12 hours.

    Raises:
        LaunchError: when AWS refuses to give them.
    """
    region = host.split(".")[3]
    async with clouds.aws.client("ecr", region=region) as ecr:
        with aws_errors(f"credentials for the registry {host!r} (ecr:GetAuthorizationToken)"):
            answer = await ecr.get_authorization_token()
    try:
        token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
    except (KeyError, IndexError, ValueError) as error:
        raise RegistryError(
            "What answers for AWS has no credentials in its answer. Look at the proxy of this machine, and at"
            " AWS_ENDPOINT_URL."
        ) from error
    user, _, password = token.partition(":")
    return Credentials(user, password)


async def gar_credentials(host: str, clouds: Clouds) -> Credentials:
    """Return credentials for Google Artifact Registry.

    Raises:
        LaunchError: when Google refuses to give them.
    """
    return Credentials(_GOOGLE_USER, await clouds.gcp.token())


async def acr_credentials(host: str, clouds: Clouds) -> Credentials | None:
    """Return credentials for an Azure registry, good for about three hours; None without an Azure identity here.

    Raises:
        RegistryError: when Azure, or the registry, does not take that identity.
    """
    token = await anyio.to_thread.run_sync(_azure_token, host, abandon_on_cancel=True)
    return None if token is None else await _exchange_azure_token(host, token)


def _azure_token(host: str) -> str | None:
    """Get Azure's own token; blocks."""
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import DefaultAzureCredential

    try:
        return str(DefaultAzureCredential().get_token(_AZURE_SCOPE).token)
    except ClientAuthenticationError as error:
        refusal = next((line for line in error.message.splitlines() if _AZURE_REFUSAL in line), None)
        if refusal is not None:
            raise RegistryError(
                f"Azure refuses this machine's identity: {clause(refusal)}. Correct AZURE_CLIENT_ID, AZURE_TENANT_ID"
                " and AZURE_CLIENT_SECRET, or the machine's managed identity."
            ) from error
        # The client says the same of a missing identity and of one that does not answer. Some registries let anybody
        # read.
        _logger.warning(
            "This machine has no Azure identity for the registry %s: %s. Log in with 'az login', set AZURE_CLIENT_ID,"
            " AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or name a block under 'registries' in the config.",
            *(host, clause(error.message.partition("\n")[0])),
        )
        _logger.debug("%s", error.message)
        return None


async def _exchange_azure_token(host: str, token: str) -> Credentials:
    """Exchange Azure's own token for one that a registry takes as a password."""
    form = {"grant_type": "access_token", "service": host, "access_token": token}
    try:
        verify = await anyio.to_thread.run_sync(httpx.create_ssl_context)
        async with httpx.AsyncClient(timeout=_AZURE_SECONDS, verify=verify) as http:
            answer = await http.post(f"https://{host}/oauth2/exchange", data=form)
        if answer.status_code in (401, 403):
            raise RegistryError(
                f"The registry {host!r} does not take this machine's Azure identity (HTTP {answer.status_code}). It"
                " needs the role AcrPull, and AcrPush to push."
            )
        answer.raise_for_status()
        return Credentials(_AZURE_USER, str(answer.json()["refresh_token"]))
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise RegistryError(
            f"The registry {host!r} gives no credentials for this machine's Azure identity"
            f" ({clause(error) or type(error).__name__}). Look at its address, and try later."
        ) from error


class Cloud(NamedTuple):
    """One cloud's registries.

    Attributes:
        title: the name shown to people.
        hosts: pattern of the registries' addresses.
        extra: extra of prefect-launch that installs the cloud's client.
        client: package of the client.
        get_credentials: gets credentials for one of the registries.
    """

    title: str
    hosts: re.Pattern[str]
    extra: str
    client: str
    get_credentials: Callable[[str, Clouds], Awaitable[Credentials | None]]

    async def credentials_for(self, host: str, clouds: Clouds) -> Credentials | None:
        """Return credentials for one of the registries; None when this machine is nobody in the cloud.

        Args:
            host: of the registry.
            clouds: who the agent is.

        Raises:
            RegistryError: when the cloud, or the registry, refuses to give them.
        """
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                return await self.get_credentials(host, clouds)
        except NoIdentityError:
            return None
        except TimeoutError:
            raise RegistryError(
                f"There are no credentials for the registry {host!r}: the cloud has not answered within"
                f" {_ANSWER_SECONDS:g} s. Look at the network, and at the proxy of this machine."
            ) from None
        except LaunchError as error:
            raise RegistryError(f"There are no credentials for the registry {host!r}. {error}") from error

    @property
    def is_installed(self) -> bool:
        """Whether the cloud's client is installed."""
        try:
            return importlib.util.find_spec(self.client) is not None
        except ModuleNotFoundError:  # Of the package above it.
            return False


CLOUDS: Final = (
    Cloud("Amazon ECR", _ECR, "ecr", "aiobotocore", ecr_credentials),
    Cloud("Google Artifact Registry", _GAR, "gar", "google.auth", gar_credentials),
    Cloud("Azure Container Registry", _ACR, "acr", "azure.identity", acr_credentials),
)


def cloud_of(host: str) -> Cloud | None:
    """Return the cloud that a registry belongs to."""
    return next((cloud for cloud in CLOUDS if cloud.hosts.match(host)), None)
