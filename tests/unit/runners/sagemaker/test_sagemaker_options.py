"""Options of SageMaker's runner: what a queue says, who may set it, and the training job that is made of it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import create_job, launch_add
from prefect_launch.client.api import use_api
from prefect_launch.core.masking import Mask
from prefect_launch.errors import LaunchError, QueueError, SpecError, UnsafeSpecError
from prefect_launch.planning.environment import chunked
from prefect_launch.policy.limits import check_fixed
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.registry import runner_class
from prefect_launch.runners.remote.sagemaker import options as sagemaker_options
from prefect_launch.runners.remote.sagemaker.request import label_value, role_arn, tag_value, training_job
from prefect_launch.runners.remote.sagemaker.runner import SageMakerRunner
from prefect_launch.spec.option_names import normalise_option, normalise_options
from prefect_launch.testing import InMemoryApi
from tests.support.queue_config import make_config
from tests.support.sagemaker import IMAGE, QUEUE, ROLE


def plan_of(tmp_path: Path, options: dict[str, Any] | None = None, **changes: Any) -> RunPlan:
    """Return a plan of a job with an image."""
    given = {"image": IMAGE, "command": ("python", "train.py"), "labels": {Labels.CLAIM: "c1"}, **changes}
    checked = SageMakerRunner.check_options({**QUEUE, **(options or {})})
    return RunPlan(item_id="item", run_id="run", run_dir=tmp_path, options=checked, **given)


def test_job_with_a_base_image_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    api = InMemoryApi(entity="acme")
    (tmp_path / "train.py").write_text("print(1)\n")
    with use_api(api):
        api.create_run_queue("aws", "sagemaker", config=QUEUE)
        create_job(str(tmp_path), "code", name="train", entrypoint="python train.py", base_image="python:3.12")
        with pytest.raises(SpecError, match=r"in the image 'python:3.12' as it is, and SageMaker takes no code"):
            launch_add(job="train", queue_name="aws")
        assert list(api.items(queue="aws")) == []


@pytest.mark.parametrize(("image", "is_queued"), [("team/train:1", False), ("${image_uri}", True)])
def test_job_of_code_is_refused_where_the_queue_names_an_image_of_its_own(
    tmp_path: Path, image: str, is_queued: bool
) -> None:
    api = InMemoryApi(entity="acme")
    algorithm = {"TrainingImage": image, "TrainingInputMode": "File"}
    (tmp_path / "train.py").write_text("print(1)\n")
    with use_api(api):
        api.create_run_queue("aws", "sagemaker", config={**QUEUE, "AlgorithmSpecification": algorithm})
        create_job(str(tmp_path), "code", name="train", entrypoint="python train.py")
        refusal = pytest.raises(SpecError, match=r"in the image 'team/train:1' as it is, and SageMaker takes no code")
        with nullcontext() if is_queued else refusal:
            launch_add(job="train", queue_name="aws")
        launch_add(docker_image="other:2", queue_name="aws")
        assert len(list(api.items(queue="aws"))) == 1 + is_queued
    assert SageMakerRunner.own_image({"algorithm-specification": algorithm}) == (None if is_queued else image)


def with_resources(**resources: Any) -> dict[str, Any]:
    """Return the queue's options with other resources."""
    return {**deepcopy(QUEUE), "ResourceConfig": {**QUEUE["ResourceConfig"], **resources}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"region": "eu-west-1"}, r"'region' of sagemaker is not read: who the agent is at AWS .*clouds.aws"),
        ({"profile": "mine"}, "'profile' of sagemaker is not read"),
        ({"EcrRepoName": "train"}, "'ecr-repo-name' of sagemaker is not read: .*builder.destination"),
        ({"TrainingJobName": "mine"}, "a job's name comes from its item and attempt"),
        ({"resource_confg": {}}, "Unknown option 'resource-confg'.*resource-config"),
        ({"ResourceConfig": {}, "resource_config": {}}, "given twice, as .ResourceConfig. and .resource_config."),
        ({"RoleArn": 7}, "option 'RoleArn': 7: it must be text"),
        ({"HyperParameters": {"a": [1]}}, "'HyperParameters': the keys a: 'a' must be text or a number"),
        ({"ResourceConfig": {"InstanceCount": "two"}}, r"Invalid type for parameter ResourceConfig.InstanceCount"),
        ({"OutputDataConfig": {"S3Path": "s3://b"}}, r'Missing required parameter in OutputDataConfig: "S3OutputPath"'),
        ({"VpcConfig": {"Subnets": ["a"]}}, r'Missing required parameter in VpcConfig: "SecurityGroupIds"'),
        ({"RoleArn": None}, r"needs resource_args.sagemaker.RoleArn, .*in the queue's config"),
        ({"OutputDataConfig": None}, r"needs resource_args.sagemaker.OutputDataConfig"),
        ({"OutputDataConfig": {"S3OutputPath": "/data"}}, r"S3OutputPath is '/data': it must be a place in S3"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "File", "AlgorithmName": "x"}}, "AlgorithmName says what a"),
        ({"AlgorithmSpecification": {"TrainingImage": "${image_ur}"}}, r"'\$\{image_ur\}'.*mean \$\{image_uri\}\?"),
    ],
)
def test_wrong_option_is_refused_when_the_queue_is_made(options: dict[str, Any], words: str) -> None:
    given = {name: value for name, value in {**QUEUE, **options}.items() if value is not None}
    with pytest.raises(LaunchError, match=words):
        make_config("sagemaker", given)


