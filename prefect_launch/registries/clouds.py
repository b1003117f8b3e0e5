"""The one table of registries that belong to a cloud: whose they are, and what gets credentials for them here.

A cloud's file needs that cloud's own client, which is an extra of this package; it is imported when a registry of that
cloud is first used. The identity is this machine's own in that cloud, found as the client finds it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from prefect_launch.registries.base import Credentials

Getter = Callable[[str], Awaitable["Credentials | None"]]


class Cloud(NamedTuple):
    """One cloud's registries.

    Attributes:
        title: as people call them.
        hosts: their addresses.
        module: what gets credentials for them, in this package.
        extra: of prefect-launch, that brings the cloud's client.
    """

    title: str
    hosts: re.Pattern[str]
    module: str
    extra: str

    def getter(self) -> Getter | None:
        """Return what gets credentials for such a registry; None when the cloud's client is not installed."""
        try:
            module = importlib.import_module(f"{__package__}.{self.module}")
        except ModuleNotFoundError:
            return None
        getter: Getter = module.credentials_of
        return getter


CLOUDS: Final = (
    Cloud(
        "Amazon ECR",
        re.compile(r"[0-9]{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?\Z"),
        "ecr",
        "ecr",
    ),
    Cloud("Google Artifact Registry", re.compile(r"([a-z0-9-]+-docker\.pkg\.dev|([a-z]+\.)?gcr\.io)\Z"), "gar", "gar"),
    Cloud("Azure Container Registry", re.compile(r"[a-z0-9-]+\.azurecr\.(io|cn|us)\Z"), "acr", "acr"),
)


def cloud_of(host: str) -> Cloud | None:
    """Return the cloud that a registry belongs to."""
    return next((cloud for cloud in CLOUDS if cloud.hosts.match(host)), None)
