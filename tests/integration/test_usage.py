"""What real runs use: shown while they run, kept at their end, with a chart on their page."""

from __future__ import annotations

import json

import pytest

from tests.support.agent_thread import running
from tests.support.live import Site, until

MB = 1_000_000
#: Holds 200 MB, which its children share, and keeps one CPU busy for 12 s in those children.
BUSY = """
import os, sys, time
held = b"x" * 200_000_000
end = time.monotonic() + 12
while time.monotonic() < end:
    if os.fork() == 0:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass
        os._exit(0)
    os.wait()
print(len(held))
"""


def test_process_tells_its_memory_and_cpus_and_its_page_has_a_chart(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.status.USAGE_SECONDS", 1.0)
    site.job(f"cat > busy.py <<'END'\n{BUSY}\nEND\npython busy.py & wait $!")
    (run,) = site.add(resource_args={"local-process": {"memory": "1g"}})
    with running(site.agent()):
        until(lambda: run.usage().get("memory", 0) > 200 * MB)
        present = run.usage()
        until(lambda: run.item.is_terminal)

    assert run.state == "completed"
    assert present["memory_asked_bytes"] == 1024**3
    totals = run.usage()
    assert 200 * MB < totals["peak_memory_bytes"] < 350 * MB
    assert 0.1 < totals["mean_cpus"] < 1.2
    history = run.usage_history()
    assert history.series["cpus"].count >= 2
    assert history.outputs == totals
    (chart,) = site.usage_charts(run)
    assert chart.key == f"usage-chart-{run.id}"
    assert "data:image/svg+xml;base64," in chart.data
    shown = site.run("item", "show", run.id).stdout
    assert " of 1.0 GiB of memory at most, " in shown
    told = json.loads(site.run("item", "show", run.id, "--json").stdout)
    assert told["usage"] == totals
    assert told["usage_history"]["memory"]["high"][1] == history.series["memory"].high[1]  # type: ignore[index]


def test_container_tells_its_memory_and_cpus(containers: Site, shell_image: str) -> None:
    # The shell's own variable holds 40 MB.
    script = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 6000000 ]; do i=$((i+1)); done"
    (run,) = containers.add(
        {
            "docker": {"docker_image": shell_image},
            "overrides": {"entry_point": ["sh", "-c", script]},
            "resource_args": {"local-container": {"memory": "256m"}},
        }
    )
    with running(containers.agent()):
        until(lambda: run.item.is_terminal)

    assert run.state == "completed"
    totals = run.usage()
    assert 40 * MB < totals["peak_memory_bytes"] < 256 * 1024**2
    assert 0.05 < totals["mean_cpus"] < 1.2
    assert totals["memory_asked_bytes"] == 256 * 1024**2
