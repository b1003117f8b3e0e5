"""Slurm's commands that refuse, are away or are not there, as programs of the tests' own on the PATH."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from prefect_launch.errors import InfrastructureError, NoRoomError, SpecError, UnreachableError
from prefect_launch.runners.base import Labels, RunPlan, RunState
from prefect_launch.runners.remote.slurm import commands, diagnosis, script
from prefect_launch.runners.remote.slurm.runner import SlurmRunner
from tests.unit.runners.slurm.site import Site


def plan_in(folder: Path) -> RunPlan:
    run_dir = folder / "run"
    run_dir.mkdir()
    labels = {Labels.ITEM: "i", Labels.CLAIM: "c"}
    return RunPlan(
        item_id="i", run_id="r", run_dir=run_dir, image="ubuntu", command=("true",), labels=labels,
        env={"TOKEN": "hunter2"}, options={"container": "apptainer", "partition": "gpu"},
    )  # fmt: skip


async def test_refusal_is_the_submitters_with_slurms_own_words_and_leaves_nothing(tmp_path: Path, site: Site) -> None:
    site.program(
        "sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; exit 1"
    )
    plan = plan_in(tmp_path)
    with pytest.raises(SpecError) as refused:
        await SlurmRunner(tmp_path / "home").create(plan)
    assert "Invalid partition name specified" in str(refused.value)
    assert "--partition=gpu" in str(refused.value)
    assert not (plan.run_dir / script.FOLDER / script.ENVIRONMENT).exists()
    assert "--hold" not in site.called()
    assert not (tmp_path / "home" / "slurm").exists()


async def test_what_no_node_has_is_refused_before_it_is_submitted(tmp_path: Path, site: Site) -> None:
    site.program("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    site.program("sinfo", "echo 'n1|4|8000|gpu:2|'")
    plan = plan_in(tmp_path)
    plan = plan.model_copy(update={"options": {**plan.options, "gpus": 3}})
    with pytest.raises(SpecError, match="no node has more than 2"):
        await SlurmRunner(tmp_path / "home").create(plan)
    assert "--hold" not in site.called()


async def test_secret_of_a_job_is_on_no_command_line(tmp_path: Path, site: Site) -> None:
    site.program("sbatch", "echo 12")
    plan = plan_in(tmp_path)
    with pytest.raises(Exception, match="does not show it"):
        await SlurmRunner(tmp_path / "home").create(plan)
    assert "--hold" in site.called()
    assert "hunter2" not in site.called()
    assert (plan.run_dir / script.FOLDER / script.ENVIRONMENT).stat().st_mode & 0o777 == 0o600


async def test_job_whose_comment_the_site_rewrites_is_followed_by_its_number(tmp_path: Path, site: Site) -> None:
    site.program("sbatch", "echo 12")
    plan = plan_in(tmp_path)
    site.prints("squeue", f"12|PENDING|JobHeldUser|0||{plan.name}|the site's own words|")
    handle = await SlurmRunner(tmp_path / "home").create(plan)
    assert handle == "12@c"
    (found,) = await SlurmRunner(tmp_path / "home").find({Labels.ITEM: "i"})
    assert (found.handle, found.state) == (handle, RunState.CREATED)
    assert "scancel" not in site.called()


async def test_job_that_slurm_accepts_and_does_not_show_is_cancelled(tmp_path: Path, site: Site) -> None:
    site.program("sbatch", "echo 12")
    plan = plan_in(tmp_path)
    with pytest.raises(InfrastructureError, match="as 12, and does not show it"):
        await SlurmRunner(tmp_path / "home").create(plan)
    assert f"scancel --name={plan.name} 12\n" in site.called()


async def test_job_whose_controller_went_after_it_took_it_is_ended_by_the_next_claim(
    tmp_path: Path, site: Site
) -> None:
    site.program("sbatch", "echo 12")
    plan = plan_in(tmp_path)
    away = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
    site.program("squeue", f"grep -q -e --hold {site.calls} || exit 0; {away}")
    with pytest.raises(UnreachableError):
        await SlurmRunner(tmp_path / "home").create(plan)
    lines = site.programs.parent / "squeue.lines"
    site.prints("squeue", f"12|PENDING|JobHeldUser|0||{plan.name}|the site's own words|")
    site.program("scancel", f"echo '12|CANCELLED|None|0||{plan.name}|' > {lines}")
    site.program("sbatch", f"case $* in *--hold*) echo '13|PENDING||0||{plan.name}|' > {lines};; esac; echo 13")
    again = plan.model_copy(update={"labels": {**plan.labels, Labels.CLAIM: "d"}})
    assert await SlurmRunner(tmp_path / "home").create(again) == "13@d"
    assert f"scancel --name={plan.name} --state=PENDING 12\n" in site.called()


@pytest.mark.parametrize(
    "words",
    [
        "QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
        " (job submit limit, user's size and/or time limits)",
        "AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
        "QOSGrpSubmitJobsLimit",
        "Batch job submission failed: Socket timed out on send/recv operation",
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Resource temporarily unavailable",
        "Slurm temporarily unable to accept job, sleeping and retrying",
        "Batch job submission failed: Required partition not available (inactive or drain)",
        "Batch job submission failed: I/O error writing script/environment to file",
        "Batch job submission failed: Unable to create job record, try again",
        "Batch job submission failed: Failed to connect to authentication agent",
    ],
)
async def test_submission_that_slurm_would_take_later_is_not_the_submitters_fault(
    tmp_path: Path, site: Site, words: str
) -> None:
    site.program("sbatch", f'echo "sbatch: error: {words}" >&2; exit 1')
    with pytest.raises(UnreachableError, match=re.escape(words.partition("\n")[0])):
        await SlurmRunner(tmp_path / "home").create(plan_in(tmp_path))


async def test_limit_of_submitted_jobs_holds_up_its_queue_alone(tmp_path: Path, site: Site) -> None:
    site.program("sbatch", "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1")
    with pytest.raises(NoRoomError):
        await SlurmRunner(tmp_path / "home").create(plan_in(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        "Requested node configuration is not available",
        "More processors requested than permitted",
        "Invalid account or account/partition combination specified",
        "QOSMaxCpuPerJobLimit",
        "Requested time limit is invalid (missing or exceeds some limit)",
        "User's group not permitted to use this partition",
    ],
)
async def test_submission_that_slurm_never_takes_is_the_submitters(tmp_path: Path, site: Site, words: str) -> None:
    site.program("sbatch", f'[ "$1" = --test-only ] || {{ echo "sbatch: error: {words}" >&2; exit 1; }}')
    with pytest.raises(SpecError, match=re.escape(words)):
        await SlurmRunner(tmp_path / "home").create(plan_in(tmp_path))


async def test_machine_that_cannot_start_a_command_is_not_the_submitters_fault(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", full)
    with pytest.raises(UnreachableError, match="Resource temporarily unavailable"):
        await commands.run_slurm("squeue")


@pytest.mark.parametrize(
    "words",
    [
        "squeue: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
    ],
)
async def test_controller_that_is_away_is_unreachable_and_no_jobs_are_gone(
    tmp_path: Path, site: Site, words: str
) -> None:
    site.program("squeue", f"echo '{words}' >&2; exit 1")
    with pytest.raises(UnreachableError, match="scontrol ping"):
        await SlurmRunner(tmp_path).poll(["7"])


async def test_controller_that_is_down_is_told_in_a_sentence(tmp_path: Path, site: Site) -> None:
    frame = "*" * 41
    site.program("scontrol", f"echo 'Slurmctld(primary) at a is DOWN\n{frame}\n** RESTORE IT **\n{frame}'; exit 1")
    with pytest.raises(UnreachableError, match=r"not answer 'scontrol': Slurmctld.* is DOWN; RESTORE IT\. Look"):
        await SlurmRunner(tmp_path).ping()


async def test_command_that_hangs_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "COMMAND_SECONDS", 0.5)
    site.program("squeue", "echo 'squeue: error: no munge, retrying' >&2; exec sleep 300")
    with pytest.raises(UnreachableError, match=r"did not answer 'squeue' within 0\.5 s: no munge, retrying\."):
        await commands.run_slurm("squeue")


async def test_configuration_that_is_not_there_is_told_at_once(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "slurm.conf"
    monkeypatch.setenv("SLURM_CONF", str(missing))
    with pytest.raises(UnreachableError, match=f"'{missing}', which .* SLURM_CONF, cannot be read"):
        await commands.run_slurm("squeue")
    assert not site.called()  # It would look for a minute.


async def test_machine_without_slurm_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="slurm-client"):
        await SlurmRunner(tmp_path).ping()
    [finding] = await SlurmRunner(tmp_path).diagnose({})
    assert not finding.is_ok


async def test_what_the_environment_says_to_slurm_beside_the_cluster_is_kept_from_it(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "other.conf"
    config.touch()
    monkeypatch.setenv("SLURM_CONF", str(config))
    monkeypatch.setenv("SBATCH_PARTITION", "expensive")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    site.program("squeue", "env")
    seen = await commands.run_slurm("squeue")
    assert f"SLURM_CONF={config}" in seen
    assert "SBATCH_PARTITION" not in seen
    assert "SLURM_JOB_ID" not in seen


async def test_diagnosis_names_a_partition_that_is_not_there_and_a_clock_that_is_wrong(
    tmp_path: Path, site: Site
) -> None:
    site.program("sbatch", "exit 0")
    late = (datetime.now() - timedelta(minutes=3)).isoformat(timespec="seconds")
    site.program("scontrol", f"echo 'Configuration data as of {late}'")
    site.program(
        "sinfo", 'case "$*" in *--version*) echo slurm 22.05.8;; *gpu*) ;; *%R*) echo main;; *) echo n1;; esac'
    )
    found = {one.name: one for one in await SlurmRunner(tmp_path).diagnose({"partition": "gpu"})}
    assert found["controller"].detail == "slurm 22.05.8 answers"
    assert "there is: main" in found["partition"].detail
    assert not found["partition"].is_ok
    assert not found["clock"].is_ok


@pytest.mark.parametrize(
    ("kind", "elsewhere", "is_ok"), [("ext4", {"n1"}, False), ("nfs4", {"n1"}, True), ("ext4", set(), True)]
)
def test_home_that_the_nodes_cannot_see_is_found(kind: str, elsewhere: set[str], is_ok: bool) -> None:
    mounts = f"/dev/sda1 / xfs rw 0 0\nserver:/x /home {kind} rw 0 0\n"
    assert diagnosis.shared_home(Path("/home/ann/launch"), mounts, elsewhere).is_ok is is_ok
