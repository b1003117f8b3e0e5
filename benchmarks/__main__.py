"""The command `python -m benchmarks [NAME…] [--quick]`: measures what is named, or everything, and prints one table."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module

from benchmarks.figures import Figure, print_table
from benchmarks.place import Place, open_place

NAMES = (
    *("imports", "start", "dispatch", "throughput", "cost", "agents", "cancel", "restart", "memory", "enqueue"),
    *("builds", "sweep", "metrics", "usage", "depth", "agents-postgres", "costs", "limits", "clusters"),
)
#: What some consist of; each part can be measured by itself, as `clusters-slurm`.
PARTS = {"clusters": ("memory", "kubernetes", "slurm", "ray", "prefect"), "costs": ("sqlite", "postgres", "postgres-2")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is named, and print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure prefect-launch beside its floors."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"what to measure: {', '.join(NAMES)}; by default all; parts of some: {', '.join(_parts(PARTS))}",
    )
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that the benchmarks work")
    parser.add_argument(
        "--deepest", type=int, default=10_000, metavar="N", help="how many items wait at most in `depth`"
    )
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - {*NAMES, *_parts(PARTS)})
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    print(machine(), flush=True)
    figures: list[Figure] = []
    with open_place(quick=given.quick, deepest=given.deepest) as place:
        for name in _parts(given.names or NAMES, quick=given.quick):
            print(f"measuring {name} …", flush=True)
            measured = _measure(name, place)
            figures += measured
            for figure in measured:  # A long run that is broken off has told what it knew.
                print(f"  {figure.name}: {figure.value:,.4g} {figure.unit}", flush=True)
    print_table(figures)


def _parts(names: Iterable[str], *, quick: bool = False) -> Iterator[str]:
    """Put the parts of some in their place: the first alone, which needs no engine, when it is to be quick."""
    for name in names:
        parts = [f"{name}-{part}" for part in PARTS.get(name, ())]
        yield from parts[: 1 if quick else None] or (name,)


def _measure(name: str, place: Place) -> list[Figure]:
    if name == "imports":
        from benchmarks import bench_imports

        return bench_imports.measure(place.rounds(15))
    # Imported late: Prefect reads its settings when it is first imported.
    whole, _, part = name.partition("-")
    module = import_module(f"benchmarks.bench_{whole if whole in PARTS else name.replace('-', '_')}")
    figures: list[Figure] = module.measure(place, part) if whole in PARTS else module.measure(place)
    return figures


def machine() -> str:
    """Describe the machine and how busy it is, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, Python {platform.python_version()},"
        f" load average {os.getloadavg()[0]:.2f} at the start."
    )


if __name__ == "__main__":
    main()
