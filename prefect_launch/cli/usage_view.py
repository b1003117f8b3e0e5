"""Views of what runs use, for people: as columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_launch.cli.output import Column


def usage_cells(
    usages: Sequence[Mapping[str, float]], *, of_asked: bool = True
) -> tuple[list[Column], list[list[object]]]:
    """Return the columns of a table for what runs use, those that some of them fill, and a row of cells for each.

    Args:
        usages: a sample of each run, as `prefect_launch.core.usage` names its values; empty: unknown.
        of_asked: whether it is said of how much that was asked for.
    """
    from prefect_launch.core import usage as names
    from prefect_launch.core.units import format_size

    def cells(usage: Mapping[str, float]) -> dict[str, str]:
        found = {}
        cpus, memory = (usage.get(name) if of_asked else None for name in (names.CPUS_ASKED, names.MEMORY_ASKED))
        if names.CPUS in usage:
            found["CPUS"] = f"{usage[names.CPUS]:.2g}" + (f" of {asked:g}" if (asked := cpus) else "")
        if names.MEMORY in usage:
            found["MEMORY"] = names.memory_in_words(usage[names.MEMORY], memory)
        if names.GPU in usage:
            found["GPU"] = f"{usage[names.GPU]:.0f} %"
            found["GPU MEMORY"] = format_size(int(usage.get(names.GPU_MEMORY, 0)))
        return found

    rows = [cells(usage) for usage in usages]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    shown = [title for title in ("CPUS", "MEMORY", "GPU", "GPU MEMORY") if title in titles]
    return [Column(title, right=True) for title in shown], [[row.get(title, "") for title in shown] for row in rows]
