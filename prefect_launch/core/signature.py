"""Shared signatures: a function takes the arguments of another one, as a call, its async form and its dry run do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


def with_arguments_of(
    original: Callable[P, object],
) -> Callable[[Callable[[Mapping[str, Any]], R]], Callable[P, R]]:
    """Give a function of a mapping the arguments of another function, with their types and defaults."""
    try:
        # Evaluated here, in the module that the names are of: Prefect makes a flow's form of them.
        signature = inspect.signature(original, eval_str=True)
    except NameError:  # A name that is imported for type checkers alone.
        signature = inspect.signature(original)

    def give(function: Callable[[Mapping[str, Any]], R]) -> Callable[P, R]:
        returned = inspect.signature(function).return_annotation

        def arguments(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return bound.arguments

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(arguments(*args, **kwargs))

        @functools.wraps(function)
        async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:  # Prefect tells async functions by their kind.
            return await cast(Any, function)(arguments(*args, **kwargs))

        given: Any = awaited if inspect.iscoroutinefunction(function) else called
        given.__signature__ = signature.replace(return_annotation=returned)
        return cast(Callable[P, R], given)

    return give


def made_of_arguments(
    make: Callable[P, T],
) -> Callable[[Callable[[S, T], R]], Callable[Concatenate[S, P], R]]:
    """Give a method of one value the arguments that the value is made of."""
    signature = inspect.signature(make)

    def give(method: Callable[[S, T], R]) -> Callable[Concatenate[S, P], R]:
        of_method = inspect.signature(method)
        itself = next(iter(of_method.parameters.values()))

        @functools.wraps(method)
        def called(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{method.__name__}() {error}") from None
            return method(self, make(*args, **kwargs))

        called.__signature__ = of_method.replace(  # type: ignore[attr-defined]
            parameters=[itself, *signature.parameters.values()]
        )
        return called

    return give
