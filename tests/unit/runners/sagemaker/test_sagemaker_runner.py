"""Training jobs in a fake account: statuses, logs, outputs, names, and how often AWS is asked."""

from __future__ import annotations

import io
import random
import re
import tarfile
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.errors import AgentConfigError, InfrastructureError, NoRoomError, SpecError, UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan, RunState
from prefect_launch.runners.remote.jobs import RemoteState
from prefect_launch.runners.remote.sagemaker.status import status_of
from prefect_launch.spec.option_names import normalise_options
from prefect_launch.testing.runner_contract import FAIL, LOG, SLEEP, SUCCEED, run
from tests.support.sagemaker import ACCOUNT, BUCKET, QUEUE, AwsError, Job
from tests.unit.runners.sagemaker.world import QuickRunner, SageMakerWorld


async def started(runner: QuickRunner, plan: RunPlan) -> str:
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


async def placed(world: SageMakerWorld, plan: RunPlan, runner: QuickRunner | None = None) -> tuple[str, Job]:
    """Start a plan in an account that runs nothing by itself; return its handle and its job."""
    world.aws.runs_jobs = False
    handle = await started(runner or world.runner(), plan)
    return handle, world.aws.jobs[world.name(plan)]


# --- how a job ended ---


def described(status: str, secondary: str, *, reason: str = "", has_run: bool = True, **more: Any) -> dict[str, Any]:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    times = {"TrainingStartTime": at, "TrainingEndTime": at} if has_run else {}
    return {"TrainingJobStatus": status, "SecondaryStatus": secondary, "FailureReason": reason, **times, **more}


def end_of(job: dict[str, Any]) -> ExitStatus:
    found = status_of(job)
    assert found.state is RemoteState.ENDED
    assert found.exit is not None
    return found.exit


@pytest.mark.parametrize("secondary", ["MaxRuntimeExceeded", "MaxWaitTimeExceeded"])
def test_time_limit_of_sagemakers_own_is_a_time_limit(secondary: str) -> None:
    end = end_of(described("Stopped", secondary))
    assert (end.timed_out, end.stopped, end.succeeded, end.error) == (True, False, False, None)


@pytest.mark.parametrize("status", ["Stopped", "Failed"])
def test_spot_instance_that_was_taken_away_is_preempted(status: str) -> None:
    end = end_of(described(status, "Interrupted"))
    assert (end.preempted, end.succeeded) == (True, False)


def test_stop_by_somebody_else_is_no_success_and_says_so() -> None:
    end = end_of(described("Stopped", "Stopped"))
    assert (end.succeeded, end.stopped, end.ended_by_others) == (False, False, True)


@pytest.mark.parametrize(
    ("reason", "code", "words", "is_own_doing"),
    [
        ("AlgorithmError: , exit code: 3", 3, "exit code 3", False),
        ("AlgorithmError: ExecuteUserScriptError:\nExitCode 1\nErrorMessage, exit code: 1", 1, "exit code 1", False),
        ("AlgorithmError: , exit code: 137", 137, "SIGKILL", False),
        ("AlgorithmError: the container has no entry", None, "has no entry", True),
        ("ClientError: Artifact upload failed:Error 7", None, "Artifact upload failed", True),
        ("InternalServerError: We encountered an internal error. Please try again.", None, "internal error", False),
        ("CapacityError: Unable to provision requested ML compute capacity.", None, "Unable to provision", False),
    ],
)
def test_failed_job_tells_its_exit_code_or_whose_fault_it_is(
    reason: str, code: int | None, words: str, is_own_doing: bool
) -> None:
    end = end_of(described("Failed", "Failed", reason=reason))
    assert (end.exit_code, end.is_own_doing, end.succeeded) == (code, is_own_doing, False)
    assert words in end.describe()
    assert (end.error is None) is (code is not None)