def test_options_of_a_wandb_queue_are_taken_in_small_letters() -> None:
    small = {"role_arn": "training", "output_data_config": QUEUE["OutputDataConfig"], "stopping_condition": {}}
    found = make_config("sagemaker", {**small, "resource_config": QUEUE["ResourceConfig"]})
    assert sagemaker_options.read_fields(found.resource_args).keys() == QUEUE.keys()


@pytest.mark.parametrize("field", sorted(QUEUE))
def test_field_that_a_job_must_have_is_named(tmp_path: Path, field: str) -> None:
    plan = plan_of(tmp_path)
    lacking = {name: one for name, one in plan.options.items() if name != normalise_option(field)}
    with pytest.raises(SpecError, match=f"needs resource_args.sagemaker.{field}"):
        runner_class("sagemaker")(tmp_path).check(plan.model_copy(update={"options": lacking}))


def test_machine_without_botocore_leaves_the_shapes_to_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**QUEUE, "ResourceConfig": {"InstanceCount": "two"}}
    with pytest.raises(QueueError):
        make_config("sagemaker", wrong)
    sagemaker_options._model.cache_clear()
    for name in ("botocore.loaders", "botocore.model"):
        monkeypatch.setitem(sys.modules, name, None)
    try:
        assert make_config("sagemaker", wrong)
    finally:
        sagemaker_options._model.cache_clear()


