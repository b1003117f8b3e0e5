"""Short forms of an item's id: its last characters.

The ids that Prefect's schedules give begin with the time (UUID version 7): those made at once share their first
characters. The last ones are random in any id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

#: As many as tell a few thousand items apart for certain enough; more are shown where they do not.
SHORT_CHARS: Final = 8


def short_id(item_id: object) -> str:
    """Return the last 8 characters of an item's id."""
    return str(item_id)[-SHORT_CHARS:]


def short_ids(item_ids: Collection[str]) -> dict[str, str]:
    """Return, for each of these ids, the shortest ending of 8 characters or more that no other one of them has."""
    short: dict[str, str] = {}
    length, left = SHORT_CHARS, set(item_ids)
    while left:
        same = Counter(item_id[-length:] for item_id in left)
        alone = {item_id for item_id in left if same[item_id[-length:]] == 1}
        short.update((item_id, item_id[-length:]) for item_id in alone)
        length, left = length + 1, left - alone
    return short
