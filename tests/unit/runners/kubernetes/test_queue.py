"""Queues of `kubernetes` as people use them: creating one, queuing an item, a dry run, an agent's plan."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import explain_launch
from prefect_launch.errors import LaunchError, QueueError, SpecError, UnsafeSpecError
from prefect_launch.planning.plan import Request, preview_plan
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.registry import runner_class
from prefect_launch.runners.remote.kubernetes.options import check_submitter_options
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.spec.option_names import normalise_options
from prefect_launch.testing import InMemoryApi
from tests.support.queue_config import make_config
from tests.unit.runners.kubernetes.plans import job_options, pod_manifest


def queue(config: dict[str, Any], variables: dict[str, Any] | None = None, **more: Any) -> QueueConfig:
    """Return the config of a queue."""
    return make_config("kubernetes", config, variables, **more)


def plan(config: QueueConfig, **asked: Any) -> RunPlan:
    """Return what an agent makes of an item of an image, with these options of its submitter."""
    variables = asked.pop("variables", {})
    spec = {
        "docker": {"docker_image": "registry.example.com/train:1"},
        "resource_args": {"kubernetes": asked},
        "template_variables": variables,
    }
    request = Request(spec=parse_spec(spec), item_id="i1", queue="q", config=config)
    return asyncio.run(preview_plan(request, MachineSettings(home=Path("/h")), None))


def test_manifest_of_the_reference_is_taken_with_its_variables_and_macros() -> None:
    pod = pod_manifest(image="${image_uri}", resources={"limits": {"cpu": "{{cpus}}", "memory": "{{memory}}"}})
    config = queue(
        {"resource_args": {"kubernetes": job_options(pod)}},
        {"cpus": {"type": "integer", "maximum": 4}, "memory": {"type": "string", "default": "1Gi"}},
    )

    made = plan(config, variables={"cpus": 2})

    container = made.options["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example.com/train:1"
    assert container["resources"]["limits"] == {"cpu": 2, "memory": "1Gi"}
    assert runner_class("kubernetes").preview(made)["manifest"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize(
    "config",
    [
        {"namspace": "x"},
        {"memory": "2x"},
        job_options(backoffLimt=1),
        job_options({"spec": {"containers": []}}),
        {"spec": {}},
    ],
)
def test_queue_that_no_cluster_would_take_is_not_made(config: dict[str, Any]) -> None:
    with pytest.raises(LaunchError):
        queue(config)


def test_submitter_sets_how_much_the_job_gets_and_nothing_else() -> None:
    config = queue({"namespace": "ml"})

    assert plan(config, cpus=2, m="2g", env={"A": "1"}).options["memory"] == "2g"
    with pytest.raises(UnsafeSpecError, match=r"resource_args\.kubernetes option 'namespace' is for a queue's owner"):
        plan(config, namespace="kube-system")


def test_field_that_reaches_out_of_its_pod_is_refused_though_the_owner_allows_the_spec() -> None:
    config = queue({"namespace": "ml"}, submitter_options=("spec",))
    pod = {"spec": {**pod_manifest()["spec"], "hostNetwork": True}}

    with pytest.raises(UnsafeSpecError, match=r"spec\.template\.spec\.hostNetwork"):
        plan(config, spec={"template": pod})


def test_maximum_of_a_queue_holds_for_a_manifest_and_all_its_pods() -> None:
    pod = pod_manifest(resources={"limits": {"cpu": 1, "memory": "4Gi"}})

    with pytest.raises(QueueError, match=r"16.0 GiB \(in 4 pods\)"):
        queue({**job_options(pod, parallelism=4), "limits": {"memory": "8g"}})


def test_submitters_manifest_may_ask_for_no_more_than_the_queue_allows() -> None:
    config = queue({"limits": {"memory": "8g"}}, submitter_options=("spec",))
    big = pod_manifest(resources={"limits": {"cpu": 1, "memory": "64Gi"}})

    with pytest.raises(UnsafeSpecError, match=r"64\.0 GiB"):
        plan(config, spec={"template": big})
    assert plan(config, spec={"template": pod_manifest()}).options["memory"] == "8g"


def test_run_that_asks_for_nothing_gets_the_queues_maximum() -> None:
    assert plan(queue({"limits": {"memory": "8g", "cpus": 2}})).options == {"memory": "8g", "cpus": 2}


def resources_of(made: RunPlan) -> dict[str, Any]:
    manifest = runner_class("kubernetes").preview(made)["manifest"]
    return dict(manifest["spec"]["template"]["spec"]["containers"][0]["resources"])


def test_queues_maximum_is_a_limit_and_no_request_of_a_run_that_asks_for_nothing() -> None:
    config = queue({"limits": {"memory": "100g", "cpus": 64}})

    assert resources_of(plan(config, cpus=0.5)) == {
        "limits": {"cpu": "500m", "memory": "100Gi"},
        "requests": {"cpu": "500m", "memory": "0"},
    }
    assert resources_of(plan(config, cpus=1, memory="2g"))["requests"] == {"cpu": "1", "memory": "2Gi"}


@pytest.mark.parametrize(("asked", "kept"), [("1Gi", "1Gi"), ("200Gi", "100Gi")])
def test_queues_maximum_leaves_a_request_of_the_manifest_as_it_is_or_lowers_it(asked: str, kept: str) -> None:
    pod = pod_manifest(resources={"requests": {"memory": asked}})

    made = plan(queue({**job_options(pod), "limits": {"memory": "100g"}}))

    assert resources_of(made) == {"limits": {"memory": "100Gi"}, "requests": {"memory": kept}}


def test_run_of_several_pods_that_asks_for_nothing_is_told_to_ask() -> None:
    with pytest.raises(QueueError, match=r"asks for no 'memory': with the queue's limit it is 16\.0 GiB \(in 4 pods\)"):
        queue({**job_options(pod_manifest(), parallelism=4), "limits": {"memory": "4g"}})


def test_dry_run_names_secrets_and_shows_none() -> None:
    config = queue({"env": {"TOKEN": "{{ prefect.blocks.secret.hf-token }}", "MODE": "quiet-mode"}})

    shown = json.dumps(runner_class("kubernetes").preview(plan(config)))

    assert "quiet-mode" not in shown


def test_dry_run_of_an_item_shows_no_value_of_a_manifests_variables(job_api: InMemoryApi) -> None:
    pod = pod_manifest(image="${image_uri}", env=[{"name": "OWN", "value": "owner-value"}])
    job_api.create_run_queue("k8s", type="kubernetes", config=job_options(pod))

    of_image = explain_launch(docker_image="registry.example.com/a:1", queue_name="k8s")
    of_code = explain_launch(job="train", queue_name="k8s", config={"overrides": {"run_config": {"lr": 0.1}}})

    assert of_image.creates["manifest"]["spec"]["template"]["spec"]["containers"][0]["env"][-1] == "OWN"
    assert "owner-value" not in of_image.model_dump_json()
    assert of_code.builds


# --- what a submitter's value may be filled into ---


def pod_with(**spec: Any) -> dict[str, Any]:
    """Return a pod template with these fields in its spec."""
    return {"spec": {**pod_manifest()["spec"], **spec}}


def of_pvc(name: str) -> dict[str, Any]:
    return {"name": "data", "persistentVolumeClaim": {"claimName": name}}


SERVICE = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db"}}
RAY_JOB = {"apiVersion": "ray.io/v1", "kind": "RayJob"}
OWNERS_PLACES: list[tuple[str, dict[str, Any]]] = [
    ("namespace", {"namespace": "{{v}}"}),
    ("context", {"context": "team-{{v}}"}),
    ("service-account", {"service_account": "{{v}}"}),
    ("image-pull-secret[0]", {"image_pull_secret": ["{{v}}"]}),
    ("node-selector.pool", {"node_selector": {"pool": "{{v}}"}}),
    ("tolerations[0]", {"tolerations": ["{{v}}"]}),
    ("priority-class", {"priority_class": "{{v}}"}),
    ("volumes[0]", {"volumes": ["{{v}}:/data"]}),
    ("volumes[0]", {"volumes": ["/data/{{v}}:/data"]}),
    ("volumes[0].hostPath.path", {"volumes": [{"hostPath": {"path": "/data/{{v}}"}, "mountPath": "/data"}]}),
    ("metadata.namespace", {**job_options(), "metadata": {"namespace": "{{v}}"}}),
    ("annotations.iam.example.com/role", {"annotations": {"iam.example.com/role": "{{v}}"}}),
    ("spec.template.spec.serviceAccountName", job_options(pod_with(serviceAccountName="{{v}}"))),
    ("spec.template.spec.nodeName", job_options(pod_with(nodeName="{{v}}"))),
    ("spec.template.spec.hostNetwork", job_options(pod_with(hostNetwork="{{v}}"))),
    ("spec.template.spec.imagePullSecrets[0].name", job_options(pod_with(imagePullSecrets=[{"name": "{{v}}"}]))),
    ("spec.template.spec.volumes[0].persistentVolumeClaim.claimName", job_options(pod_with(volumes=[of_pvc("{{v}}")]))),
    (
        "spec.template.spec.volumes[0].hostPath.path",
        job_options(pod_with(volumes=[{"name": "data", "hostPath": {"path": "{{v}}"}}])),
    ),
    (
        "spec.template.spec.containers[0].securityContext.runAsUser",
        job_options(pod_manifest(securityContext={"runAsUser": "{{v}}"})),
    ),
    (
        "spec.template.spec.containers[0].envFrom[0].secretRef.name",
        job_options(pod_manifest(envFrom=[{"secretRef": {"name": "{{v}}"}}])),
    ),
    (
        "spec.template.spec.containers[1].args[0]",
        job_options({"spec": {"containers": [{"name": "main"}, {"name": "side", "args": ["{{v}}"]}]}}),
    ),
    (
        "spec.rayClusterSpec.headGroupSpec.template.spec.serviceAccountName",
        {
            **RAY_JOB,
            "spec": {"rayClusterSpec": {"headGroupSpec": {"template": pod_with(serviceAccountName="{{v}}")}}},
        },
    ),
    (
        "additional-services[0].config.spec.selector.app",
        {"additional_services": [{"config": {**SERVICE, "kind": "Service", "spec": {"selector": {"app": "{{v}}"}}}}]},
    ),
    (
        "spec.template.spec.topologySpreadConstraints[0].labelSelector.matchLabels.app",
        job_options(
            pod_with(
                topologySpreadConstraints=[
                    {
                        **{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
                        "labelSelector": {"matchLabels": {"app": "{{v}}"}},
                    }
                ]
            )
        ),
    ),
    (
        "additional-services[0].config.spec.serviceAccountName",
        {"additional_services": [{"config": {**SERVICE, **pod_with(serviceAccountName="{{v}}")}}]},
    ),
    (
        "additional-services[0].metadata.namespace",
        {"additional_services": [{**SERVICE, "metadata": {"namespace": "{{v}}"}}]},
    ),
    ("kind", {**job_options(), "kind": "{{v}}"}),
]


@pytest.mark.parametrize(("place", "config"), OWNERS_PLACES)
def test_variable_without_a_rule_chooses_nothing_that_is_the_owners(place: str, config: dict[str, Any]) -> None:
    with pytest.raises(QueueError) as refused:
        queue(config, {"v": {"type": "string"}})

    assert f"The queue's {place} is " in str(refused.value)
    assert "an enum or a pattern" in str(refused.value)


@pytest.mark.parametrize(("place", "config"), OWNERS_PLACES)
def test_agent_refuses_the_value_of_a_queue_that_an_older_version_made(place: str, config: dict[str, Any]) -> None:
    made = QueueConfig(
        resource="kubernetes",
        resource_args=normalise_options(config),
        template_variables={"v": {"type": "string", "default": "team"}},
    )

    with pytest.raises(UnsafeSpecError) as refused:
        plan(made, variables={"v": "other"})

    assert f"'v' cannot be 'other' on this queue, which puts it into {place}: " in str(refused.value)


@pytest.mark.parametrize("rule", [{"enum": ["vision", "speech"]}, {"pattern": "[a-z]+"}])
def test_owner_says_which_namespaces_a_submitter_may_choose(rule: dict[str, Any]) -> None:
    config = queue({"namespace": "{{team}}"}, {"team": {"type": "string", **rule}})

    assert plan(config, variables={"team": "vision"}).options["namespace"] == "vision"
    with pytest.raises(SpecError, match="'team' of queue 'q' cannot be 'kube-system'"):
        plan(config, variables={"team": "kube-system"})


def test_macro_of_a_submitters_choice_stands_in_no_place_of_the_owners() -> None:
    with pytest.raises(QueueError, match=r"namespace is 'team-\$\{author\}'.*by the macro \$\{author\}"):
        queue({"namespace": "team-${author}"})
    assert queue({"namespace": "queue-${queue_name}", "labels": {"by": "${author}"}})


def test_value_of_the_default_is_the_owners() -> None:
    made = QueueConfig(
        resource="kubernetes",
        resource_args={"namespace": "{{ns}}"},
        template_variables={"ns": {"type": "string", "default": "ml"}},
    )

    assert plan(made).options["namespace"] == plan(made, variables={"ns": "ml"}).options["namespace"] == "ml"


def test_option_that_the_owner_allows_takes_a_variable_too() -> None:
    config = queue({"namespace": "{{ns}}"}, {"ns": {"type": "string"}}, submitter_options=("namespace",))

    assert plan(config, variables={"ns": "other"}).options["namespace"] == "other"


def test_unsafe_field_takes_no_variable_though_the_owner_allows_the_spec() -> None:
    config = queue(
        job_options(pod_with(serviceAccountName="{{v}}")), {"v": {"type": "string"}}, submitter_options=("spec",)
    )

    with pytest.raises(UnsafeSpecError, match=r"spec\.template\.spec\.serviceAccountName"):
        plan(config, variables={"v": "admin"})


def test_how_much_a_job_gets_its_variables_and_labels_are_free() -> None:
    pod = pod_manifest(
        image="registry.example.com/{{v}}:1",
        args=["--name", "{{v}}"],
        env=[{"name": "NAME", "value": "{{v}}"}],
        resources={"limits": {"cpu": "{{n}}", "memory": "{{n}}Gi"}},
        volumeMounts=[{"name": "data", "mountPath": "/data", "subPath": "{{v}}"}],
    )
    pod["spec"]["volumes"] = [of_pvc("shared")]
    pod["metadata"] = {"labels": {"team": "{{v}}"}}
    variables = {"v": {"type": "string"}, "n": {"type": "integer"}}
    config = queue(job_options(pod, parallelism="{{n}}", activeDeadlineSeconds="{{n}}"), variables)

    made = plan(config, variables={"v": "vision", "n": 2})

    assert made.options["spec"]["template"]["metadata"] == {"labels": {"team": "vision"}}
    for value in ("../other", "/", ""):
        with pytest.raises(UnsafeSpecError, match="'v' cannot be"):
            plan(config, variables={"v": value, "n": 2})


# --- what a submitter gives in options that the owner allows ---


@pytest.mark.parametrize(
    ("allowed", "asked", "place"),
    [
        ("metadata", {"metadata": {"namespace": "kube-system"}}, "metadata.namespace"),
        ("metadata", {"metadata": {"ownerReferences": []}}, "metadata.ownerReferences"),
        ("metadata", {"metadata": {"finalizers": ["a.io/b"]}}, "metadata.finalizers"),
        ("spec", {"spec": {"template": pod_with(priorityClassName="urgent")}}, "priorityClassName"),
        ("spec", {"spec": {"template": pod_with(volumes=[{"name": "a", "secret": {"secretName": "b"}}])}}, "secret"),
        ("spec", {"spec": {"template": pod_manifest(envFrom=[{"secretRef": {"name": "x"}}])}}, "secretRef"),
        ("volumes", {"volumes": "/etc:/host"}, "volumes[0]"),
        (
            "additional-services",
            {"additional_services": [{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}]},
            "kind",
        ),
        (
            "additional-services",
            {"additional_services": [{"config": {**SERVICE, "kind": "Service", "spec": {"type": "NodePort"}}}]},
            "spec.type",
        ),
        (
            "additional-services",
            {
                "additional_services": [
                    {
                        "apiVersion": "v1",
                        "kind": "Secret",
                        "metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "admin"}},
                    }
                ]
            },
            "kubernetes.io/service-account.name",
        ),
    ],
)
def test_option_that_the_owner_allows_opens_no_way_out_of_the_jobs_pod(
    allowed: str, asked: dict[str, Any], place: str
) -> None:
    with pytest.raises(UnsafeSpecError, match="is not allowed: found") as refused:
        check_submitter_options(normalise_options(asked))

    assert place in str(refused.value)
    assert allowed.replace("-", "_") in asked


def test_option_of_an_account_that_the_owner_allows_by_name_may_be_given() -> None:
    config = queue({}, submitter_options=("service_account", "priority_class", "namespace"))

    assert plan(config, service_account="trainer", namespace="ml").options["service-account"] == "trainer"


# --- what the queue's manifest sets is the owner's ---


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"cpus": 64}, "option 'cpus' is set by the queue (at spec.template.spec.containers[0].resources.limits.cpu)"),
        ({"memory": "1Ti"}, "option 'memory' is set by the queue"),
        ({"gpus": 8}, "option 'gpus' is set by the queue"),
        ({"env": {"MODE": "x"}}, "option 'env.MODE' is set by the queue (at spec.template.spec.containers[0].env)"),
        ({"shm_size": "1g"}, "option 'shm-size' is set by the queue"),
    ],
)
def test_what_the_queues_manifest_sets_is_not_the_submitters_to_change(asked: dict[str, Any], place: str) -> None:
    shm = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    pod = pod_manifest(
        resources={"limits": {"cpu": 2, "nvidia.com/mig-1g.5gb": 1}, "requests": {"cpu": 1, "memory": "{{memory}}"}},
        env=[{"name": "MODE", "value": "quiet"}],
        volumeMounts=[{"name": "shm", "mountPath": "/dev/shm/"}],
    )
    pod["spec"]["volumes"] = [shm]
    config = queue(job_options(pod), {"memory": {"type": "string", "default": "1Gi"}})
    name = next(iter(asked))

    with pytest.raises(UnsafeSpecError) as refused:
        plan(config, **asked)

    assert place in str(refused.value)
    assert plan(config, env={"OTHER": "x"}).options["env"] == {"OTHER": "x"}
    if name != "shm_size":  # Of which there is one in a container.
        allowing = config.model_copy(update={"submitter_options": (name,)})
        assert plan(allowing, **asked).options[name] == asked[name]


def test_what_the_manifest_sets_for_another_container_leaves_the_jobs_own_to_its_submitter() -> None:
    side = {"name": "side", "image": "b", "resources": {"limits": {"cpu": 1}}}
    config = queue(job_options({"spec": {"containers": [{"name": "main", "image": "a"}, side]}}))

    assert plan(config, cpus=4).options["cpus"] == 4


def test_text_for_a_shell_in_the_manifest_does_not_switch_the_limits_off() -> None:
    pod = pod_manifest(args=["echo ${HOME}"], resources={"limits": {"cpu": 1, "memory": "1Gi"}})
    config = queue(
        {**job_options(pod, parallelism="{{pods}}"), "limits": {"memory": "4g"}}, {"pods": {"type": "integer"}}
    )

    assert plan(config, variables={"pods": 4})
    with pytest.raises(UnsafeSpecError, match=r"asks for 64.0 GiB \(in 64 pods\) of 'memory'"):
        plan(config, variables={"pods": 64})


# --- volumes ---


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"name": "secrets", "mountPath": "/x"}, "has another volume 'secrets' in its manifest"),
        ({"name": "secrets", "emptyDir": {}, "mountPath": "/x"}, "has another volume 'secrets' in its manifest"),
        ({"name": "mine", "emptyDir": {}, "mountPath": "/data/"}, "mounts two volumes at '/data/'"),
        ({"name": "mine", "emptyDir": {}, "mountPath": "/launch/outputs"}, "mounts two volumes at '/launch/outputs'"),
    ],
)
def test_volume_of_the_short_form_takes_over_none_of_the_manifest(volume: dict[str, Any], words: str) -> None:
    pod = pod_manifest(volumeMounts=[{"name": "data", "mountPath": "/data"}])
    pod["spec"]["volumes"] = [{"name": "secrets", "hostPath": {"path": "/etc"}}, of_pvc("shared")]
    config = queue(job_options(pod), submitter_options=("volumes",))

    with pytest.raises(SpecError) as refused:
        plan(config, volumes=[volume])

    assert words in str(refused.value)
    assert plan(config, volumes=["claim:/more"])
