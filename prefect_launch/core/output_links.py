"""Symbolic links among a run's outputs: never kept, and no loss where they lead to something that is kept.

W&B leaves such in each run: `latest-run`, `debug.log`. They are followed by their text alone, within the folder, so
that no link leads anybody to another file of this machine.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from prefect_launch.core.output_limits import Selection

#: As many links on the way to a file as Linux follows.
_MOST_HOPS: Final = 40
#: As many links as are looked at; a job may leave millions.
_MOST: Final = 10_000
#: The log of W&B's service, in its cache, to which it leaves a link in each run.
_WANDB_SERVICE_LOG: Final = re.compile(r"/wandb/logs/core-debug-[^/]+\.log\Z")


class OutputLinks:
    """The links of one outputs folder, collected while it is gone through.

    Args:
        roots: absolute paths of the folder, as its job and as this machine know it.
    """

    def __init__(self, roots: Collection[str]) -> None:
        self._roots = tuple(root.rstrip("/") for root in roots)
        self._targets: dict[str, str] = {}
        self._unseen = 0

    def add(self, name: str, target: str) -> None:
        """Remember a link by its path in the folder, and what it points to."""
        if len(self._targets) < _MOST:
            self._targets[name] = target
        else:
            self._unseen += 1

    def leave_out(self, kept: Path, selection: Selection) -> None:
        """Note the links that are a loss as left out.

        Args:
            kept: a folder that holds what is kept, by its path in the outputs folder.
            selection: takes the notes.
        """
        for name, target in self._targets.items():
            end = self._end_of(name)
            if end is None and not _WANDB_SERVICE_LOG.search(target):
                selection.leave_out(name, "it is a link that leads out of the outputs folder")
            elif end is not None and not os.path.lexists(kept / end):
                selection.leave_out(name, "it is a link to what is not kept")
        if self._unseen:
            selection.leave_out(f"{self._unseen:,} further links", "no link is kept")

    def _end_of(self, name: str) -> str | None:
        """Return the path in the folder that a link leads to, through other links; None when it leads out of it."""
        path = name
        for _ in range(_MOST_HOPS):
            link = next((one for one in _from_the_top(path) if one in self._targets), None)
            if link is None:
                return path
            target, rest = self._targets[link], path[len(link) :]
            if posixpath.isabs(target):
                root = next((root for root in self._roots if f"{target}/".startswith(f"{root}/")), None)
                if root is None:
                    return None
                path = posixpath.normpath(f".{target[len(root) :]}{rest}")
            else:
                path = posixpath.normpath(f"{posixpath.dirname(link) or '.'}/{target}{rest}")
            if path.startswith(("../", "/")) or path == "..":
                return None
        return name  # A circle: nothing of that name is kept.


def _from_the_top(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
