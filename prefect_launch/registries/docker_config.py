"""Credentials that `docker login` has left on this machine: `~/.docker/config.json` and the helpers that it names.

The `docker` package reads them as Docker does (`DOCKER_CONFIG`, `auths`, `credHelpers`, `credsStore`). Nothing is
written.
"""

from __future__ import annotations

from typing import Any, Final

import anyio
import docker.auth
import docker.credentials
import docker.errors

from prefect_launch.errors import AgentConfigError
from prefect_launch.registries.base import TOKEN_USER, Credentials

#: A helper that waits for somebody to type something waits for ever.
_HELPER_SECONDS: Final = 20.0


async def read_docker_config(host: str) -> Credentials | None:
    """Return the credentials that this machine's Docker is logged in to a registry with; None when it is not.

    Raises:
        AgentConfigError: when the file is broken, or a helper is missing, fails or hangs.
    """
    try:
        with anyio.fail_after(_HELPER_SECONDS):
            found = await anyio.to_thread.run_sync(_resolve, host, abandon_on_cancel=True)
    except TimeoutError:
        raise AgentConfigError(
            f"The credential helper of this machine's Docker gave no answer for {host!r} within {_HELPER_SECONDS:g} s."
            f" Try 'docker login {host}', or name a block under 'registries' in the config."
        ) from None
    except (docker.errors.DockerException, docker.credentials.StoreError, ValueError) as error:
        raise AgentConfigError(
            f"This machine's Docker has no readable credentials for {host!r} ({error}). Correct ~/.docker/config.json,"
            f" or run 'docker login {host}'."
        ) from error
    return _credentials(found)


def _resolve(host: str) -> dict[str, Any]:
    return docker.auth.resolve_authconfig(docker.auth.load_config(), host) or {}


def _credentials(found: dict[str, Any]) -> Credentials | None:
    values = {key.lower(): value for key, value in found.items()}
    if values.get("identitytoken"):
        return Credentials(TOKEN_USER, values["identitytoken"])
    if values.get("username") and values.get("password"):
        return Credentials(values["username"], values["password"])
    return None
