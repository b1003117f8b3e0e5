"""The GPU reader, without a driver and with a library that plays one; and the settings of an agent."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prefect_launch.agent.devices.gpus import GpuInfo, GpuLoad, GpuWatch, NvmlProbe, read_capacity
from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.agent_config import parse_agent_config
from prefect_launch.testing import InMemoryGpus
from tests.support.bench import eventually


class NvmlError(Exception):
    """As nvidia-ml-py raises it."""


def nvml(processes: dict[int, list[int] | None], *, driver: bool = True, used: int = 0) -> ModuleType:
    """A library that shows GPUs with these processes; None: it cannot list them, only the memory in use."""

    def start() -> None:
        if not driver:
            raise NvmlError("Driver Not Loaded")

    def list_processes(index: int) -> list[Any]:
        found = processes[index]
        if found is None:
            raise NvmlError("Not Supported")
        return [SimpleNamespace(pid=pid) for pid in found]

    library: Any = ModuleType("pynvml")
    library.NVMLError = NvmlError
    library.nvmlInit = start
    library.nvmlShutdown = lambda: None
    library.nvmlDeviceGetCount = lambda: len(processes)
    library.nvmlDeviceGetHandleByIndex = lambda index: index
    library.nvmlDeviceGetUUID = lambda index: f"GPU-{index}".encode()
    library.nvmlDeviceGetName = lambda index: "H100"
    library.nvmlDeviceGetComputeRunningProcesses = list_processes
    library.nvmlDeviceGetMemoryInfo = lambda index: SimpleNamespace(used=used)
    return library  # type: ignore[no-any-return]


def test_machine_without_a_driver_has_no_card_and_that_is_no_error() -> None:
    seen = NvmlProbe().read()  # the real library, when it is installed: this machine may have GPUs
    assert seen.gpus or seen.note


def test_missing_library_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    seen = NvmlProbe().read()
    assert seen.gpus == ()
    assert "pip install 'prefect-launch[gpu]'" in seen.note


def test_driver_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml({0: []}, driver=False))
    seen = NvmlProbe().read()
    assert seen.note == "this machine's NVIDIA driver does not answer: Driver Not Loaded"
    assert seen.is_away


def test_machine_that_has_no_driver_at_all_is_not_one_whose_driver_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = nvml({0: []}, driver=False)
    library.NVML_ERROR_LIBRARY_NOT_FOUND = 12
    monkeypatch.setattr(NvmlError, "value", 12, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    seen = NvmlProbe().read()
    assert (seen.note, seen.is_away) == ("this machine has no NVIDIA driver", False)


def test_card_that_fell_off_the_bus_leaves_the_others_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = nvml({0: [], 1: [77], 2: []})

    def handle(index: int) -> int:
        if index == 0:
            raise NvmlError("GPU is lost")
        return index

    library.nvmlDeviceGetHandleByIndex = handle
    monkeypatch.setitem(sys.modules, "pynvml", library)
    seen = NvmlProbe().read()
    assert ([gpu.index for gpu in seen.gpus], seen.users, seen.is_away) == (["1", "2"], {"1": (77,)}, False)


async def test_driver_that_hangs_is_away_and_asked_by_one_thread_at_a_time() -> None:
    answers, calls, loads = threading.Event(), list[int](), list[int]()

    class Hangs:
        def read(self) -> GpuInfo:
            calls.append(1)
            answers.wait(60)
            return GpuInfo(note="it is back")

        def read_loads(self, indexes: Collection[str]) -> Mapping[str, GpuLoad]:
            loads.append(1)
            answers.wait(60)
            return dict.fromkeys(indexes, GpuLoad(7, 9))

    watch = GpuWatch(Hangs(), most_seconds=0.05)
    for _ in range(3):
        seen = await watch.read()
        assert (seen.is_away, "does not answer within 0.05 s" in seen.note) == (True, True)
        assert await watch.read_loads(["0"]) == {}
    assert (len(calls), len(loads)) == (1, 1)
    answers.set()
    await eventually(watch.read, lambda seen: seen.note == "it is back")
    await eventually(lambda: watch.read_loads(["0"]), lambda seen: seen == {"0": (7, 9)})


def test_cards_are_shown_with_the_processes_that_compute_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml({0: [], 1: [77, 78]}))
    seen = NvmlProbe().read()
    assert [(gpu.index, gpu.uuid, gpu.name) for gpu in seen.gpus] == [
        ("0", "GPU-0", "H100"),
        ("1", "GPU-1", "H100"),
    ]
    assert seen.users == {"1": (77, 78)}


def test_driver_that_goes_away_and_comes_back_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = nvml({0: []})
    monkeypatch.setitem(sys.modules, "pynvml", library)
    probe, count, opened = NvmlProbe(), library.nvmlDeviceGetCount, []

    def lost() -> int:
        raise NvmlError("GPU is lost")

    library.nvmlInit = lambda: opened.append(1)
    assert len(probe.read().gpus) == len(probe.read().gpus) == len(opened) == 1
    library.nvmlDeviceGetCount = lost
    assert probe.read().note.endswith("GPU is lost")
    library.nvmlDeviceGetCount = count
    assert len(probe.read().gpus) == 1
    assert len(opened) == 2


def test_load_of_a_card_is_read_and_one_that_does_not_tell_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = nvml({0: [], 1: []}, used=5)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    probe = NvmlProbe()
    assert probe.read_loads(["0"]) == {}  # No connection yet.
    probe.read()

    def rates(index: int) -> SimpleNamespace:
        if index:
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=87)

    library.nvmlDeviceGetUtilizationRates = rates
    assert probe.read_loads(["0", "1"]) == {"0": (87, 5)}


@pytest.mark.parametrize(("used", "users"), [(400 * 1024**2, {}), (2 * 1024**3, {"0": (0,)})])
def test_driver_that_lists_no_processes_tells_by_the_memory(
    monkeypatch: pytest.MonkeyPatch, used: int, users: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml({0: None}, used=used))
    assert NvmlProbe().read().users == users


@pytest.mark.parametrize(
    ("written", "read"),
    [("auto", "auto"), ("None", "none"), ([], "none"), ([0, 1], ("0", "1")), ("0,1", ("0", "1")), ("2", ("2",))],
)
def test_setting_gpus_is_auto_none_or_a_list(written: Any, read: Any) -> None:
    assert parse_agent_config({"gpus": written}).gpus == read


@pytest.mark.parametrize(
    "wrong", [{"gpus": "some"}, {"gpus": 2}, {"gpus": [True]}, {"cpus": 0}, {"cpus": "x"}, {"memory": "64 apples"}]
)
def test_wrong_setting_of_a_device_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(AgentConfigError, match=f"'{next(iter(wrong))}'"):
        parse_agent_config(wrong)


def test_amounts_are_the_settings_or_the_machines_own_or_not_counted() -> None:
    config = parse_agent_config({"cpus": 3, "memory": "64g"})
    seen = InMemoryGpus(0).read()
    capacity = read_capacity(config.gpus, config.cpus, config.memory, seen)
    assert (capacity.cpus, capacity.memory) == (3, 64 * 1024**3)
    machine = read_capacity("auto", "auto", "auto", seen)
    assert machine.cpus is not None
    assert machine.memory is not None
    assert machine.cpus >= 1
    assert machine.memory > 1024**2
    uncounted = read_capacity("auto", "none", "none", seen)
    assert (uncounted.cpus, uncounted.memory) == (None, None)
