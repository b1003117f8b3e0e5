"""Credentials for Amazon ECR, by this machine's AWS identity. Needs boto3: `prefect-launch[ecr]`."""

from __future__ import annotations

import base64

import anyio
import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from prefect_launch.errors import RegistryError, clause
from prefect_launch.registries.base import Credentials


async def credentials_of(host: str) -> Credentials | None:
    """Return credentials for an ECR registry, good for 12 hours; None when this machine is nobody in AWS.

    Raises:
        RegistryError: when AWS refuses to give them.
    """
    return await anyio.to_thread.run_sync(_credentials_of, host, abandon_on_cancel=True)


def _credentials_of(host: str) -> Credentials | None:
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
