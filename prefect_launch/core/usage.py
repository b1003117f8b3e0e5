"""Usage of CPU, memory and GPUs by a run: the names of its histories and totals, its words and its charts.

It is kept as metrics are (`prefect_launch.core.metrics`). The step of a sample is the second of the run, so that its
history is bounded in the same way. The totals are numbers by the names below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from prefect_launch.core.metric_chart import Axis, lines_svg
from prefect_launch.core.metrics import Metrics, Point, Series
from prefect_launch.core.states import USAGE
from prefect_launch.core.svg import markdown_image
from prefect_launch.core.units import format_duration, format_size

#: Histories: CPUs that are busy, bytes of memory; of each GPU, percent of the time and bytes.
CPUS: Final = "cpus"
MEMORY: Final = "memory"
GPU: Final = "gpu"
GPU_MEMORY: Final = "gpu memory"
#: Totals of a run.
MEAN_CPUS: Final = "mean_cpus"
PEAK_MEMORY: Final = "peak_memory_bytes"
MEAN_GPU: Final = "mean_gpu_percent"
PEAK_GPU_MEMORY: Final = "peak_gpu_memory_bytes"
#: What it has asked for.
CPUS_ASKED: Final = "cpus_asked"
MEMORY_ASKED: Final = "memory_asked_bytes"

#: The totals that stand for the samples of a run that has ended.
_OF_TOTALS: Final[Mapping[str, str]] = {
    CPUS: MEAN_CPUS,
    MEMORY: PEAK_MEMORY,
    GPU: MEAN_GPU,
    GPU_MEMORY: PEAK_GPU_MEMORY,
    CPUS_ASKED: CPUS_ASKED,
    MEMORY_ASKED: MEMORY_ASKED,
}
_TITLES: Final[Mapping[str, str]] = {CPUS: "CPUs", MEMORY: "Memory", GPU: "GPU use, %", GPU_MEMORY: "GPU memory"}
_SIZES: Final = (MEMORY, GPU_MEMORY)
_MIB: Final = 1024**2
_GIB: Final = 1024**3


def of_gpu(name: str, index: str) -> str:
    """Return the name of a GPU's history."""
    return f"{name} {index}"


def mean(points: Sequence[Point]) -> float:
    """Return the mean over the time; a value holds since the point before."""
    if not points or points[-1][0] == 0:
        return sum(value for _, value in points) / max(1, len(points))
    sinces = [0, *(step for step, _ in points)]
    return sum(value * (step - since) for (step, value), since in zip(points, sinces, strict=False)) / points[-1][0]


def present(values: Mapping[str, float]) -> dict[str, float]:
    """Return one sample of a run without what changes all the time, its GPUs as one: their mean use, and all memory."""
    found = {CPUS: round(values[CPUS], 1)} if CPUS in values else {}
    found[MEMORY] = round(values[MEMORY] / _MIB) * _MIB
    loads = [value for name, value in values.items() if _kind(name) == GPU]
    if loads:
        held = sum(value for name, value in values.items() if _kind(name) == GPU_MEMORY)
        found |= {GPU: round(sum(loads) / len(loads)), GPU_MEMORY: round(held / _MIB) * _MIB}
    return found


def totals_in(data: object) -> dict[str, float]:
    """Return the totals of a run, from the data of the state that it has ended in; empty: unknown."""
    found = data.get(USAGE) if isinstance(data, Mapping) else None
    given = found.items() if isinstance(found, Mapping) else ()
    return {str(name): value for name, value in given if isinstance(value, (int, float))}


def as_present(totals: Mapping[str, float]) -> dict[str, float]:
    """Return the totals of a run as a sample of it: the mean of CPUs and GPUs, the peak of memory."""
    return {name: totals[total] for name, total in _OF_TOTALS.items() if total in totals}


def gpu_totals(histories: Mapping[str, Series]) -> dict[str, float]:
    """Return the totals of a run's GPUs; empty where it had none."""
    loads = [mean(series.points()) for name, series in histories.items() if _kind(name) == GPU]
    held = [series.high[1] for name, series in histories.items() if _kind(name) == GPU_MEMORY and series.high]
    return {MEAN_GPU: round(sum(loads) / len(loads), 1), PEAK_GPU_MEMORY: sum(held)} if loads else {}


