"""Secret blocks of a real server: who may name them, where, and what is shown of their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from prefect.blocks.system import Secret
from prefect.exceptions import PrefectHTTPStatusError

from prefect_launch.core.masking import MASK
from prefect_launch.errors import UnsafeSpecError
from prefect_launch.queues.deployment import deploy_job
from prefect_launch.queues.session import deployment_name
from prefect_launch.server.secrets import reference_to
from tests.support.live import Site, run_deployment

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

VALUES = {"queue": 'queue"s t/ken', "allowed": "allowed-t0ken", "other": "0ther-token"}


def test_only_allowed_secrets_are_had_and_none_is_reported(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    names = {kind: f"{unique}-{kind}".lower() for kind in VALUES}
    for kind, name in names.items():
        Secret(value=VALUES[kind]).save(name)
    site = Site(
        prefect_server.api_url,
        tmp_path,
        unique,
        config={"env": {"QUEUE": reference_to(names["queue"])}},
        submitter_secrets=[names["allowed"]],
    )
    site.job('echo "$QUEUE $MINE"; echo "{\\"token\\": \\"$MINE\\"}" > $LAUNCH_OUTPUT_DIR/outputs.json; exit 3')

    def spec_of(kind: str) -> dict[str, object]:
        return {"resource_args": {"local-process": {"env": {"MINE": reference_to(names[kind])}}}}

    _, _, form = site.api.call(lambda session: deploy_job(session, site.name, site.name))
    with pytest.raises(UnsafeSpecError, match=names["other"]):
        site.add(spec_of("other"))
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        run_deployment(f"launch/{form}", parameters={"launch": spec_of("other")})
    refused = run_deployment(
        f"launch/{deployment_name(site.name)}", parameters={"job": f"acme/tests/{site.name}", **spec_of("other")}
    )
    ran: list[str | UUID] = [site.add(spec_of("allowed"))[0].id]
    ran.append(run_deployment(f"launch/{form}", parameters={"launch": spec_of("allowed")}).id)
    site.work_off()

    never = site.api.queued_run(refused.id)
    assert never.state == "failed"
    assert f"names the secret '{names['other']}', which this queue does not let submitters name" in never.item.message
    for item_id in ran:
        run = site.api.queued_run(item_id)
        assert site.log(run) == f"{MASK} {MASK}"
        assert run.outputs() == {"token": MASK}
        told = json.dumps([artifact.data for artifact in site.artifacts(run)]) + repr(run.item) + site.notes(run)
        assert "failure-report" in repr([artifact.key for artifact in site.artifacts(run)])
        assert not any(value in told for value in VALUES.values())
