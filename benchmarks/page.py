"""Pages of the documentation with parts that benchmarks write, each between a mark and its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def replaced(page: str, name: str, part: str) -> str:
    """Return a page with another text between `<!-- NAME -->` and `<!-- /NAME -->`."""
    before, _, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n\n{part}\n{end}{after}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
