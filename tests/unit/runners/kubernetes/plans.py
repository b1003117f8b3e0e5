"""Plans of runs, manifests and objects of a cluster, for the tests of the resource `kubernetes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect_launch.core.masking import Mask
from prefect_launch.runners.base import Labels, RunPlan

ITEM = "0b0f7b7e-1111-4222-8333-444455556666"
NAME = f"launch-{ITEM}-1"
SECRET = "s3cr3t-value-of-a-block"
LABELS = {Labels.ITEM: ITEM, Labels.ATTEMPT: "1", Labels.CLAIM: "c1", Labels.QUEUE: "my queue, ü"}


def make_plan(options: dict[str, Any] | None = None, **given: Any) -> RunPlan:
    """Return the plan of a run with these options."""
    fields: dict[str, Any] = {
        "item_id": ITEM,
        "run_id": "r1",
        "run_dir": Path("/nowhere"),
        "image": "registry.example.com/train:1",
        "labels": LABELS,
        "mask": Mask([SECRET]),
        **given,
    }
    return RunPlan(**fields, options=options or {})


def pod_manifest(**container: Any) -> dict[str, Any]:
    """Return a pod template of one container."""
    return {"spec": {"containers": [{"name": "main", "image": "busybox", **container}]}}


def job_options(template: Any = None, **spec: Any) -> dict[str, Any]:
    """Return a batch Job as `resource_args.kubernetes` has it."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {"template": pod_manifest() if template is None else template, **spec},
    }
