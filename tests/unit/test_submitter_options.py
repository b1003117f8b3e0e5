"""What a submitter may give: options, path values and secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_launch import launch_add, launch_add_many
from prefect_launch.core.masking import MASK
from prefect_launch.errors import LaunchError, NotFoundError, QueueError, SpecError, UnsafeSpecError
from prefect_launch.planning.item_options import host_folders, merged_options
from prefect_launch.planning.plan import Request, make_plan, preview_plan
from prefect_launch.planning.refused_fields import secured
from prefect_launch.policy.submitter_options import (
    check_filled_values,
    check_submitter_args,
    check_submitter_secrets,
    locked_options,
    merge_resource_args,
    secrets_pattern,
)
from prefect_launch.policy.template import QueueConfig, check_variables, macro_values
from prefect_launch.queues.deployment import deploy_job
from prefect_launch.queues.session import Session
from prefect_launch.runners.base import PLAN_FILE, RunPlan
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.server.secrets import fill_secrets, reference_to, secret_names
from prefect_launch.server.values import ItemDraft
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.spec.option import fields_of
from prefect_launch.spec.option_names import normalise_option, read_env
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs, items
from tests.support.queue_config import make_config


class FewOptions(LocalContainerRunner):
    """Lets submitters set few options."""

    submitter_options = frozenset({"e", "env", "m", "memory", "cpus", "shm-size", "command"})


def check(options: dict[Any, Any], **rules: Any) -> dict[str, Any]:
    return check_submitter_args(options, FewOptions, **rules)


@pytest.mark.parametrize("name", ["shm-size", "--shm-size", "shm_size", "SHM_SIZE", "-Shm-Size-"])
def test_option_is_known_under_every_spelling(name: str) -> None:
    assert check({name: "1g"}) == {"shm-size": "1g"}


def test_short_name_is_the_long_one() -> None:
    assert check({"m": "1g", "e": ["A=1"]}) == {"memory": "1g", "env": {"A": "1"}}
    assert normalise_option("-v") == normalise_option("--volume") == "volume"


@pytest.mark.parametrize(
    ("name", "allow"),
    [
        ("volume", "volume"),
        ("v", "volume"),
        ("-v", "volume"),
        ("net", "network"),
        ("Privileged", "privileged"),
        ("cap_add", "cap-add"),
    ],
)
def test_option_of_the_queues_owner_is_refused_as_it_was_written_with_how_the_owner_allows_it(
    name: str, allow: str
) -> None:
    with pytest.raises(UnsafeSpecError) as caught:
        check({"cpus": 1, name: "x"})
    text = str(caught.value)
    assert text.startswith(f"resource_args.local-container option {name!r} is for a queue's owner to set.")
    assert f"'prefect-launch queue edit … --allow {allow}'" in text


@pytest.mark.parametrize(
    ("name", "near"),
    [("memry", "memory"), ("CPUS_", "cpus"), ("privilegd", "privileged"), ("ｍemory", "memory"), ("zzz", None)],
)
def test_option_that_the_resource_does_not_have_is_refused_with_the_nearest_and_those_that_may_be_set(
    name: str, near: str | None
) -> None:
    with pytest.raises(NotFoundError) as caught:
        check({"cpus": 1, name: "x"}, fixed=["memory"])
    hint = f" Did you mean {near!r}?" if near else ""
    said = f"Unknown option {name!r} in resource_args.local-container.{hint} Known: command, cpus, env, shm-size."
    assert str(caught.value) == said


def test_queues_owner_can_widen_the_list() -> None:
    assert check({"v": ["/data:/data"]}, extra_allowed=["volume"]) == {"volume": ["/data:/data"]}
    assert check({"--Volume": "x"}, extra_allowed=["-v"]) == {"volume": "x"}
    with pytest.raises(UnsafeSpecError):
        check({"privileged": True}, extra_allowed=["volume"])


@pytest.mark.parametrize("name", ["", "--", None, 7])
def test_option_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(SpecError, match="Invalid option name"):
        check({name: 1})


def test_option_given_twice_under_two_names_is_refused() -> None:
    with pytest.raises(SpecError, match="'memory' is given twice, as 'm' and '--memory'"):
        check({"m": "1g", "--memory": "2g"})


def test_options_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(SpecError, match="must be a mapping"):
        check(["memory=1g"])  # type: ignore[arg-type]


def test_option_that_the_queue_sets_from_a_variable_is_refused_with_the_variable() -> None:
    locked = locked_options({"m": "{{ memory_gb }}g", "cpus": 2, "e": ["DATA={{dataset}}", "HOME=/x"]})
    assert locked == {"memory": "memory_gb", "env.DATA": "dataset"}

    for options in ({"memory": "9g"}, {"m": "9g"}, {"--Memory": "9g"}):
        with pytest.raises(UnsafeSpecError, match=r"template_variables=\{'memory_gb': …\}"):
            check(options, locked=locked)
    with pytest.raises(UnsafeSpecError, match="dataset"):
        check({"env": {"DATA": "/etc"}}, locked=locked)
    assert check({"env": {"HOME": "/y"}, "cpus": 9}, locked=locked) == {"env": {"HOME": "/y"}, "cpus": 9}


def test_whole_env_can_be_locked() -> None:
    with pytest.raises(UnsafeSpecError, match="'env'"):
        check({"e": "A=1"}, locked={"env": "variables"})


def test_submitters_options_win_and_env_is_merged_by_name() -> None:
    queue = {"m": "1g", "gpus": "all", "volume": ["/a:/a"], "e": ["A=1", "B=x=y"]}
    submitter = {"--memory": "2g", "env": {"B": 2, "C": "three words"}}

    assert merge_resource_args(queue, submitter) == {
        "memory": "2g",
        "gpus": "all",
        "volume": ["/a:/a"],
        "env": {"A": "1", "B": "2", "C": "three words"},
    }
    assert queue["e"] == ["A=1", "B=x=y"]
    assert submitter == {"--memory": "2g", "env": {"B": 2, "C": "three words"}}


def test_merging_with_nothing_normalises() -> None:
    assert merge_resource_args({"e": "A=1"}, {}) == {"env": {"A": "1"}}
    assert merge_resource_args({}, {"W": "/x"}) == {"workdir": "/x"}
    assert merge_resource_args({}, {}) == {}


@pytest.mark.parametrize(
    ("value", "env"),
    [
        (None, {}),
        ({}, {}),
        ("A=1", {"A": "1"}),
        (["A=", "B=='"], {"A": "", "B": "='"}),
        ({"A": 1.5, "B": "é\n"}, {"A": "1.5", "B": "é\n"}),
    ],
)
def test_env_is_read_in_every_form(value: Any, env: dict[str, str]) -> None:
    assert read_env(value) == env


@pytest.mark.parametrize(
    "value",
    [
        "PATH",
        ["PATH"],
        ["=x"],
        [1],
        [["A", "B"]],
        {"": "x"},
        {"A=B": "x"},
        {"A": None},
        {"A": True},
        {"A": []},
        {1: "x"},
        7,
        {"A": "\0"},
        ["A\0=1"],
    ],
)
def test_env_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SpecError):
        read_env(value)


def test_env_name_alone_would_copy_from_the_agent_and_is_refused() -> None:
    with pytest.raises(SpecError, match="agent's machine"):
        check({"env": ["AWS_SECRET_ACCESS_KEY"]})


def spec(**fields: Any) -> Any:
    return parse_spec({"job": "e/p/j", **fields})


#: A value of each field of a launch spec that is not its default, by the field's dotted path; what a new field needs
#: here, and in `PASSES` if a submitter may set it on an agent in secure mode.
SET: dict[str, Any] = {
    "job": "e/p/other",
    "docker.docker_image": "evil:1",
    "docker.user_id": 0,
    "docker.pin": True,
    "docker.digest": "sha256:" + "a" * 64,
    "docker.resolved": True,
    "image_uri": "evil:1",
    "uri": "https://evil.example/x.git",
    "git.repo": "https://x.example/y.git",
    "git.version": "main",
    "git.build_context": "inside",
    "git.base_image": "evil:1",
    "git.install": ["-e ."],
    "git.job_name": "other",
    "entity": "acme",
    "project": "digits",
    "name": "mine",
    "run_id": "r1",
    "author": "ann",
    "sweep_id": "s1",
    "resumable": True,
    "after": ["0198b2a4-0000-7000-8000-000000000001"],
    "resource": "local-process",
    "resource_args": {"local-process": {"env": {"LD_PRELOAD": "/tmp/x.so"}}},
    "template_variables": {"gpu": "0"},
    "overrides.args": ["--evil"],
    "overrides.run_config": {"lr": 1},
    "overrides.artifacts": {"a": "b"},
    "overrides.files": {"conf.json": {"a": 1}},
    "overrides.entry_point": ["sh", "-c", "true"],
    "overrides.dockerfile": "Dockerfile.evil",
    "overrides.working_dir": "../..",
    "python_version": "3.11",
    "timeout": 3600,
    "metric": {"name": "loss", "pattern": "loss: (.+)"},
    "registry.uri": "r.example/x",
    "builder": {"accelerator": {"base_image": "mine:1"}},
    "priority": 1,
    "retries": {"max": 3},
}
PASSES = {
    *("job", "overrides.run_config", "template_variables", "priority", "name", "entity", "project", "run_id"),
    *(
        "author",
        "sweep_id",
        "after",
        "resumable",
        "resource",
        "git.repo",
        "git.version",
        "docker.digest",
        "docker.resolved",
        "metric",
    ),
}


def spec_with(*paths: str) -> LaunchSpec:
    """A spec of a job with these fields set."""
    data: dict[str, Any] = {"job": "e/p/j"}
    for path in paths:
        part, _, leaf = path.rpartition(".")
        (data.setdefault(part, {}) if part else data)[leaf] = SET[path]
    return parse_spec(data)


def test_each_field_of_a_spec_is_known_to_the_test_of_secure_mode() -> None:
    assert {field.path for field in fields_of(LaunchSpec)} == set(SET)
    assert set(SET) >= PASSES


@pytest.mark.parametrize("path", sorted(set(SET) - PASSES))
def test_secure_agent_refuses_all_that_is_not_listed(path: str) -> None:
    with pytest.raises(UnsafeSpecError) as caught:
        secured(spec_with(path))
    assert str(caught.value).startswith("This agent is configured to lock ")
    assert "but the job specification attempts to override it." in str(caught.value)
    word = {"overrides.entry_point": "entrypoint", "image_uri": "image", "docker.docker_image": "image"}.get(path)
    assert f'"{word or path.removeprefix("overrides.")}"' in str(caught.value) or path == "resource_args"


def test_secure_agent_takes_a_job_its_inputs_and_names() -> None:
    assert secured(spec_with(*PASSES)).overrides.run_config == {"lr": 1}
    assert secured(parse_spec({"job": "e/p/j", "resource_args": {"local-process": {}}}))


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "PATH", "HARMLESS"])
def test_secure_agent_locks_the_whole_environment(name: str) -> None:
    with pytest.raises(UnsafeSpecError, match=r'lock "env" in resource_args\.local-container but'):
        secured(parse_spec({"job": "e/p/j", "resource_args": {"local-container": {"e": [f"{name}=x"]}}}))


def test_secure_agent_believes_a_digest_only_where_the_queue_pins() -> None:
    by_submitter = spec_with("docker.digest", "docker.resolved")
    assert secured(by_submitter).docker.digest is None
    pinned = spec_with("docker.digest", "docker.pin")
    assert secured(pinned, pins=True).docker.digest == SET["docker.digest"]
    with pytest.raises(UnsafeSpecError, match=r'lock "docker.pin"'):
        secured(pinned, pins=False)


TEXT = {"type": "string"}
MACROS = macro_values(run_id="r1", item_id="i1", attempt=1, run_name="../etc", author="me")


def queue(option: str = "volume", text: Any = "/data/{{team}}:/data", **schema: Any) -> QueueConfig:
    return make_config("local-container", {option: text}, {"team": {**TEXT, **schema}})


def check_path(config: QueueConfig, team: str) -> None:
    check_variables("q", config, {"team": team})
    check_filled_values(config, {"team": team}, MACROS)


OUTSIDE = ["..", "../x", "x/../../y", "x/..", ".", "", " ", "/etc", "x\ny", "x\r", "x\x7f", "x\u2028y"]
PLACES = [
    ("volume", "/data/{{team}}:/data"),
    ("volume", ["/x:/x", "/data/{{ team }}/in:/data:ro"]),
    ("mount", "type=bind,source=/data/{{team}},target=/data"),
    ("workdir", "{{team}}"),
    ("tmpfs", "/scratch/{{team}}"),
    ("device", "/dev/{{team}}"),
    ("env", {"DATA": "/data/{{team}}"}),
    ("command", ["train", "--data=/data/{{team}}"]),
]


@pytest.mark.parametrize(("option", "text"), PLACES)
@pytest.mark.parametrize("team", OUTSIDE)
def test_value_that_would_make_another_path_is_refused(option: str, text: Any, team: str) -> None:
    with pytest.raises(UnsafeSpecError, match=r"^Template variable 'team' cannot be .*(path|folder|empty|line breaks)"):
        check_path(queue(option, text), team)


@pytest.mark.parametrize(("option", "text"), PLACES)
@pytest.mark.parametrize("team", ["vision", "a..b", "...", "Mötley crüe", "-x", "~"])
def test_plain_name_is_taken(option: str, text: Any, team: str) -> None:
    check_path(queue(option, text), team)


@pytest.mark.parametrize(("option", "text"), PLACES)
def test_folder_inside_is_taken_in_a_container_and_not_on_its_host(option: str, text: Any) -> None:
    if option not in ("volume", "mount", "device"):
        check_path(queue(option, text), "vision/cats")
        return
    with pytest.raises(UnsafeSpecError, match=r"'vision/cats'.* it must have no '/'"):
        check_path(queue(option, text), "vision/cats")
    check_path(queue(option, text, pattern="[a-z]+(/[a-z]+)?"), "vision/cats")


@pytest.mark.parametrize("option", ["volume", "mount", "tmpfs", "device", "add-host"])
@pytest.mark.parametrize("team", ["x:/etc", "x,readonly=false", 'x"', ":"])
def test_value_that_would_make_another_field_of_a_bind_is_refused(option: str, team: str) -> None:
    text = {"mount": "type=bind,source=/data/{{team}},target=/d", "add-host": "{{team}}:10.0.0.1"}
    with pytest.raises(UnsafeSpecError, match="which divide the option's fields"):
        check_path(queue(option, text.get(option, "/data/{{team}}:/data")), team)


def test_value_that_climbs_with_the_owner_s_own_text_is_refused() -> None:
    config = make_config(
        "local-container", {"volume": "/data/{{a}}{{b}}:/d"}, {"a": TEXT, "b": {**TEXT, "default": "./x"}}
    )
    with pytest.raises(UnsafeSpecError, match="'a' cannot be"):
        check_filled_values(config, {"a": "x/."}, {})
    dotted = queue("volume", "/data/.{{team}}:/d")
    with pytest.raises(UnsafeSpecError, match="must not lead out"):
        check_path(dotted, ".")
    check_path(dotted, "hidden")


def test_value_away_from_paths_is_free() -> None:
    config = make_config("local-container", {"env": {"NOTE": "{{team}}"}, "hostname": "h"}, {"team": TEXT})
    for team in ("..", "/etc", "a:b", "two\nlines", ""):
        check_path(config, team)


@pytest.mark.parametrize("schema", [{"pattern": r"\.\./[a-z]+"}, {"enum": ["../x", "y"]}, {"default": "../x"}])
def test_value_that_the_owner_has_let_through_is_taken(schema: dict[str, Any]) -> None:
    check_path(queue(**schema), "../x")


# --- where the owner ended ---


@pytest.mark.parametrize(
    ("option", "text", "below", "path"),
    [
        ("volume", "/data/{{team}}:/d", "/data", "/data/vision"),
        ("volume", ["/x:/x", "/data/{{ team }}/in:/d:ro"], "/data", "/data/vision/in"),
        ("volume", "/data/${disk}/team-{{team}}/${run_name}:/d", "/data/ssd", "/data/ssd/team-vision/mine"),
        ("volume", "/data/${run_name}:/d", "/data", "/data/mine"),
        ("mount", "type=bind,src=/data/{{team}},dst=/d", "/data", "/data/vision"),
        ("mount", "dst=/d/{{team}},type=bind,source=/{{team}}", "/", "/vision"),
    ],
)
def test_owner_s_part_of_a_host_folder_ends_before_the_first_value_of_a_submitter(
    option: str, text: Any, below: str, path: str
) -> None:
    macros = {**MACROS, "disk": "ssd", "run_name": "mine"}
    [found] = host_folders(queue(option, text), {"team": "vision"}, macros, {})
    assert (found.below, found.path, found.is_bounded) == (below, path, False)


def test_variable_that_is_a_whole_bind_leaves_nothing_of_the_path_to_the_owner() -> None:
    config = queue("volume", "{{team}}", enum=["/a/b:/d", "/c:/d"])
    [found] = host_folders(config, {"team": "/a/b:/d"}, {}, {})
    assert (found.below, found.path, found.is_bounded) == ("/", "/a/b", True)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("volume", "/data:/d/{{team}}"),
        ("volume", "cache-{{team}}:/d"),
        ("volume", "/data/${disk}/${queue_name}:/d"),
        ("mount", "type=tmpfs,dst=/d/{{team}}"),
        ("env", {"DATA": "/data/{{team}}"}),
    ],
)
def test_bind_whose_host_path_no_submitter_has_a_part_in_is_not_looked_at(option: str, text: Any) -> None:
    assert host_folders(queue(option, text), {"team": "vision"}, {"disk": "ssd", "queue_name": "q"}, {}) == ()


# --- a variable's pattern ---


@pytest.mark.parametrize("team", ["../vision", "vision/..", "vision\n", "", "VISION", "a|b"])
@pytest.mark.parametrize("pattern", ["[a-z]+", "^[a-z]+$", "^[a-z]+", "[a-z]|[a-z]+"])
def test_whole_value_must_match_the_pattern(pattern: str, team: str) -> None:
    with pytest.raises(SpecError, match="'team' of queue 'q' cannot be"):
        check_path(queue(pattern=pattern), team)


def test_pattern_means_the_same_to_the_server_that_looks_anywhere() -> None:
    variables = queue(pattern="[a-z]+|x", minLength=2, maxLength=9).to_template()["variables"]
    assert variables["properties"]["team"] == {
        "title": "team",
        "type": "string",
        "pattern": "^(?:[a-z]+|x)$",
        "minLength": 2,
        "maxLength": 9,
    }


def test_config_with_a_pattern_comes_back_from_its_template() -> None:
    config = queue(pattern="[a-z]+", minLength=2)
    assert QueueConfig.from_template("q", config.to_template()) == config


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"pattern": "["}, "is no regular expression"),
        ({"pattern": 3}, "is no regular expression"),
        ({"type": "integer", "pattern": "1"}, "pattern is for text"),
        ({"type": "integer", "maxLength": 1}, "maxLength is for text"),
        ({"maxLength": -1}, "no good schema"),
        ({"pattern": "[a-z]+", "default": "../x"}, "breaks its own rule"),
        ({"pattern": "[a-z]+", "enum": ["x", "x\n"]}, "breaks its own rule"),
        ({"default": "/data/${run_id}"}, r"has the macro \$\{run_id\} in its default or enum"),
        ({"enum": ["${author}"]}, r"has the macro \$\{author\}"),
    ],
)
def test_variable_with_a_rule_that_is_none_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(QueueError, match=words):
        queue(**schema)


# --- what is filled into what ---


def fill(config: QueueConfig, name: str | None = "q", **spec: Any) -> dict[str, Any]:
    secrets = {"key": "s3cret ${run_id} {{team}}"}
    macros = {**MACROS, "run_name": "{{ prefect.blocks.secret.key }} {{team}}"}
    launched = parse_spec({"docker": {"docker_image": "b"}, **spec})
    return merged_options(config, launched, name, macros=macros, secrets=secrets)


def test_what_a_value_brings_in_is_not_filled_again() -> None:
    env = {
        "OF_OWNER": "${run_id} {{team}} {{ prefect.blocks.secret.key }} ${run_name}",
        "UNKNOWN": "${data_dir}",
    }
    config = make_config("local-container", {"env": env}, {"team": TEXT})
    filled = fill(
        config,
        template_variables={"team": "${run_id} ${author}"},
        resource_args={"local-container": {"env": {"OF_SUBMITTER": "${run_id} {{team}}"}}},
    )
    assert filled["env"] == {
        "OF_OWNER": "r1 ${run_id} ${author} s3cret ${run_id} {{team}} {{ prefect.blocks.secret.key }} {{team}}",
        "UNKNOWN": "${data_dir}",
        "OF_SUBMITTER": "${run_id} {{team}}",
    }


def test_macros_of_a_run_of_no_queue_are_filled_into_its_caller_s_options() -> None:
    config = QueueConfig(resource="local-container")
    assert fill(config, None, resource_args={"local-container": {"env": {"ID": "${run_id}"}}})["env"] == {"ID": "r1"}


def test_macro_of_a_submitter_s_choice_in_a_path_is_looked_at_too() -> None:
    config = make_config("local-container", {"volume": "/data/${run_name}:/data"}, None)
    for name in ("../etc", "vision/l"):
        with pytest.raises(UnsafeSpecError, match=f"^run_name cannot be '{name}' on this queue"):
            check_filled_values(config, {}, {**MACROS, "run_name": name})
    check_filled_values(config, {}, {**MACROS, "run_name": "plain"})


async def test_agent_refuses_the_same_value_as_the_queue(tmp_path: Path) -> None:
    spec = parse_spec({"docker": {"docker_image": "b"}, "template_variables": {"team": "../x"}})
    request = Request(spec=spec, item_id="i1", queue="q", config=queue())
    with pytest.raises(UnsafeSpecError, match=r"Template variable 'team' cannot be '\.\./x'"):
        await preview_plan(request, MachineSettings(home=tmp_path), None)
    assert list(tmp_path.iterdir()) == []


OURS, OTHERS = reference_to("team-token"), reference_to("git-token")


def env(value: Any) -> dict[str, Any]:
    return {"local-process": {"env": value}}


@pytest.fixture
def api(job_api: InMemoryApi) -> InMemoryApi:
    job_api.upsert_run_queue("cpu", "local-process", submitter_secrets=["team-token"])
    job_api.secrets.update({"team-token": "of the team", "git-token": "of the operator"})
    return job_api


# --- naming and filling ---


def test_secrets_are_named_in_texts_at_any_depth_each_once() -> None:
    assert secret_names({"a": ["x {{prefect.blocks.secret.one}}", OURS], "b": (OURS, 3)}) == ["one", "team-token"]
    assert secret_names({OURS: "a name is no value"}) == []


def test_what_a_secret_brings_in_is_not_filled_again() -> None:
    assert fill_secrets([OURS, {"x": OTHERS}], {"team-token": OTHERS}) == [OTHERS, {"x": OTHERS}]
    queue = QueueConfig(
        resource="local-process",
        resource_args={"env": {"A": OURS, "B": "{{ who }}"}},
        template_variables={"who": {"type": "string"}},
    )
    filled = queue.fill({"who": OURS}, {"team-token": "{{ who }}"})
    assert filled == {"env": {"A": "{{ who }}", "B": OURS}}


@pytest.mark.parametrize("allowed", [[], ["team-token"], ["team-token", "x"]])
def test_schemas_pattern_lets_through_what_names_no_other_secret(allowed: list[str]) -> None:
    found = re.compile(secrets_pattern(allowed))
    assert found.search("plain {{ text }}\nof two lines")
    assert not found.search(f"a\n{OTHERS}")
    assert bool(found.search(f"a {OURS}")) is bool(allowed)
    assert not found.search(f"{OURS} {OTHERS}")


# --- at the queue ---


@pytest.mark.parametrize("value", [{"T": OTHERS}, [f"T={OTHERS}"], f"T={OTHERS}", {"A": OURS, "T": f"a {OTHERS} b"}])
@pytest.mark.parametrize("name", ["env", "e", "--Env"])
def test_submitter_cannot_name_a_secret_that_the_queue_does_not_allow(api: InMemoryApi, name: str, value: Any) -> None:
    refused: dict[str, Any] = {"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1)}
    with pytest.raises(UnsafeSpecError, match=r"names the secret 'git-token'.*lets them name team-token.*--allow-secr"):
        launch_add(**refused, resource_args={"local-process": {name: value}})
    with pytest.raises(UnsafeSpecError, match="git-token"):
        launch_add_many([{"job": "train", **inputs(lr=0.1), "resource_args": env(value)}], "cpu", api=api)
    assert items(api) == []


def test_secret_that_the_queue_allows_is_named_and_not_read_at_the_queue(api: InMemoryApi) -> None:
    api.secrets.clear()
    launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), resource_args=env({"T": OURS}))
    assert items(api)[0].parameters["resource_args"] == env({"T": OURS})


def test_submitters_secret_stands_in_env_alone() -> None:
    with pytest.raises(UnsafeSpecError, match=r"option 'volume' names the secret 'team-token'.*in env alone"):
        check_submitter_secrets({"volume": [OURS]}, resource="local-container", allowed=["team-token"])


def test_value_of_a_template_variable_names_no_secret(api: InMemoryApi) -> None:
    who = {"who": {"type": "string", "default": "all"}}
    api.create_run_queue("vars", "local-process", config={"env": {"WHO": "{{ who }}"}}, template_variables=who)
    with pytest.raises(UnsafeSpecError, match="Template variable 'who' names the secret 'git-token'"):
        launch_add(job="train", queue_name="vars", config=inputs(lr=0.1), template_variables={"who": OTHERS})


@pytest.mark.parametrize("schema", [{"default": OTHERS}, {"enum": ["a", OTHERS]}])
def test_queues_variables_name_no_secret(api: InMemoryApi, schema: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match=r"names the secret 'git-token'.*in the queue's config"):
        api.create_run_queue("vars", "local-process", config={}, template_variables={"who": schema})


def test_queue_that_an_older_version_made_with_a_secret_as_a_default_says_so() -> None:
    variables = {"token": {"type": "string", "default": OTHERS}}
    old = QueueConfig(resource="local-process", resource_args={"env": {"T": "{{token}}"}}, template_variables=variables)
    assert old.fill({"token": "x"}) == {"env": {"T": "x"}}
    with pytest.raises(QueueError, match=r"variable 'token' names the secret 'git-token'.*in the queue's config"):
        old.fill({})


def test_config_of_a_queue_comes_back_with_the_secrets_that_it_names(api: InMemoryApi) -> None:
    config = {"env": {"A": f"x {OTHERS}", "B": "{{prefect.blocks.secret.b}}"}}
    queue = api.create_run_queue("own", "local-process", config=config)
    assert queue.default_resource_config["resource_args"]["local-process"] == {
        "env": {"A": f"x {OTHERS}", "B": reference_to("b")}
    }


def test_queue_tells_which_secrets_it_allows(api: InMemoryApi) -> None:
    assert api.run_queue("cpu").submitter_secrets == ("team-token",)
    api.upsert_run_queue("cpu", "local-process", submitter_secrets=["a", "a", "b"])
    assert api.run_queue("cpu").submitter_secrets == ("a", "b")
    with pytest.raises(QueueError, match="Invalid name 'A b' of a Secret block"):
        api.upsert_run_queue("cpu", "local-process", submitter_secrets=["A b"])


def test_servers_form_refuses_a_secret_that_the_queue_does_not_allow(api: InMemoryApi) -> None:
    _, deployment, _ = api.call(lambda session: deploy_job(session, "train", "cpu"))

    def run(resource_args: Any) -> None:
        parameters = {"lr": 0.1, "launch": {"resource_args": resource_args}}
        draft = ItemDraft(name="x", parameters=parameters, idempotency_key=json.dumps(parameters))
        api.call(lambda session: session.server.create_item(deployment, draft))

    for value in ({"T": OTHERS}, [f"T={OTHERS}"], f"T={OTHERS}", {"T": [{"x": OTHERS}]}):
        with pytest.raises(SpecError, match="The Prefect server refuses this"):
            run(env(value))
    run(env({"T": OURS}))
    run({"local-process": {"nice": 5, "env": ["A=1"]}})
    # The owner's change reaches the forms that are there.
    api.upsert_run_queue("cpu", "local-process", submitter_secrets=["git-token"])
    run(env({"T": OTHERS}))
    with pytest.raises(SpecError):
        run(env({"A": OURS}))


# --- on the agent ---


def planned(api: InMemoryApi, tmp_path: Any, config: QueueConfig, *, queue: str | None = "q", **spec: Any) -> RunPlan:
    """The plan of an item that came straight from the server."""
    request = Request(spec=parse_spec({"job": "train", **spec}), item_id=str(UUID(int=7)), queue=queue, config=config)

    async def plan(session: Session) -> RunPlan:
        return await make_plan(request, MachineSettings(home=tmp_path), session.jobs, session.read_secret)

    return api.call(plan)


def test_queues_config_names_any_secret_and_a_submitter_those_it_allows(api: InMemoryApi, tmp_path: Any) -> None:
    config = QueueConfig(
        resource="local-process", resource_args={"env": {"GIT": OTHERS}}, submitter_secrets=("team-token",)
    )
    plan = planned(api, tmp_path, config, resource_args=env({"T": f"<{OURS}>"}), **inputs(lr=0.1))
    assert plan.options["env"] == {"GIT": "of the operator", "T": "<of the team>"}


def test_plan_for_another_work_pool_holds_marks_where_secrets_are_named_and_no_value(
    api: InMemoryApi, tmp_path: Any
) -> None:
    config = QueueConfig(
        resource="prefect",
        resource_args={"work_pool": "k8s", "env": {"GIT": OTHERS, "NAME": "${run_name}"}},
        submitter_secrets=("team-token",),
    )
    # A name that a submitter chose names no secret.
    plan = planned(
        api,
        tmp_path,
        config,
        name=OTHERS,
        resource_args={"prefect": {"env": {"T": f"<{OURS}>"}}},
        **inputs(lr=0.1),
    )
    marks = {name: mark for mark, name in plan.secret_marks.items()}
    assert plan.options["env"] == {"GIT": marks["git-token"], "NAME": OTHERS, "T": f"<{marks['team-token']}>"}
    assert "of the" not in repr(plan.options)
    assert plan.mask.text("of the operator and of the team") == f"{MASK} and {MASK}"
    assert (plan.run_dir / PLAN_FILE).read_text().find(marks["git-token"]) == -1


@pytest.mark.parametrize(
    "spec",
    [
        {"resource_args": env({"T": OTHERS})},
        {"resource_args": env([f"T={OURS}{OTHERS}"])},
        {"template_variables": {"who": OTHERS}},
    ],
)
def test_agent_refuses_a_submitters_secret_before_any_is_read(
    api: InMemoryApi, tmp_path: Any, spec: dict[str, Any]
) -> None:
    api.secrets.clear()  # to read one would be another error
    config = QueueConfig(
        resource="local-process",
        resource_args={"env": {"WHO": "{{ who }}", "GIT": OTHERS}},
        template_variables={"who": {"type": "string", "default": "all"}},
        submitter_secrets=("team-token",),
    )
    with pytest.raises(UnsafeSpecError, match="names the secret 'git-token'"):
        planned(api, tmp_path, config, **spec, **inputs(lr=0.1))


@pytest.mark.parametrize(
    "spec",
    [{"name": OTHERS}, {"overrides": {"run_config": {"lr": 0.1}, "args": [OTHERS]}}, {"author": "ann", "name": OTHERS}],
)
def test_nothing_else_that_a_submitter_writes_becomes_a_secret(
    api: InMemoryApi, tmp_path: Any, spec: dict[str, Any]
) -> None:
    config = QueueConfig(resource="local-process", resource_args={"env": {"NAME": "${run_name}-${author}"}})
    plan = planned(api, tmp_path, config, **{**inputs(lr=0.1), **spec})
    assert "of the operator" not in repr((plan.options, plan.env, plan.args))


def test_who_runs_something_here_and_now_names_any_secret_of_theirs(api: InMemoryApi, tmp_path: Any) -> None:
    config = QueueConfig(resource="local-process")
    plan = planned(api, tmp_path, config, queue=None, resource_args=env({"T": OTHERS}), **inputs(lr=0.1))
    assert plan.options["env"] == {"T": "of the operator"}


def test_secret_that_is_not_there_is_told_by_its_name(api: InMemoryApi, tmp_path: Any) -> None:
    config = QueueConfig(resource="local-process", resource_args={"env": {"A": reference_to("none")}})
    with pytest.raises(LaunchError, match="There is no Secret block 'none'"):
        planned(api, tmp_path, config, **inputs(lr=0.1))
