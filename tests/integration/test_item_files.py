"""Files of an item on their whole way: kept by a pattern, an input of the next item, and back with the caller."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefect_launch.agent import LaunchAgent
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.testing import InMemoryApi

TRAIN = """
mkdir checkpoints; echo weights > checkpoints/1.pt; echo "step,loss" > loss.csv; echo 1 > "$LAUNCH_OUTPUT_DIR/epochs"
"""
EVALUATE = """
case "$1" in --model=*) echo "read $(cat "${1#--model=}")" > "$LAUNCH_OUTPUT_DIR/report" ;; esac
"""


def test_file_beside_the_code_is_kept_given_to_the_next_item_and_downloaded(tmp_path: Path) -> None:
    api = InMemoryApi()
    api.create_run_queue("box", "local-process")
    for name, script in (("train", TRAIN), ("evaluate", EVALUATE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.sh").write_text(script)
    create_job(tmp_path / "train", "code", name="train", entrypoint="sh main.sh", keep=["checkpoints/**"], api=api)
    create_job(tmp_path / "evaluate", "code", name="evaluate", entrypoint="sh main.sh", inputs_as="args", api=api)

    def work() -> None:
        agent = LaunchAgent(api, {"name": "box", "queues": ["box"], "home": tmp_path / "home", "poll_seconds": 0.05})
        asyncio.run(agent.loop(until_empty=True))

    (training,) = launch_add_many([{"job": "train"}], "box", api=api)
    work()
    model = {"item": training.id, "path": "checkpoints/1.pt"}
    spec = {"job": "evaluate", "overrides": {"run_config": {"model": model}}}
    (evaluation,) = launch_add_many([spec], "box", api=api)
    work()

    assert set(training.files()) == {"checkpoints/1.pt", "epochs", "job.log"}
    told = "1 file changed in the code folder is not kept"
    assert training.message.endswith(f"Note: {told}; its log names it.")
    assert f"{told}: loss.csv. Write to $LAUNCH_OUTPUT_DIR, or create the job with --keep 'loss.csv'." in (
        training.last_lines()
    )
    (report,) = evaluation.download("report", tmp_path / "back")
    assert report.read_text() == "read weights\n"
    assert not list((tmp_path / "home" / "runs").rglob("inputs")), "its copy goes with the run"
