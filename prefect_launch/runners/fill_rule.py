"""Rule of a place in a queue's options: how freely a submitter's value may be filled in there."""

from __future__ import annotations

from enum import Enum

#: The keys and indexes that lead to a place inside an option's value.
Keys = tuple["str | int", ...]


class FillRule(str, Enum):
    """How freely a template variable, or a macro of the submitter's choice, may have its value at a place.

    `ANY`: whatever it is. `PATH`: a path that does not lead out of its folder. `OWNER`: only what the queue's owner has
    named, by an enum or a pattern of the variable.
    """

    ANY = "any"
    PATH = "path"
    OWNER = "owner"
