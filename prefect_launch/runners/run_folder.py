"""What stands in and beside the folder of an attempt, for all who share an agent's home.

The newest claim of the item stands beside its attempts' folders. It is written when an attempt is planned, before
anything of it is made. Whoever made an attempt earlier, and comes late to start it (it was cut off, and taken for
lost), finds that the item was claimed again, and starts nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: A run's plan, in its folder.
PLAN_FILE: Final = "plan.json"
#: What a job of an earlier claim gets between TERM and KILL, as `docker stop` gives it.
TAKEOVER_SECONDS: Final = 10.0
#: The newest claim of the item, beside the folders of its attempts. The supervisor, standard library alone, has a copy.
CLAIM_FILE: Final = "claim"
#: How much of a claim's token tells the folders of one attempt apart.
CLAIM_CHARS: Final = 8


def note_claim(run_dir: Path, claim: str) -> None:
    """Write down the claim that an attempt is planned under, whole or not at all."""
    part = run_dir / f"claim.{os.getpid()}.part"
    part.write_text(claim, encoding="utf-8")
    part.replace(run_dir.parent / CLAIM_FILE)