def test_request_has_the_jobs_command_environment_and_tags(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        {
            "Environment": {"MODE": "mine", "BOTH": "first"},
            "env": {"BOTH": "last"},
            "Tags": [{"Key": "t", "Value": "v"}],
        },
        args=("--lr", "0.5"),
        env={"MODE": "launch", "LAUNCH_OUTPUT_DIR": "/agent"},
        working_dir="src",
    )
    made = training_job(plan, plan.name, ROLE)
    algorithm = made["AlgorithmSpecification"]
    assert (algorithm["TrainingImage"], algorithm["TrainingInputMode"]) == (IMAGE, "File")
    assert algorithm["ContainerEntrypoint"][3:] == ["src", "python", "train.py"]
    assert algorithm["ContainerArguments"] == ["--lr", "0.5"]
    expected = {"MODE": "mine", "BOTH": "first", "LAUNCH_OUTPUT_DIR": "/opt/ml/output/data"}
    assert made["Environment"].items() >= expected.items()
    assert made["Tags"] == [{"Key": "t", "Value": "v"}, {"Key": Labels.CLAIM, "Value": "c1"}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": {"LONG": "x" * 513}}, "'LONG' has 513 characters; SageMaker takes 512"),
        ({"env": {"a.b": "1"}}, "'a.b' cannot be set on SageMaker"),
        ({"env": {f"V{number}": "" for number in range(101)}}, "SageMaker takes 100"),
        ({"args": ("x" * 257,)}, "has 257 characters .*SageMaker takes one line of 256"),
        ({"args": ("a\nb",)}, "has several lines"),
        ({"args": ("a",) * 101}, "101 arguments; SageMaker takes"),
        ({"image": None}, "needs an image. Name one"),
        ({"code_dir": Path("code")}, "SageMaker takes no code into an image that is there"),
        ({"file_overrides": {"a.yaml": {}}}, "overrides.files changes a.yaml"),
        ({"is_agent_program": True}, "Give the sweep a queue of the resource local-process"),
    ],
)
def test_what_sagemaker_cannot_run_is_refused_with_the_next_step(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        SageMakerRunner(tmp_path).check(plan_of(tmp_path, **changes))


def test_config_is_cut_into_pieces_that_sagemaker_takes() -> None:
    most = runner_class("sagemaker").variable_bytes
    config = json.dumps({"text": "ü" * 800})
    pieces = chunked("LAUNCH_CONFIG", config, most or 0)
    assert "".join(pieces.values()) == config
    assert max(map(len, pieces.values())) <= 512


def test_secrets_are_refused_where_aws_would_show_them_and_the_owner_has_not_allowed_it(tmp_path: Path) -> None:
    secret: dict[str, Any] = {"mask": Mask(["s3cr3t"]), "env": {"TOKEN": "s3cr3t"}}
    with pytest.raises(QueueError, match=r"secrets \(TOKEN\).*sagemaker.secrets = true.*Secrets Manager"):
        SageMakerRunner(tmp_path).check(plan_of(tmp_path, **secret))
    SageMakerRunner(tmp_path).check(plan_of(tmp_path, {"secrets": True}, **secret))
    with pytest.raises(QueueError, match=r"secrets \(its options\)"):
        SageMakerRunner(tmp_path).check(
            plan_of(tmp_path, {"HyperParameters": {"key": "s3cr3t"}}, mask=Mask(["s3cr3t"]))
        )
    assert "secrets" not in SageMakerRunner.submitter_options


@pytest.mark.parametrize("label", ["plain", "a b,c & d=e", "100%", "ü/é", "=41"])
def test_any_label_comes_back_from_its_tag(label: str) -> None:
    assert label_value(tag_value(label)) == label


@pytest.mark.parametrize("role", ["", "a b", "arn:aws:iam::1:role/x", "arn:aws:s3:::bucket"])
def test_text_that_is_no_role_is_refused(role: str) -> None:
    with pytest.raises(SpecError, match="must be a role's ARN"):
        role_arn(role)


# --- who may set what ---


@pytest.mark.parametrize("name", ["RoleArn", "output_data_config", "VpcConfig", "Tags", "AlgorithmSpecification"])
def test_role_network_and_places_are_the_owners(name: str) -> None:
    small = normalise_option(name)
    assert small in SageMakerRunner.options - SageMakerRunner.submitter_options


def test_submitter_chooses_no_warm_pool_and_no_plan() -> None:
    with pytest.raises(
        UnsafeSpecError, match=r"ResourceConfig.KeepAlivePeriodInSeconds may be set by the queue's owner"
    ):
        SageMakerRunner.check_submitter_options({"resource-config": {"KeepAlivePeriodInSeconds": 60}})
    SageMakerRunner.check_submitter_options({"resource-config": {"InstanceType": "ml.m5.large"}})


def test_type_of_an_instance_needs_a_list_to_choose_from_and_their_number_does_not() -> None:
    text = {"v": {"type": "string"}}
    with pytest.raises(QueueError, match="only the queue's owner may"):
        make_config("sagemaker", with_resources(InstanceType="{{v}}"), text)
    assert make_config("sagemaker", with_resources(InstanceType="{{v}}"), {"v": {"type": "string", "enum": ["ml.g5"]}})
    assert make_config("sagemaker", with_resources(InstanceCount="{{v}}"), {"v": {"type": "integer"}})


def test_limits_bound_instances_volumes_and_runtime() -> None:
    limits = {"instance_count": 4, "volume_size_in_gb": 100, "max_runtime_in_seconds": 7200}
    assert make_config("sagemaker", {**QUEUE, "limits": limits})
    for wrong in (with_resources(InstanceCount=5), with_resources(InstanceCount=2, VolumeSizeInGB=51)):
        with pytest.raises(QueueError, match="is allowed on this queue"):
            make_config("sagemaker", {**wrong, "limits": limits})
    groups = [{"InstanceType": "ml.m5.large", "InstanceCount": 3, "InstanceGroupName": name} for name in "ab"]
    with pytest.raises(QueueError, match="asks for 6 of 'instance-count'"):
        make_config("sagemaker", {**QUEUE, "ResourceConfig": {"InstanceGroups": groups}, "limits": limits})


def test_variable_that_the_queue_sets_is_fixed_in_either_place() -> None:
    for place in ("Environment", "env"):
        config = make_config("sagemaker", {**QUEUE, place: {"MODE": "safe"}})
        with pytest.raises(UnsafeSpecError, match=r"'env.MODE' is set by the queue"):
            check_fixed({"env": {"MODE": "other"}}, config, SageMakerRunner)
    assert "environment" not in SageMakerRunner.submitter_options


def test_field_that_the_queue_sets_is_fixed_in_any_spelling() -> None:
    config = make_config("sagemaker", QUEUE)
    for name in ("ResourceConfig", "resource_config", "resource-config"):
        options = normalise_options({name: {}})
        with pytest.raises(UnsafeSpecError, match="'resource-config' is set by the queue and cannot be given"):
            check_fixed(options, config, SageMakerRunner)


def test_preview_tells_no_values_of_variables_among_the_fields(tmp_path: Path) -> None:
    made = SageMakerRunner.preview(plan_of(tmp_path, env={"TOKEN": "value"}))
    assert made.pop("env")["TOKEN"] == "value"
    assert "value" not in str(made)


def test_each_field_that_botocore_knows_of_is_one_of_the_options_or_the_runners_own() -> None:
    own = {"TrainingJobName", "ServerlessJobConfig"}
    shape = sagemaker_options._model()
    assert set(shape.members) - own == set(sagemaker_options._FIELDS)
    assert {normalise_option(field) for field in sagemaker_options._FIELDS} < SageMakerRunner.options


def test_field_that_aws_adds_later_is_known_under_one_name_too() -> None:
    assert normalise_option("QuantumSpinConfig") == normalise_option("quantum_spin_config") == "quantum-spin-config"
    assert (normalise_option("--Shm_Size"), normalise_option("apiVersion")) == ("shm-size", "apiversion")
