"""Loading of a program's modules with the garbage collector paused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Pause the garbage collector while modules are loaded, and leave what they made out of its later rounds.

    Prefect and its models make a million objects that live as long as the process. To look through them again and again
    while they are made takes a fifth of the CPU time of the import.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
