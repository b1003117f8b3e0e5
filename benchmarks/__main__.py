"""The command `python -m benchmarks [NAME…] [--quick]`: measures what is named, or everything, and prints one table."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence

from benchmarks.figures import Figure, print_table
from benchmarks.place import Place, open_place

NAMES = ("imports", "dispatch", "throughput", "enqueue")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is named, and print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure prefect-launch beside its floors."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(NAMES)}; by default all")
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that the benchmarks work")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    print(machine(), flush=True)
    figures: list[Figure] = []
    with open_place(quick=given.quick) as place:
        for name in given.names or NAMES:
            print(f"measuring {name} …", flush=True)
            figures += _measure(name, place)
    print_table(figures)


def _measure(name: str, place: Place) -> list[Figure]:
    # Imported late: Prefect reads its settings when it is first imported.
    if name == "imports":
        from benchmarks import bench_imports

        return bench_imports.measure(place.rounds(15))
    if name == "dispatch":
        from benchmarks import bench_dispatch

        return bench_dispatch.measure(place)
    if name == "throughput":
        from benchmarks import bench_throughput

        return bench_throughput.measure(place)
    from benchmarks import bench_enqueue

    return bench_enqueue.measure(place)


def machine() -> str:
    """Describe the machine and how busy it is, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, Python {platform.python_version()},"
        f" load average {os.getloadavg()[0]:.2f} at the start. Server, database, engine, agent and caller share them."
    )


if __name__ == "__main__":
    main()