def totals_in_words(totals: Mapping[str, float]) -> str:
    """Say what a run has used: `3.1 of 8.0 GiB of memory at most, 1.9 of 4 CPUs on average`."""
    words = []
    if PEAK_MEMORY in totals:
        words.append(f"{memory_in_words(totals[PEAK_MEMORY], totals.get(MEMORY_ASKED))} of memory at most")
    if MEAN_CPUS in totals:
        words.append(f"{_cpus(totals[MEAN_CPUS], totals.get(CPUS_ASKED))} on average")
    if MEAN_GPU in totals:
        words.append(f"its GPUs {totals[MEAN_GPU]:.0f} % of the time")
    if PEAK_GPU_MEMORY in totals:
        words.append(f"{format_size(int(totals[PEAK_GPU_MEMORY]))} of GPU memory at most")
    return ", ".join(words)


def present_in_words(values: Mapping[str, float]) -> str:
    """Say what a run uses now: `1.9 of 4 CPUs, 3.1 of 8.0 GiB of memory`."""
    words = [_cpus(values[CPUS], values.get(CPUS_ASKED))] if CPUS in values else []
    words += [f"{memory_in_words(values[MEMORY], values.get(MEMORY_ASKED))} of memory"] if MEMORY in values else []
    words += [f"its GPUs {values[GPU]:.0f} % of the time"] if GPU in values else []
    words += [f"{format_size(int(values[GPU_MEMORY]))} of GPU memory"] if GPU_MEMORY in values else []
    return ", ".join(words)


def memory_in_words(size: float, asked: float | None = None) -> str:
    """Say how much memory is used, of how much that was asked for: `3.1 of 8.0 GiB`."""
    used = format_size(int(size))
    if not asked:
        return used
    of = format_size(int(asked))
    return f"{used.removesuffix(f' {of.split()[1]}')} of {of}"


def number_in_words(cpus: float, asked: float | None = None) -> str:
    """Say how many CPUs are used, of how many that were asked for: `1.9 of 4`."""
    used = f"{cpus:.1f}".removesuffix(".0") if cpus >= 1 else f"{cpus:.2g}"
    return f"{used} of {asked:g}" if asked else used


def _cpus(cpus: float, asked: float | None) -> str:
    words = number_in_words(cpus, asked)
    return f"{words} CPU{'' if words.split()[-1] == '1' else 's'}"


def usage_markdown(usage: Metrics, run_id: str) -> str:
    """Return the Markdown that shows what a run has used.

    Args:
        usage: its histories and totals.
        run_id: the launch run id.
    """
    charts: dict[str, dict[str, Series]] = {}
    for name, series in usage.series.items():
        kind = _kind(name)
        if series.last is not None:
            charts.setdefault(_TITLES[kind], {})[name] = series
    lines = [f"## What run `{run_id}` has used", "", f"{totals_in_words(usage.outputs)}.", ""]
    drawn = lines_svg(dict(_in_units(charts)), Axis("time", format_duration, base=0.0))
    lines += [markdown_image(drawn, "Charts of what it used by the time of the run"), ""]
    lines += ["| | Mean | Highest | Last |", "|---|---|---|---|"]
    lines += [_row(name, series) for name, series in usage.series.items()]
    return "\n".join(lines) + "\n"


def _kind(name: str) -> str:
    """Return which history it is, whatever GPU it is of."""
    return name if name in _TITLES else name.rpartition(" ")[0]


def _in_units(charts: Mapping[str, Mapping[str, Series]]) -> Iterable[tuple[str, dict[str, Series]]]:
    """Yield the charts with sizes in MiB or GiB, by the largest."""
    for title, lines in charts.items():
        if title not in map(_TITLES.__getitem__, _SIZES):
            yield title, dict(lines)
            continue
        largest = max(series.high[1] for series in lines.values() if series.high is not None)
        unit, size = ("GiB", _GIB) if largest >= _GIB else ("MiB", _MIB)
        yield f"{title}, {unit}", {name: _scaled(series, size) for name, series in lines.items()}


def _scaled(series: Series, size: int) -> Series:
    def scaled(point: Point | None) -> Point | None:
        return None if point is None else (point[0], round(point[1] / size, 3))

    kept = {step: round(value / size, 3) for step, value in series.kept.items()}
    return replace(series, kept=kept, last=scaled(series.last), low=scaled(series.low), high=scaled(series.high))


def _row(name: str, series: Series) -> str:
    ends = [mean(series.points()), *(end[1] for end in (series.high, series.last) if end is not None)]
    words = [format_size(int(value)) if _kind(name) in _SIZES else number_in_words(value) for value in ends]
    index = name.removeprefix(_kind(name))
    label = _TITLES[_kind(name)].replace("GPU", f"GPU{index}", 1)
    return f"| {label} | {' | '.join(words)} |"
