"""Values of a submitter that land in a path or a bind, and what is filled into what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_launch.errors import QueueError, SpecError, UnsafeSpecError
from prefect_launch.planning.item_options import merged_options
from prefect_launch.planning.plan import Request, preview_plan
from prefect_launch.policy.host_folders import host_folders
from prefect_launch.policy.submitter_options import check_path_values
from prefect_launch.policy.template import QueueConfig, check_variables, macro_values
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import parse_spec
from tests.support.queue_config import make_config

TEXT = {"type": "string"}
MACROS = macro_values(run_id="r1", item_id="i1", attempt=1, run_name="../etc", author="me")


def queue(option: str = "volume", text: Any = "/data/{{team}}:/data", **schema: Any) -> QueueConfig:
    return make_config("local-container", {option: text}, {"team": {**TEXT, **schema}})


def check(config: QueueConfig, team: str) -> None:
    check_variables("q", config, {"team": team})
    check_path_values(config, {"team": team}, MACROS)


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
        check(queue(option, text), team)


@pytest.mark.parametrize(("option", "text"), PLACES)
@pytest.mark.parametrize("team", ["vision", "a..b", "...", "Mötley crüe", "-x", "~"])
def test_plain_name_is_taken(option: str, text: Any, team: str) -> None:
    check(queue(option, text), team)


@pytest.mark.parametrize(("option", "text"), PLACES)
def test_folder_inside_is_taken_in_a_container_and_not_on_its_host(option: str, text: Any) -> None:
    if option not in ("volume", "mount", "device"):
        check(queue(option, text), "vision/cats")
        return
    with pytest.raises(UnsafeSpecError, match=r"'vision/cats'.* it must have no '/'"):
        check(queue(option, text), "vision/cats")
    check(queue(option, text, pattern="[a-z]+(/[a-z]+)?"), "vision/cats")


@pytest.mark.parametrize("option", ["volume", "mount", "tmpfs", "device", "add-host"])
@pytest.mark.parametrize("team", ["x:/etc", "x,readonly=false", 'x"', ":"])
def test_value_that_would_make_another_field_of_a_bind_is_refused(option: str, team: str) -> None:
    text = {"mount": "type=bind,source=/data/{{team}},target=/d", "add-host": "{{team}}:10.0.0.1"}
    with pytest.raises(UnsafeSpecError, match="which divide the option's fields"):
        check(queue(option, text.get(option, "/data/{{team}}:/data")), team)


def test_value_that_climbs_with_the_owner_s_own_text_is_refused() -> None:
    config = make_config(
        "local-container", {"volume": "/data/{{a}}{{b}}:/d"}, {"a": TEXT, "b": {**TEXT, "default": "./x"}}
    )
    with pytest.raises(UnsafeSpecError, match="'a' cannot be"):
        check_path_values(config, {"a": "x/."}, {})
    dotted = queue("volume", "/data/.{{team}}:/d")
    with pytest.raises(UnsafeSpecError, match="must not lead out"):
        check(dotted, ".")
    check(dotted, "hidden")


def test_value_away_from_paths_is_free() -> None:
    config = make_config("local-container", {"env": {"NOTE": "{{team}}"}, "hostname": "h"}, {"team": TEXT})
    for team in ("..", "/etc", "a:b", "two\nlines", ""):
        check(config, team)


@pytest.mark.parametrize("schema", [{"pattern": r"\.\./[a-z]+"}, {"enum": ["../x", "y"]}, {"default": "../x"}])
def test_value_that_the_owner_has_let_through_is_taken(schema: dict[str, Any]) -> None:
    check(queue(**schema), "../x")


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
        check(queue(pattern=pattern), team)


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
            check_path_values(config, {}, {**MACROS, "run_name": name})
    check_path_values(config, {}, {**MACROS, "run_name": "plain"})


async def test_agent_refuses_the_same_value_as_the_queue(tmp_path: Path) -> None:
    spec = parse_spec({"docker": {"docker_image": "b"}, "template_variables": {"team": "../x"}})
    request = Request(spec=spec, item_id="i1", queue="q", config=queue())
    with pytest.raises(UnsafeSpecError, match=r"Template variable 'team' cannot be '\.\./x'"):
        await preview_plan(request, MachineSettings(home=tmp_path), None)
    assert list(tmp_path.iterdir()) == []
