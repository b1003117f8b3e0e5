"""The server of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


def connected(*, verbose: bool = False) -> Api:
    """Return the server that Prefect's settings name, with Prefect's own log lines kept quiet unless asked for."""
    from prefect_launch.cli.logs import warnings_only
    from prefect_launch.client.api import default_api

    warnings_only(verbose)
    return default_api()
