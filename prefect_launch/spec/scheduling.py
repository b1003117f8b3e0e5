"""Scheduling options of an item: its priority, and its retry policy (which causes, how often, with what backoff).

By default work that was lost or preempted is retried; errors of the author or the submitter are not.
`prefect_launch.agent.item.finish` applies the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefect_launch.core.validation import first_error
from prefect_launch.errors import SpecError, unknown_name

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
    def of_work_queue(cls, name: str | None) -> Priority:
        """Return the priority of the items in a work queue; a work queue of another name has the default one."""
        return next((priority for priority in cls if priority.work_queue == name), cls.MEDIUM)

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


#: The longest delay before an attempt: a backoff must not delay an item for days.
MAX_DELAY_SECONDS: Final = 3600.0
_MAX_RETRIES: Final = 100


class Cause(str, Enum):
    """Why a run ended without success, for the retry policy."""

    #: The agent, its machine, or what ran on it, is gone.
    LOST = "lost"
    #: The resource took the machine away.
    PREEMPTED = "preempted"
    #: Any fault of the machine or a service: a failed pull, a broken engine. It includes
    #: `lost`.
    CRASHED = "crashed"
    #: Out of memory: the kernel ended it.
    OOM = "oom"
    #: The job itself ended with an exit code other than 0.
    FAILED = "failed"
    #: It reached its time limit.
    TIMEOUT = "timeout"


class Retries(BaseModel):
    """How an item is retried.

    Written as a mapping; a whole number alone is `max`, and 0 turns retries off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max: int = Field(default=5, ge=0, le=_MAX_RETRIES, description="How often it is retried, at most.")
    on: tuple[Cause, ...] = Field(default=(Cause.LOST, Cause.PREEMPTED), description="The causes that are retried.")
    delay: float = Field(default=10.0, ge=0, le=MAX_DELAY_SECONDS, description="Delay before the first retry, s.")
    backoff: float = Field(default=2.0, ge=1, le=10, description="Factor of each further delay.")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if isinstance(data, int) and not isinstance(data, bool):
            return {"max": data}
        if isinstance(data, Mapping):
            # YAML reads a bare `on` as the word for true.
            data = {"on" if str(key).lower() == "true" else key: value for key, value in data.items()}
            for key in data:
                if key not in cls.model_fields:
                    raise unknown_name("retry option", key, cls.model_fields)
        return data

    @field_validator("on", mode="before")
    @classmethod
    def _validate_causes(cls, value: Any) -> Any:
        causes = [value] if isinstance(value, str) else value
        if isinstance(causes, (list, tuple)):
            known = [cause.value for cause in Cause]
            for cause in causes:
                if cause not in known:
                    raise unknown_name("cause of a retry", cause, known)
        return causes

    def covers(self, cause: Cause | None) -> bool:
        """Whether an item is retried after this cause; `None` is never retried."""
        return cause is not None and (cause in self.on or (cause is Cause.LOST and Cause.CRASHED in self.on))

    def delay_seconds(self, done: int) -> float:
        """Return the delay before the next attempt after so many retries, in seconds."""
        return min(self.delay * self.backoff ** min(done, _MAX_RETRIES), MAX_DELAY_SECONDS)


#: Policy when neither the item nor its job has one.
DEFAULT_RETRIES: Final = Retries()


#: Retry options in a deployment's form.
RETRIES_FORM: Final[dict[str, Any]] = {
    "title": "Retries",
    "type": "object",
    "description": "When the run is retried. Empty: as the job says, else up to 5 times when it was lost.",
    "properties": {
        "max": {"title": "At most", "type": "integer", "minimum": 0, "maximum": _MAX_RETRIES},
        "on": {
            "title": "After",
            "type": "array",
            "items": {"type": "string", "enum": [cause.value for cause in Cause]},
            "uniqueItems": True,
        },
        "delay": {"title": "Pause before the first, s", "type": "number", "minimum": 0, "maximum": MAX_DELAY_SECONDS},
        "backoff": {"title": "Each pause longer by", "type": "number", "minimum": 1, "maximum": 10},
    },
    "additionalProperties": False,
}


def parse_retries(value: Any, what: str = "retries") -> Retries:
    """Make a retry rule from plain data.

    Raises:
        SpecError: for a value of the wrong type or out of its range.
        NotFoundError: for an unknown option or cause; names the nearest right one.
    """
    try:
        return Retries.model_validate(value)
    except ValidationError as error:
        first = first_error(error)
        where = "".join(f".{part}" for part in first["loc"])
        raise SpecError(
            f"Invalid {what}{where} {first['input']!r}: {first['msg']}. Give a whole number from 0 to {_MAX_RETRIES},"
            ' or a mapping such as {"max": 3, "on": ["failed", "oom"], "delay": 30, "backoff": 2}.'
        ) from None
