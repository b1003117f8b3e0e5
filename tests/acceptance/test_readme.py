"""The README: each of its blocks runs, and it can be shown anywhere, as on a package index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.prefect_server import PrefectServerProcess
from tests.support.reader import PROJECT, followed

README = PROJECT / "README.md"
MOST_LINES = 150


@pytest.mark.timeout(600)
def test_every_block_of_the_readme_runs(own_prefect_server: PrefectServerProcess, tmp_path: Path) -> None:
    shown = followed(
        tmp_path / "reader",
        [README],
        {
            # The demo, the tests and a fresh install have tests of their own; here, that the targets are there.
            "make demo": f"make -C {PROJECT} --dry-run demo",
            "make test": f"make -C {PROJECT} --dry-run test",
            "pip install prefect-launch": "prefect-launch --version",
            # The test's server has started already, on a port of its own.
            "prefect server start": f"curl --fail --silent --show-error {own_prefect_server.api_url}/health",
            "http://127.0.0.1:4200/api": own_prefect_server.api_url,
        },
    )

    assert "epoch 30: loss" in shown
    assert re.search(r"lr +0\.01 +0\.1", shown)


@pytest.mark.timeout(300)
def test_readme_of_the_slurm_example_puts_its_job_on_a_queue(
    own_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    shown = followed(
        tmp_path / "reader",
        [PROJECT / "examples" / "slurm" / "README.md"],
        {
            "export PREFECT_LAUNCH_HOME=/SHARED/prefect-launch": f"export PREFECT_API_URL={own_prefect_server.api_url}",
            # Slurm is tested elsewhere.
            "prefect-launch agent check -q cluster": "prefect-launch queue show cluster",
            "prefect-launch agent start -q cluster": "prefect-launch item list -q cluster",
        },
    )

    assert "Added hello-slurm-" in shown


def test_readme_is_short_and_has_no_relative_picture_or_link() -> None:
    text = README.read_text()
    links = re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", text)

    assert len(text.splitlines()) <= MOST_LINES
    assert links
    assert not [link for pair in links for link in pair if link and not link.startswith("https://")]
