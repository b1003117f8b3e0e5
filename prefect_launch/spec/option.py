"""Options of the launch spec: how people set a field, besides in a launch config.

Each field declares its option once, with its type. The options of `add` and `run`, the form of a job's deployment,
the fields that secure mode allows, and the table in the documentation follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Option:
    """How people set one field of the launch spec.

    Attributes:
        flags: option flags of `add` and `run`; empty: the field has no flag.
        metavar: placeholder of its value in the help.
        form: JSON schema in the form of a job's deployment; `None`: not in the form.
        in_secure_mode: whether a submitter may set it on an agent in secure mode.
    """

    flags: tuple[str, ...] = ()
    metavar: str = ""
    form: Mapping[str, Any] | None = None
    in_secure_mode: bool = False


@dataclass(frozen=True)
class SpecField:
    """A field of the launch spec, or of one of its parts.

    Attributes:
        path: its dotted path, such as `overrides.args`.
        info: pydantic's description of the field.
        option: how people set it.
    """

    path: str
    info: FieldInfo
    option: Option

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def text(self) -> str:
        """Description of the field."""
        return self.info.description or ""


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[SpecField]:
    """Yield the fields of a launch spec and of its parts in order, each with its dotted path."""
    for name, info in model.model_fields.items():
        option = next((item for item in info.metadata if isinstance(item, Option)), None)
        part = info.annotation
        if option is None and isinstance(part, type) and issubclass(part, BaseModel):
            yield from fields_of(part, f"{prefix}{name}.")
        else:
            yield SpecField(f"{prefix}{name}", info, option or Option())


def placed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping of values that are given by dotted path: `git.version` is `version` in `git`."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parts, name = path.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[name] = value
    return nested