def test_words_that_a_job_left_of_its_failure_are_kept() -> None:
    end = end_of(described("Failed", "Failed", reason="AlgorithmError: no such column 'age', exit code: 2"))
    assert end.warnings == ("SageMaker says: no such column 'age'",)


def test_job_whose_request_was_wrong_is_refused_before_it_ran() -> None:
    job = described("Failed", "Failed", reason="ClientError: Cannot pull the image", has_run=False)
    assert isinstance(status_of(job).refusal, SpecError)
    assert status_of({**job, "FailureReason": "InternalServerError: try again"}).refusal is None


@pytest.mark.parametrize("secondary", ["Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack"])
def test_job_that_does_not_run_yet_waits_with_sagemakers_words(secondary: str) -> None:
    steps = [{"Status": secondary, "StatusMessage": "Preparing the instances for training."}]
    found = status_of(described("InProgress", secondary, has_run=False, SecondaryStatusTransitions=steps))
    assert found.state is RemoteState.PENDING
    assert found.reason == f"{secondary}: Preparing the instances for training"


def test_interrupted_job_that_sagemaker_starts_again_runs_on_and_says_why_it_waits() -> None:
    found = status_of(described("InProgress", "Interrupted"))
    assert found.state is RemoteState.RUNNING
    assert "taken away; SageMaker starts the job again" in found.reason


async def test_end_of_a_job_that_was_stopped_while_it_ran_does_not_name_a_code_that_nobody_knows(
    world: SageMakerWorld,
) -> None:
    runner, plan = world.runner(), world.plan(SLEEP)
    handle = await started(runner, plan)
    await runner.stop(handle, 1.0)
    end = await runner.watch(handle, plan)
    assert (end.stopped, end.describe()) == (True, "its exit code is not known")


# --- names and identity ---


async def test_next_claims_take_the_next_names_and_a_late_one_never_runs_beside_them(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP)
    for claim in ("first", "second", "third"):
        await started(world.runner(), plan.model_copy(update={"labels": {**plan.labels, Labels.CLAIM: claim}}))
    name = world.name(plan)
    assert [(job.name, job.status) for job in world.aws.jobs.values()] == [
        (name, "Stopped"),
        (f"{name}-2", "Stopped"),
        (f"{name}-3", "InProgress"),
    ]


async def test_job_of_another_item_with_that_name_is_left_alone(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP)
    stranger = world.plan(SLEEP, labels={})
    await started(world.runner(), stranger.model_copy(update={"item_id": plan.item_id}))
    with pytest.raises(InfrastructureError, match="is not of this item"):
        await started(world.runner(), plan)
    assert [job.status for job in world.aws.jobs.values()] == ["InProgress"]


