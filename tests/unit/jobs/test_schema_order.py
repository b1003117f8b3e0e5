"""The order of a job's inputs, which a stored document does not keep."""

from __future__ import annotations

from pathlib import Path

from prefect_launch.client.create_job import JobRequest, create_in
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.schema import inputs_in_order
from prefect_launch.queues.deployment import form_schema


async def test_form_shows_the_inputs_in_the_order_of_their_author(registry: JobRegistry, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("")
    schema = {"properties": {"model": {"type": "string"}, "epochs": {"type": "integer"}, "alpha": {"type": "number"}}}
    request = JobRequest(
        path=str(tmp_path), job_type="code", name="order", entrypoint=("python", "main.py"), input_schema=schema
    )

    job = await registry.resolve((await create_in(registry, request)).job.reference)

    assert list(inputs_in_order(job.schema)) == ["model", "epochs", "alpha"]
    assert list(form_schema(job)["properties"]) == ["model", "epochs", "alpha", "launch"]
