"""File patterns, as `.gitignore` has them: `*.pt` at any depth, `checkpoints/**`, `/model.pt` at the top only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pathspec import GitIgnoreSpec

from prefect_launch.errors import SpecError


class FilePatterns:
    """Patterns of relative POSIX paths.

    Args:
        patterns: what is meant. A whole path is one, too, whatever characters are in it.
        option: where they were given, for the message.

    Raises:
        SpecError: when one is no pattern.
    """

    def __init__(self, patterns: Sequence[str], option: str) -> None:
        self._whole = frozenset(patterns)
        for pattern in patterns:
            try:
                found = [each.include for each in GitIgnoreSpec.from_lines([pattern]).patterns]
            except ValueError as error:
                raise SpecError(f"{option} {pattern!r} is no pattern of files: {error}.") from None
            if not any(found):
                raise SpecError(
                    f"{option} {pattern!r} matches no file. Name a file, or a pattern as .gitignore has them, such as"
                    " 'checkpoints/**' or '*.pt'."
                )
        self._spec = GitIgnoreSpec.from_lines(patterns)

    def select(self, paths: Iterable[str]) -> list[str]:
        """Return those of the paths that are meant."""
        return [path for path in paths if path in self._whole or self._spec.match_file(path)]
