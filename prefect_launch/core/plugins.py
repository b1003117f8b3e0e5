"""Plugins: classes by name, which installed packages bring as entry points of a group, this package among them.

A class's module is imported on first use.
"""

from __future__ import annotations

import importlib
from functools import cached_property
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from prefect_launch.errors import AgentConfigError, unknown_name

T = TypeVar("T")


class Plugins(Generic[T]):
    """The classes of one kind.

    Args:
        group: of the entry points.
        kind: what one of their names is, in the singular, such as "sampler"; for messages.
        base: that each class derives from.
    """

    def __init__(self, group: str, kind: str, base: type[T]) -> None:
        self._group = group
        self._kind = kind
        self._base = base

    @cached_property
    def _places(self) -> dict[str, str]:
        # Reading what is installed takes 5 ms, which every item would pay several times.
        return {point.name: point.value for point in entry_points(group=self._group)}

    def read_again(self) -> None:
        """Forget what was installed, so that the next call reads it again."""
        vars(self).pop("_places", None)

    @property
    def names(self) -> tuple[str, ...]:
        """The known names, sorted."""
        return tuple(sorted(self._places))

    def find(self, name: str) -> type[T]:
        """Return the class of a name.

        Raises:
            NotFoundError: when there is none of that name; names the nearest right one.
            AgentConfigError: when a third party's class cannot be imported, or is no class.
        """
        if name not in self._places:
            raise unknown_name(self._kind, name, self._places)
        place = self._places[name]
        module, _, attribute = place.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise AgentConfigError(
                f"The class {place!r} of the {self._kind} {name!r} cannot be imported ({error}). Install or repair the"
                " package that brings it."
            ) from error
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise AgentConfigError(
                f"{place!r} of the {self._kind} {name!r} is no class derived from {self._base.__name__}. Repair the"
                " package that brings it."
            )
        return found