async def test_short_name_of_a_role_is_one_of_the_agents_account(world: SageMakerWorld) -> None:
    plan = world.plan(SUCCEED, options={"RoleArn": "training"})
    await run(world.runner(), plan)
    assert world.aws.jobs[world.name(plan)].request["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/training"


async def test_labels_come_back_from_the_tags_in_another_home(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP)
    await started(world.runner(), plan)
    elsewhere = QuickRunner(world.folder / "another-home")
    world.runners.append(elsewhere)
    [found] = await elsewhere.find({Labels.AGENT: "contract"})
    assert (found.name, found.labels) == (world.name(plan), plan.labels)


async def test_ended_job_is_kept_in_sagemaker_and_forgotten_here(world: SageMakerWorld) -> None:
    runner, plan = world.runner(), world.plan(SUCCEED)
    handle = await started(runner, plan)
    await runner.watch(handle, plan)
    assert [one.state for one in await world.runner().find({})] == [RunState.EXITED]
    await runner.remove(handle)
    assert await world.runner().find({}) == []
    assert world.aws.jobs[world.name(plan)].status == "Completed"


async def test_removed_run_leaves_nothing_in_the_agents_memory(world: SageMakerWorld) -> None:
    runner, plan = world.runner(), world.plan(SUCCEED)
    handle = await started(runner, plan)
    await runner.watch(handle, plan)
    await runner.remove(handle)
    await runner.poll([])  # Its last change is still in the lists.
    assert [kept for kept in vars(runner._jobs).values() if isinstance(kept, dict) and kept] == []


async def test_job_whose_answer_was_lost_is_the_run_though_the_next_try_finds_the_quota_used_up(
    world: SageMakerWorld,
) -> None:
    runner, plan = world.runner(), world.plan(SUCCEED)
    handle = await runner.create(plan)
    world.aws.lost_answers = 4
    with pytest.raises(UnreachableError):
        await runner.start(handle)
    world.aws.refusal = AwsError("ResourceLimitExceeded", "The limit 'ml.m5' is 2 Instances, in use 2.")
    await runner.start(handle)
    assert (await runner.watch(handle, plan)).succeeded
    assert len(world.aws.jobs) == 1


async def test_refused_job_is_not_taken_for_none_while_nobody_can_look_for_it(
    world: SageMakerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expire(given: dict[str, Any]) -> dict[str, Any]:
        raise AwsError("ExpiredTokenException", "The security token included in the request is expired")

    monkeypatch.setattr(world.aws, "describe_training_job", expire)
    world.aws.refusal = AwsError("ResourceLimitExceeded", "The limit 'ml.m5' is 2 Instances, in use 2.")
    with pytest.raises(UnreachableError, match="keys have expired"):
        await started(world.runner(), world.plan(SUCCEED))


# --- what the agent lacks ---


async def test_check_looks_at_identity_jobs_logs_and_outputs(world: SageMakerWorld) -> None:
    found = await world.runner().diagnose(normalise_options(QUEUE))

    assert [(one.name, one.is_ok) for one in found] == [
        *(("AWS", True), ("reachable", True), ("right to read logs", True), ("outputs in S3", True)),
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("describe_log_streams", r"logs of training jobs \(logs:DescribeLogStreams\)"),
        ("get_log_events", r"logs of training jobs \(logs:GetLogEvents\)"),
        ("", r"what is below s3://launch-outputs/launch \(s3:ListBucket\)"),
    ],
)
async def test_check_names_the_right_that_the_agent_lacks(
    world: SageMakerWorld, monkeypatch: pytest.MonkeyPatch, call: str, words: str
) -> None:
    def refuse(given: dict[str, Any]) -> dict[str, Any]:
        raise AwsError("AccessDeniedException", "not authorized")

    if call:
        monkeypatch.setattr(world.aws, call, refuse)
    else:
        world.aws.s3_refusal = AwsError("AccessDenied", "Access Denied")
    (lacked,) = [one for one in await world.runner().diagnose(normalise_options(QUEUE)) if not one.is_ok]

    assert re.search(f"AWS does not let the agent have {words}", lacked.detail)


# --- how often AWS is asked ---


async def test_many_jobs_cost_one_list_call_a_poll_and_a_description_each_change(world: SageMakerWorld) -> None:
    runner, plans = world.runner(), [world.plan(SLEEP) for _ in range(12)]
    world.aws.page_size = 5
    world.aws.runs_jobs = False
    names = [world.name(plan) for plan in plans]
    for plan in plans:
        await started(runner, plan)
    await runner.aclose()
    runner = world.runner()
    for job in world.aws.jobs.values():
        job.move("Training")
    assert {job.status.state for job in (await runner.poll(names)).values()} == {RemoteState.RUNNING}
    for job in world.aws.jobs.values():
        job.modified -= 600  # It was a while ago.
    await runner.poll(names)
    world.aws.calls.clear()
    await runner.poll(names)
    assert dict(world.aws.calls) == {"list_training_jobs": 1}
    world.aws.jobs[names[3]].move("Completed", status="Completed")
    world.aws.calls.clear()
    found = await runner.poll(names)
    assert [name for name, job in found.items() if job.status.state is RemoteState.ENDED] == [names[3]]
    assert dict(world.aws.calls) == {"list_training_jobs": 1, "describe_training_job": 1}


async def test_throttled_calls_are_made_again(world: SageMakerWorld) -> None:
    plan = world.plan(LOG)
    world.aws.throttled = 2
    assert (await run(world.runner(), plan)).succeeded
    assert world.aws.throttled == 0


async def test_account_that_throttles_on_counts_as_away(world: SageMakerWorld) -> None:
    world.aws.throttled = 1_000
    with pytest.raises(UnreachableError, match="Rate exceeded"):
        await world.runner().ping()


# --- what AWS refuses ---


@pytest.mark.parametrize(
    ("code", "message", "kind", "words"),
    [
        ("ValidationException", "Could not access S3.", SpecError, "refuses the job"),
        ("ResourceLimitExceeded", "The limit 'ml.p3' is 2 Instances, in use 2.", NoRoomError, "quota is used up"),
        ("ResourceLimitExceeded", "The limit 'ml.p3' is 0 Instances, in use 0.", SpecError, "has no quota"),
        ("AccessDeniedException", "not authorized: iam:PassRole", AgentConfigError, "iam:PassRole"),
    ],
)
async def test_refusal_says_who_must_act(
    world: SageMakerWorld, code: str, message: str, kind: type[Exception], words: str
) -> None:
    world.aws.refusal = AwsError(code, message)
    with pytest.raises(kind, match=words):
        await started(world.runner(), world.plan(SUCCEED))
    assert world.aws.jobs == {}
    assert not list((world.folder / "home" / "remote" / "sagemaker" / "jobs").iterdir())


async def test_job_that_expired_keys_refuse_can_be_submitted_once_they_are_renewed(world: SageMakerWorld) -> None:
    runner, plan = world.runner(), world.plan(SUCCEED)
    handle = await runner.create(plan)
    world.aws.refusal = AwsError("ExpiredTokenException", "The security token included in the request is expired")
    with pytest.raises(UnreachableError, match="keys have expired"):
        await runner.start(handle)
    world.aws.refusal = None
    await runner.start(handle)
    assert (await runner.watch(handle, plan)).succeeded
    assert len(world.aws.jobs) == 1


# --- logs ---


async def test_hosts_of_a_job_are_told_apart_in_its_log(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP, options={"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 2}})
    runner = world.runner()
    handle, job = await placed(world, plan, runner)
    world.aws.page_size = 2
    for number in (1, 2, 3):
        job.write("algo-1", f"a{number}")
        job.write("algo-2", f"b{number}")
    job.move("Training")
    job.move("Completed", status="Completed")
    end = await runner.watch(handle, plan)
    assert end.log_complete
    assert plan.log_path.read_text().splitlines() == [f"algo-{n}: {'ab'[n - 1]}{m}" for n in (1, 2) for m in (1, 2, 3)]


async def test_log_goes_on_behind_a_token_that_has_expired(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP)
    _, job = await placed(world, plan)
    job.move("Training")
    for text in ("one", "two"):
        job.write("algo-1", text)
    at = job.streams[next(iter(job.streams))][-1][0]
    for events in job.streams.values():
        events[:] = [(at, since, text) for _, since, text in events]  # Two of one moment.
    first = [part async for part in world.runner().read_logs(world.name(plan), None)]
    assert b"".join(part.content for part in first) == b"one\ntwo\n"
    world.aws.expire_tokens()
    for events in job.streams.values():
        events.append((at, 0.0, "three"))
    rest = [part async for part in world.runner().read_logs(world.name(plan), first[-1].position)]
    assert b"".join(part.content for part in rest) == b"three\n"


async def test_lines_that_come_to_the_log_after_the_end_are_kept(world: SageMakerWorld) -> None:
    runner, plan = world.runner(), world.plan(LOG)
    world.aws.log_lag = 0.5
    runner.settle_seconds = 2.0  # type: ignore[misc]
    await run(runner, plan)
    assert len(plan.log_path.read_bytes().splitlines()) == 3


# --- outputs ---


def packed(**files: bytes) -> bytes:
    """Return an archive; a value that begins with `->` is a link."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            if content.startswith(b"->"):
                member.type, member.linkname = tarfile.SYMTYPE, content[2:].decode()
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


async def ended_with(world: SageMakerWorld, plan: RunPlan, archive: bytes) -> ExitStatus:
    runner = world.runner()
    handle, job = await placed(world, plan, runner)
    world.aws.objects[f"{BUCKET}/launch/{job.name}/output/output.tar.gz"] = archive
    job.move("Training")
    job.move("Completed", status="Completed")
    return await runner.watch(handle, plan)


async def test_nothing_of_an_archive_gets_out_of_the_outputs_folder(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP)
    bad = {"..__..__evil": b"x", "__etc__evil": b"x", "data__link": b"->/etc/passwd", "data__..__..__up": b"x"}
    end = await ended_with(world, plan, packed(success=b"", data__good=b"1", **bad))
    assert [path.name for path in plan.output_dir.iterdir()] == ["good"]
    assert end.left_out.count == 4
    assert not list(world.folder.rglob("evil"))


async def test_results_are_kept_where_other_files_fill_the_limit(world: SageMakerWorld) -> None:
    plan = world.plan(SLEEP).model_copy(update={"output_limits": OutputLimits(max_bytes=10)})
    end = await ended_with(
        world, plan, packed(data__a=b"12345678", data__b=b"12345678", **{"data__outputs.json": b"{}"})
    )
    assert sorted(path.name for path in plan.output_dir.iterdir()) == ["a", "outputs.json"]
    assert (end.left_out.count, end.left_out.over_limit) == (1, True)


async def test_archive_that_is_cut_off_costs_the_outputs_and_not_the_end(world: SageMakerWorld) -> None:
    end = await ended_with(world, world.plan(SLEEP), packed(data__a=b"1" * 100_000)[:60])
    assert end.succeeded
    assert "the outputs are not kept" in end.warnings[0]


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
@pytest.mark.parametrize("fault", ["refused", "broken off"])
async def test_outputs_that_s3_does_not_hand_over_cost_the_outputs_and_not_the_end(
    world: SageMakerWorld, compression: str, fault: str
) -> None:
    place = {"S3OutputPath": f"s3://{BUCKET}/launch", "CompressionType": compression}
    plan = world.plan(SLEEP, options={"OutputDataConfig": place})
    world.aws.objects[f"{BUCKET}/launch/{world.name(plan)}/output/data/a"] = b"1" * 100_000
    world.aws.s3_refusal = AwsError("AccessDenied", "Access Denied") if fault == "refused" else None
    world.aws.is_cut = fault == "broken off"
    end = await ended_with(world, plan, packed(data__a=random.Random(1).randbytes(100_000)))
    assert end.succeeded
    assert "the outputs are not kept" in end.warnings[0]


async def test_outputs_that_are_not_packed_come_back_too(world: SageMakerWorld) -> None:
    place = {"S3OutputPath": f"s3://{BUCKET}/launch", "CompressionType": "NONE"}
    plan = world.plan(SLEEP, options={"OutputDataConfig": place})
    for name in ("outputs.json", "deep/file"):
        world.aws.objects[f"{BUCKET}/launch/{world.name(plan)}/output/data/{name}"] = b"{}"
    await ended_with(world, plan, b"")
    assert sorted(str(path.relative_to(plan.output_dir)) for path in plan.output_dir.rglob("*")) == [
        "deep",
        "deep/file",
        "outputs.json",
    ]


async def test_failed_job_has_its_outputs_and_its_exit_code(world: SageMakerWorld) -> None:
    plan = world.plan('echo "{}" > "$LAUNCH_OUTPUT_DIR/outputs.json"; ' + FAIL)
    end = await run(world.runner(), plan)
    assert (end.exit_code, end.warnings) == (3, ())
    assert (plan.output_dir / "outputs.json").exists()
