"""Functions that take the arguments of another function: one signature for a call, its async twin and its dry run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def with_arguments_of(
    original: Callable[P, object],
) -> Callable[[Callable[[Mapping[str, Any]], R]], Callable[P, R]]:
    """Give a function of a mapping the arguments of another function, with their defaults.

    Args:
        original: whose arguments are taken over.
    """
    signature = inspect.signature(original)

    def give(function: Callable[[Mapping[str, Any]], R]) -> Callable[P, R]:
        returned = inspect.signature(function).return_annotation

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(bound.arguments)

        called.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return called

    return give
