"""Settings of a machine's operator that the planning of runs needs."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from prefect_launch.core.output_limits import DEFAULT_OUTPUT_LIMITS, OutputLimits
from prefect_launch.runners.run_folder import CLAIM_CHARS
from prefect_launch.sources.git_settings import GitSettings


class WandbServer(BaseModel):
    """A W&B server that jobs may report to, when the agent's operator configured one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = None
    api_key: SecretStr | None = None


class Site(BaseModel):
    """What the machine's operator decides about the runs that are made on it."""

    model_config = ConfigDict(frozen=True)

    home: Path = Field(description="The folder of prefect-launch on this machine.")
    secure_mode: bool = False
    macros: dict[str, str] = Field(default_factory=dict)
    wandb: WandbServer = WandbServer()
    git: GitSettings = GitSettings()
    outputs: OutputLimits = DEFAULT_OUTPUT_LIMITS

    def run_dir(self, item_id: str, attempt: int, claim: str = "") -> Path:
        """Return the folder of one attempt at one item.

        The same attempt under another claim has a folder of its own: of two agents that share this home, one may have
        been taken for lost before it ran the item, and must find nothing of the other's in its hands.
        """
        return self.home / "runs" / item_id / (f"{attempt}-{claim[:CLAIM_CHARS]}" if claim else str(attempt))

    def run_dirs(self, item_id: str, attempt: int) -> list[Path]:
        """Return the folders that there are of one attempt, under whichever claims, the last planned first."""
        folder = self.home / "runs" / item_id
        found = [path for pattern in (str(attempt), f"{attempt}-*") for path in folder.glob(pattern)]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
