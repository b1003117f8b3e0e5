"""A field of the launch spec is declared once: its option, its place in the form and its lock follow from it."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from prefect_launch.cli import launch_options
from prefect_launch.cli.launch_options import LaunchOptions, parameter_of
from prefect_launch.cli.main import COMMANDS, load_command
from prefect_launch.planning.refused_fields import FREE
from prefect_launch.queues.deployment import form_schema
from prefect_launch.spec.item_parameters import FORM_FIELDS
from prefect_launch.spec.launch_spec import LaunchSpec, construct_spec
from prefect_launch.spec.option import Option, SpecField, fields_of, placed
from prefect_launch.testing import InMemoryApi


def by_path() -> dict[str, SpecField]:
    return {field.path: field for field in fields_of(LaunchSpec)}


def test_each_field_of_the_spec_and_its_parts_has_a_path_and_says_what_it_is() -> None:
    fields = by_path()

    assert {"job", "docker.docker_image", "git.version", "overrides.entry_point", "registry.uri"} <= fields.keys()
    assert "docker" not in fields
    assert [path for path, field in fields.items() if not field.text] == []


def test_each_flag_of_the_spec_is_an_option_of_add_with_the_help_of_its_field() -> None:
    options = {flag: option for option in load_command("add").params for flag in option.opts}

    for path, field in by_path().items():
        for flag in field.option.flags:
            assert options[flag.partition("/")[0]].help == field.text, path


class WithClass(LaunchSpec):
    """A launch spec with one field more."""

    priority_class: Annotated[
        str | None,
        Option(("--priority-class",), "CLASS", form={"title": "Class", "type": "string"}, in_secure_mode=True),
    ] = Field(default=None, description="The class of its priority.")


def test_field_that_is_added_is_found_with_its_option_form_and_lock() -> None:
    added = {field.path: field for field in fields_of(WithClass)}["priority_class"]

    assert added.option.in_secure_mode
    assert added.option.form == {"title": "Class", "type": "string"}
    name, kind, default = launch_options._declared(added)
    assert (name, default.default) == ("priority_class", None)
    assert isinstance(kind.__metadata__[0], typer.models.OptionInfo)
    assert kind.__metadata__[0].help == added.text
    assert "--priority-class" in {kind.__metadata__[0].default, *(kind.__metadata__[0].param_decls or ())}


def test_form_of_a_job_has_the_declared_fields_and_no_other(job_api: InMemoryApi) -> None:
    job = job_api.call(lambda session: session.jobs.resolve("train"))

    group = form_schema(job)["properties"]["launch"]["properties"]

    assert list(group) == [field.name for field in FORM_FIELDS]
    assert group["timeout"]["title"] == "Time limit"
    assert group["name"]["description"] == by_path()["name"].text


def test_field_that_does_not_say_otherwise_is_locked_in_secure_mode() -> None:
    assert "job" in FREE
    assert "overrides.entry_point" not in FREE
    assert not Option().in_secure_mode


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"docker.docker_image": "alpine", "overrides.entry_point": "echo 1"}, {"docker_image": "alpine"}),
        ({"uri": "https://git.example/a/b", "git.version": "v1"}, {"version": "v1"}),
        (
            {"job": "train", "registry.uri": "registry.example/team/train"},
            {"repository": "registry.example/team/train"},
        ),
    ],
)
def test_options_make_the_spec_that_the_arguments_of_launch_add_make(
    given: dict[str, Any], asked: dict[str, Any]
) -> None:
    options: Any = LaunchOptions(**{parameter_of(path): value for path, value in given.items()})

    spec = construct_spec(options.launch_config(InMemoryApi()))

    more = {"entry_point": ["echo", "1"]} if "overrides.entry_point" in given else {}
    plain = {path: value for path, value in given.items() if path in ("job", "uri")}
    assert spec == construct_spec(plain, **asked, **more)


def test_option_wins_over_the_config_and_leaves_the_rest_of_its_part() -> None:
    config = '{"uri": "https://git.example/a/b", "git": {"repo": "x", "version": "v1"}}'
    options: Any = LaunchOptions(**{"config": config, "git__version": "v2"})

    assert options.launch_config(InMemoryApi())["git"] == {"repo": "x", "version": "v2"}


def test_values_by_path_are_nested() -> None:
    assert placed({"a": 1, "b.c": 2, "b.d.e": 3}) == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_the_program_says_of_a_command_what_its_own_help_says(name: str) -> None:
    assert load_command(name).help.splitlines()[0] == COMMANDS[name][1]


def test_unknown_command_is_reported_with_the_nearest_one() -> None:
    from prefect_launch.cli.main import app

    result = CliRunner().invoke(app, ["quue"])

    assert "Did you mean 'queue'" in result.output
