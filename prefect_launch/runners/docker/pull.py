"""Pulling an image with the Docker Engine, and what went wrong with it in words."""

from __future__ import annotations

import re
from typing import Any, Final

import docker.auth
import docker.errors
import docker.utils

from prefect_launch.errors import ImagePullError, clause
from prefect_launch.registries.base import TOKEN_USER, Credentials

#: The engine's words for a registry that wants to know who asks, or does not let this user have the image.
REFUSED: Final = re.compile(
    r"unauthorized|authentication required|no basic auth|denied|insufficient[_ ]scope|forbidden|incorrect username",
    re.IGNORECASE,
)


def engine_auth(credentials: Credentials | None) -> dict[str, str]:
    """Return credentials as the Engine API takes them; empty ones are nobody's."""
    if credentials is None:
        return {}
    user, password = credentials
    return {"identitytoken": password} if user == TOKEN_USER else {"username": user, "password": password}


def pull_image(client: Any, name: str, platform: str | None, credentials: Credentials | None) -> None:
    """Pull an image.

    Args:
        client: the `docker` package's low-level client.
        name: of the image.
        platform: such as linux/amd64; None: the engine's own.
        credentials: who to be at its registry; None: as this machine's Docker is logged in.

    Raises:
        ImagePullError: when the registry does not give it.
    """
    repository, tag = docker.utils.parse_repository_tag(name)
    auth = engine_auth(credentials) or None
    try:
        for line in client.pull(
            repository, tag=tag or "latest", stream=True, decode=True, platform=platform, auth_config=auth
        ):
            if "error" in line:
                raise _failed(name, line["error"], credentials)
    except docker.errors.APIError as error:
        raise _failed(name, error.explanation or str(error), credentials) from error


def _failed(name: str, reason: str, credentials: Credentials | None) -> ImagePullError:
    if credentials is not None and REFUSED.search(reason):
        step = (
            "Its registry refuses the user and password that are configured for it, or does not let that user have it."
        )
    else:
        step = (
            "Check its name, that the registry can be reached from here, and that its credentials are known: a block"
            " under 'registries' in the agent's config, or 'docker login' on this machine."
        )
    return ImagePullError(f"The image {name!r} is not on this machine and cannot be pulled: {clause(reason)}. {step}")
