"""Cloud registries, and credentials for them by this machine's own identity in that cloud.

Each cloud needs its own client, which is an extra of this package (`prefect-launch[ecr]`, `[gar]`, `[acr]`). The client
is imported when a registry of that cloud is first used, and finds the identity in its usual places.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import anyio
import httpx
from prefect.logging import get_logger

from prefect_launch.errors import RegistryError, clause
from prefect_launch.registries.base import Credentials

_logger = get_logger("launch.registries")

_GOOGLE_USER: Final = "oauth2accesstoken"
_GOOGLE_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
#: The user that Azure's registries expect with a token.
_AZURE_USER: Final = "00000000-0000-0000-0000-000000000000"
_AZURE_SCOPE: Final = "https://management.azure.com/.default"
_AZURE_SECONDS: Final = 15.0
_ECR: Final = re.compile(r"[0-9]{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?\Z")
_GAR: Final = re.compile(r"([a-z0-9-]+-docker\.pkg\.dev|([a-z]+\.)?gcr\.io)\Z")
_ACR: Final = re.compile(r"[a-z0-9-]+\.azurecr\.(io|cn|us)\Z")


def ecr_credentials(host: str) -> Credentials | None:
    """Return credentials for an Amazon ECR registry, good for 12 hours; None when this machine has no AWS identity.

    Raises:
        RegistryError: when AWS refuses to give them.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    account, _, _, region = host.split(".")[:4]
    try:
        client = boto3.client("ecr", region_name=region)
        answer = client.get_authorization_token(registryIds=[account])
    except NoCredentialsError:
        return None
    except (BotoCoreError, ClientError) as error:
        raise RegistryError(
            f"AWS gives no credentials for the registry {host!r}: {clause(error)}. The identity of this machine needs"
            " ecr:GetAuthorizationToken."
        ) from error
    user, _, password = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode().partition(":")
    return Credentials(user, password)


def gar_credentials(host: str) -> Credentials | None:
    """Return credentials for Google Artifact Registry, good for about an hour; None without a Google identity here.

    Raises:
        RegistryError: when Google refuses to give them.
    """
    import google.auth
    import google.auth.transport.requests
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    try:
        identity: Any = google.auth.default(scopes=[_GOOGLE_SCOPE])[0]
        request: Any = google.auth.transport.requests.Request
        identity.refresh(request())
    except DefaultCredentialsError:
        return None
    except GoogleAuthError as error:
        raise RegistryError(
            f"Google gives no credentials for the registry {host!r}: {clause(error)}. Run 'gcloud auth"
            " application-default login', or set GOOGLE_APPLICATION_CREDENTIALS."
        ) from error
    return Credentials(_GOOGLE_USER, str(identity.token))


def acr_credentials(host: str) -> Credentials | None:
    """Return credentials for an Azure registry, good for about three hours; None without an Azure identity here.

    Raises:
        RegistryError: when the registry does not take that identity.
    """
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import DefaultAzureCredential

    try:
        token = str(DefaultAzureCredential().get_token(_AZURE_SCOPE).token)
    except ClientAuthenticationError as error:
        # The client says the same of a missing identity and a wrong one. Some registries let anybody read.
        _logger.warning("This machine has no Azure identity for the registry %s: %s", host, error.message)
        return None
    return exchange_azure_token(host, token)


def exchange_azure_token(host: str, token: str) -> Credentials:
    """Exchange Azure's own token for one that a registry takes as a password.

    Raises:
        RegistryError: when the registry does not take it.
    """
    form = {"grant_type": "access_token", "service": host, "access_token": token}
    try:
        answer = httpx.post(f"https://{host}/oauth2/exchange", data=form, timeout=_AZURE_SECONDS)
        answer.raise_for_status()
        return Credentials(_AZURE_USER, str(answer.json()["refresh_token"]))
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise RegistryError(
            f"The registry {host!r} does not take this machine's Azure identity ({error}). It needs the role AcrPull,"
            " and AcrPush to push."
        ) from error


class Cloud(NamedTuple):
    """One cloud's registries.

    Attributes:
        title: the name shown to people.
        hosts: pattern of the registries' addresses.
        extra: extra of prefect-launch that installs the cloud's client.
        client: package of the client.
        get_credentials: gets credentials for one of the registries; blocks.
    """

    title: str
    hosts: re.Pattern[str]
    extra: str
    client: str
    get_credentials: Callable[[str], Credentials | None]

    async def credentials_for(self, host: str) -> Credentials | None:
        """Return credentials for one of the registries, by this machine's identity; None when it has none.

        Raises:
            RegistryError: when the cloud, or the registry, refuses to give them.
        """
        return await anyio.to_thread.run_sync(self.get_credentials, host, abandon_on_cancel=True)

    @property
    def is_installed(self) -> bool:
        """Whether the cloud's client is installed."""
        try:
            return importlib.util.find_spec(self.client) is not None
        except ModuleNotFoundError:  # Of the package above it.
            return False


CLOUDS: Final = (
    Cloud("Amazon ECR", _ECR, "ecr", "boto3", ecr_credentials),
    Cloud("Google Artifact Registry", _GAR, "gar", "google.auth", gar_credentials),
    Cloud("Azure Container Registry", _ACR, "acr", "azure.identity", acr_credentials),
)


def cloud_of(host: str) -> Cloud | None:
    """Return the cloud that a registry belongs to."""
    return next((cloud for cloud in CLOUDS if cloud.hosts.match(host)), None)
