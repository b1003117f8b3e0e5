"""Changes in the code folder of a run that are kept nowhere: how many, their first names, and what to do."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict

from prefect_launch.core.output_limits import shown_name
from prefect_launch.core.units import counted

_NAMED: Final = 20


class CodeChanges(BaseModel):
    """Files that a job has written into its code folder, and that are not kept.

    Attributes:
        count: how many.
        named: the first of them.
    """

    model_config = ConfigDict(frozen=True)

    count: int = 0
    named: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> CodeChanges:
        """Count names, however many, and take the first by their order."""
        count, first = 0, list[str]()
        for name in names:
            count += 1
            insort(first, name)
            del first[_NAMED:]
        return cls(count=count, named=tuple(map(shown_name, first)))

    def __bool__(self) -> bool:
        return self.count > 0

    def describe(self) -> str:
        """Tell of them, and how they are kept, for the run's log."""
        more = f" and {self.count - len(self.named):,} more" if self.count > len(self.named) else ""
        top, slash, _ = self.named[0].partition("/")
        pattern = f"{top}/**" if slash else top
        return (
            f"{self.summary()}: {', '.join(self.named)}{more}. Write to $LAUNCH_OUTPUT_DIR, or create the job with"
            f" --keep '{pattern}'."
        )

    def summary(self) -> str:
        """Tell how many they are."""
        return f"{counted(self.count, 'file')} changed in the code folder {'is' if self.count == 1 else 'are'} not kept"
