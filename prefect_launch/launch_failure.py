"""How the flow run of a `launch` that failed says why: its state's message is the error, with no words around it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

from prefect.states import Failed

from prefect_launch.errors import LaunchError

P = ParamSpec("P")
R = TypeVar("R")


def failing_with_its_error(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Let a flow's function end in a state that says what its `LaunchError` says; its caller gets the error itself."""

    @functools.wraps(function)
    async def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(*args, **kwargs)
        except LaunchError as error:
            # Prefect takes a returned state as the flow's end, and raises the error in it where the flow was called.
            return cast(R, Failed(message=str(error), data=error))

    return called
