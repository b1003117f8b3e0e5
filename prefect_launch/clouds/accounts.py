"""Accounts in the clouds: one of each cloud for a whole agent, made on first use."""

from __future__ import annotations

from functools import cached_property

from prefect_launch.clouds.aws import AwsAccount
from prefect_launch.clouds.gcp import GcpAccount
from prefect_launch.clouds.settings import CloudSettings


class Clouds:
    """Who an agent, or a direct `launch`, is in each cloud.

    Args:
        settings: the operator's; by default all is as the clouds' own clients find it on this machine.
    """

    def __init__(self, settings: CloudSettings | None = None) -> None:
        self.settings = settings or CloudSettings()

    @cached_property
    def aws(self) -> AwsAccount:
        """The account at AWS."""
        return AwsAccount(self.settings.aws)

    @cached_property
    def gcp(self) -> GcpAccount:
        """The account at Google Cloud."""
        return GcpAccount(self.settings.gcp)
