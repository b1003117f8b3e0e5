"""What pydantic says of data that it refuses: the first thing that is wrong, for a message that helps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_launch.errors import LaunchError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


def first_complaint(error: ValidationError) -> ErrorDetails:
    """Return what is wrong first.

    Raises:
        LaunchError: in its place, when a validator of ours has said it in words already.
    """
    first = error.errors()[0]
    said = first.get("ctx", {}).get("error")
    if isinstance(said, LaunchError):
        raise said from None
    return first
