"""The four priorities of an item, each a work queue of the pool."""

from __future__ import annotations

from enum import IntEnum

from prefect_launch.errors import SpecError

_ALIASES = {"default": "medium"}


class Priority(IntEnum):
    """How urgent an item is: 1 is the highest. Within one priority, first in is first out."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4

    @property
    def work_queue(self) -> str:
        """The name of the pool's work queue that holds items of this priority."""
        return "default" if self is Priority.MEDIUM else self.name.lower()

    @classmethod
    def parse(cls, value: object) -> Priority:
        """Return the priority that ``value`` names: a number 1 to 4, or its word.

        Raises:
            SpecError: for anything else.
        """
        if isinstance(value, str):
            word = value.strip().lower()
            word = _ALIASES.get(word, word)
            if word.upper() in cls.__members__:
                return cls[word.upper()]
            if word.isdigit() and int(word) in cls._value2member_map_:
                return cls(int(word))
        elif isinstance(value, int) and not isinstance(value, bool) and value in cls._value2member_map_:
            return cls(value)
        raise SpecError(
            f"Invalid priority {value!r}: use 1 (critical), 2 (high), 3 (medium, the default) or 4 (low), or the word."
        )
