"""When an item whose run ended without success goes back into its queue: by the cause of the end, so often, so late.

A frozen value, in an item's spec or in its job. By default work that was lost or preempted comes back; what its author
or submitter got wrong does not. Nothing is moved here: `prefect_launch.agent.item.finish` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefect_launch.core.validation import first_error
from prefect_launch.errors import SpecError, unknown_name

#: The longest pause before an attempt: a backoff must not put an item off for days.
MAX_DELAY_SECONDS: Final = 3600.0
_MAX_RETRIES: Final = 100


class Cause(str, Enum):
    """Why a run ended without success, as far as a retry is concerned."""

    #: The agent, its machine, or what ran on it, is gone.
    LOST = "lost"
    #: The resource took the machine away.
    PREEMPTED = "preempted"
    #: Any fault of the machine or a service: a pull that failed, an engine that broke. Whoever names it means `lost`
    #: too.
    CRASHED = "crashed"
    #: The kernel ended it for want of memory.
    OOM = "oom"
    #: The job itself ended with another exit code than 0.
    FAILED = "failed"
    #: It took longer than it was allowed to.
    TIMEOUT = "timeout"


class Retries(BaseModel):
    """How an item is retried.

    Written as a mapping; a whole number alone is `max`, and 0 turns retries off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max: int = Field(default=5, ge=0, le=_MAX_RETRIES, description="How often it comes back, at most.")
    on: tuple[Cause, ...] = Field(default=(Cause.LOST, Cause.PREEMPTED), description="The causes that bring it back.")
    delay: float = Field(default=10.0, ge=0, le=MAX_DELAY_SECONDS, description="Pause before the first retry, s.")
    backoff: float = Field(default=2.0, ge=1, le=10, description="How many times longer each further pause is.")

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
    def _names_are_causes(cls, value: Any) -> Any:
        causes = [value] if isinstance(value, str) else value
        if isinstance(causes, (list, tuple)):
            known = [cause.value for cause in Cause]
            for cause in causes:
                if cause not in known:
                    raise unknown_name("cause of a retry", cause, known)
        return causes

    def covers(self, cause: Cause | None) -> bool:
        """Whether an end of this cause brings an item back; `None` is what no retry can mend."""
        return cause is not None and (cause in self.on or (cause is Cause.LOST and Cause.CRASHED in self.on))

    def delay_seconds(self, done: int) -> float:
        """Return the pause before the next attempt, in seconds.

        Args:
            done: how often it came back already.
        """
        return min(self.delay * self.backoff ** min(done, _MAX_RETRIES), MAX_DELAY_SECONDS)


#: What applies when neither the item nor its job says anything.
DEFAULT_RETRIES: Final = Retries()


#: The group of a deployment's form.
RETRIES_FORM: Final[dict[str, Any]] = {
    "title": "Retries",
    "type": "object",
    "description": "When it is run again. Empty: as the job says, else up to 5 times when it was lost.",
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
    """Make a retry rule of plain data.

    Args:
        value: a mapping, or a whole number, which is `max`.
        what: where it was given, for the message.

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
