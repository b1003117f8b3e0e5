"""Environment variables that every job has unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Who sets one of these means a W&B server.
_ONLINE: Final = frozenset({"WANDB_API_KEY", "WANDB_BASE_URL"})


def with_default_variables(given: Mapping[str, str], output_dir: str) -> dict[str, str]:
    """Add the variables that a job has unless its queue, its submitter or the plan of its run says otherwise.

    Args:
        given: what they say.
        output_dir: where the job leaves its outputs, as the job sees it.
    """
    wandb = {"WANDB_DIR": output_dir}
    if not _ONLINE & given.keys():
        wandb["WANDB_MODE"] = "offline"
    # A log that is to be followed live must not wait in a buffer.
    return {"PYTHONUNBUFFERED": "1", **wandb, **given}
