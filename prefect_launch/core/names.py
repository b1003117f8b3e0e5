"""Name validation for jobs, queues, aliases, entities, projects and agents.

One rule for all of them: a name is safe in a path, a URL, a tag, a container name and an environment variable's value.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from typing import Final, Protocol

from prefect_launch.errors import InvalidNameError

#: The reference's limit for artifact names.
MAX_NAME_CHARS = 128
#: The reference's limit for queue names.
MAX_QUEUE_NAME_CHARS = 64
#: The entity, or the project, by default.
UNNAMED = "default"
#: The variables that name the entity, and the project; the first that is set counts.
ENTITY_VARIABLES = ("LAUNCH_ENTITY", "WANDB_ENTITY")
PROJECT_VARIABLES = ("LAUNCH_PROJECT", "WANDB_PROJECT")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")


def check_name(kind: str, value: object, *, max_chars: int = MAX_NAME_CHARS) -> str:
    """Return ``value`` when it is a good name.

    Args:
        kind: what the name is of, for the message, such as ``"job"``.
        value: the name.
        max_chars: the longest that is allowed, in characters.

    Raises:
        InvalidNameError: when it is not text, empty, too long, holds ``..`` or a character other than letters, digits,
            ``_``, ``.`` and ``-``, or starts with ``.`` or ``-``. The message suggests a safe one.
    """
    if not isinstance(value, str):
        raise InvalidNameError(f"The {kind} name must be text, not {type(value).__name__} ({value!r}).")
    if not value:
        raise InvalidNameError(f"The {kind} name is empty. Give a name of 1 to {max_chars} characters.")
    if len(value) > max_chars:
        raise InvalidNameError(
            f"The {kind} name {value[:24] + '…'!r} has {len(value)} characters; at most {max_chars} are allowed."
        )
    if ".." in value or not _NAME.match(value):
        raise InvalidNameError(
            f"Invalid {kind} name {value!r}: use letters, digits, '_', '.' and '-', no '..' and no '.' or '-' in front."
            f" For example {safe_name(value, fallback='my-' + kind.replace(' ', '-'))!r}."
        )
    return value


def safe_name(value: str, *, fallback: str = "job") -> str:
    """Return the nearest good name to ``value``: ``"my job/1"`` gives ``"my-job-1"``."""
    ascii_only = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    dashed = re.sub(r"[^A-Za-z0-9_.\-]+", "-", ascii_only)
    dashed = re.sub(r"\.{2,}", ".", dashed).strip(".-")[:MAX_NAME_CHARS].rstrip(".-")
    return dashed or fallback


# --- short ids of items ---
#
# The ids that Prefect's schedules give begin with the time (UUID version 7): those made at once share their first
# characters. The last ones are random in any id.

#: As many as tell a few thousand items apart for certain enough; more are shown where they do not.
SHORT_CHARS: Final = 8


def short_id(item_id: object) -> str:
    """Return the last 8 characters of an item's id."""
    return str(item_id)[-SHORT_CHARS:]


class Named(Protocol):
    """What has a name and an id: an item, a handle on one, a sweep."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def id(self) -> object:
        """Its id."""


def name_and_id(named: Named) -> str:
    """Return a name with the end of its id, as messages name an item: `brave-fox (1a2b3c4d)`."""
    return f"{named.name} ({short_id(named.id)})"


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
