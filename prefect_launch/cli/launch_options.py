"""Options of `add` and `run`: what runs, with which inputs, and on which queue.

A field of the launch spec declares its own option (`prefect_launch.spec.option`). This module has the options without
a field, and the readers of values that are not plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from prefect_launch.cli.item_view import find
from prefect_launch.cli.options import (
    ArgsArgument,
    ConfigOption,
    nested,
    read_mapping,
    read_retries,
    split_assignment,
    typed,
)
from prefect_launch.errors import NotFoundError
from prefect_launch.inputs.config_files import deep_merge
from prefect_launch.spec.item_outputs import named_outputs, with_values
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.option import SpecField, fields_of, placed

if TYPE_CHECKING:
    from prefect_launch.client.api import Api

QueueOption = Annotated[
    str | None,
    typer.Option("-q", "--queue", metavar="QUEUE", help="The queue. Default: 'default', created on first use."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="INPUT=VALUE", help="An input of the job; a.b=1 sets b in the group a. Repeat for more."
    ),
]
VariablesOption = Annotated[
    list[str] | None,
    typer.Option(
        "-v", "--template-variable", metavar="VAR=VALUE", help="A template variable of the queue. Repeatable."
    ),
]
AfterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--after", metavar="ID", help="Start when this item has completed: its id or its name. Repeat for more."
    ),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", metavar="", help="Print the log until the run ends; exit as 'item wait' does.")
]
BuildOption = Annotated[
    bool,
    typer.Option(
        "-b", "--build", metavar="", help="Build the image of the job's code here, push it, and queue the image."
    ),
]


def _command(text: str, _: str) -> list[str] | None:
    from prefect_launch.jobs.code_checks import parse_entry_point

    return list(parse_entry_point(text)) or None


#: Readers of options that are not plain text, by the field's path.
_READERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "overrides.entry_point": _command,
    "metric": read_mapping,
    "resource_args": read_mapping,
    "retries": read_retries,
}
#: Fields that name what runs; they come first in the help.
_SOURCES: Final = ("job", "docker.docker_image", "uri", "git.version")


class OwnOptions:
    """Options without a field in the launch spec, and the launch config that all options make."""

    queue: QueueOption = None
    config: ConfigOption = None
    inputs: SetOption = None
    variables: VariablesOption = None
    build: BuildOption = False
    after: AfterOption = None
    args: ArgsArgument = None

    def launch_config(self, api: Api) -> dict[str, Any]:
        """Return the options as one launch config; reads the job's schema and the items of --after from the server.

        Raises:
            SpecError: when a value cannot be read.
            NotFoundError: for an unknown item.
        """
        config = {} if self.config is None else read_mapping(self.config, "--config")
        given: dict[str, Any] = {"after": [find(api, one).id for one in self.after]} if self.after else {}
        for spec_field in _SPEC_FIELDS:
            value = getattr(self, parameter_of(spec_field.path))
            if value is not None and value != []:
                read = _READERS.get(spec_field.path)
                given[spec_field.path] = read(value, spec_field.option.flags[-1]) if read else value
        return self._with_overrides(api, _over(config, placed(given)))

    def _with_overrides(self, api: Api, config: dict[str, Any]) -> dict[str, Any]:
        """Add the inputs of --set, and the arguments after '--', to those that a config has."""
        overrides = config.get("overrides") or {}
        if not isinstance(overrides, Mapping):
            return config  # `launch_add` says what is wrong with it.
        inputs, args = overrides.get("run_config") or {}, overrides.get("args") or []
        if not isinstance(inputs, Mapping) or not isinstance(args, list):
            return config
        changed: dict[str, Any] = {}
        if self.inputs or any(named_outputs(inputs, None)):
            changed["run_config"] = typed_inputs(api, config.get("job"), self.inputs or (), over=inputs)
        if self.args:
            changed["args"] = [*args, *self.args]
        return {**config, "overrides": {**overrides, **changed}} if changed else config

    def template_variables(self, api: Api, queue: str) -> dict[str, Any] | None:
        """Return the template variables, with the types that the queue declares.

        Raises:
            SpecError: when one is not `VAR=VALUE`.
            NotFoundError: for an unknown queue.
        """
        return typed_variables(api, queue, self.variables) if self.variables else None


def typed_inputs(
    api: Api, job: object, given: Sequence[str], *, over: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the inputs of `--set`, with the types that their job's schema declares, and whole ids of items.

    Args:
        api: reads the job and the items.
        job: its name, if the item has one.
        given: each as `INPUT=VALUE`. An item whose output is an input may be named by part of its id, or by its name.
        over: inputs of a config, which these are merged into.

    Raises:
        SpecError: when one cannot be read.
        NotFoundError: for an unknown item.
        InvalidNameError: when several items are meant.
    """
    schema = _schema(api, job) if isinstance(job, str) and job else None
    pairs = [split_assignment(text, "--set") for text in given]
    inputs = deep_merge(over or {}, nested(pairs, schema))
    # The end of an id may look like a number, such as 890722e2, and so may a file's name: as written, not as typed.
    written = deep_merge(over or {}, nested(pairs, schema, lambda text, _: text))
    named = dict(named_outputs(inputs, schema)) | dict(named_outputs(written, schema))
    found = {keys: {**value, "item": find(api, str(value["item"])).id} for keys, value in named.items()}
    return with_values(inputs, found)


def _schema(api: Api, job: str) -> dict[str, Any] | None:
    """Return the schema of a job; None for one that is not in the store: a W&B server may have it."""
    try:
        return api.job(job).schema
    except NotFoundError:
        return None


def typed_variables(api: Api, queue: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the values of template variables, with the types that the queue declares; each is given as `VAR=VALUE`."""
    pairs = [split_assignment(text, "--template-variable") for text in given]
    schemas = api.run_queue(queue).template_variables
    return {name: typed(text, schemas.get(name)) for name, text in pairs}


def parameter_of(path: str) -> str:
    """Return the name of a command's parameter for a field of the launch spec."""
    return path.replace(".", "__")


def _over(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the given values over it: parts of the spec are merged, all else is replaced."""
    parts = {
        name: {**config[name], **value}
        for name, value in given.items()
        if name in _PARTS and isinstance(value, Mapping) and isinstance(config.get(name), Mapping)
    }
    return {**config, **given, **parts}


def _declared(spec_field: SpecField) -> tuple[str, Any, Any]:
    """Return the option of a field of the launch spec, as a field of a dataclass."""
    option = spec_field.option
    shown = typer.Option(*option.flags, metavar=option.metavar, help=spec_field.text)
    kind: Any = Annotated[str | None, shown]
    if spec_field.info.annotation == bool | None:
        kind = Annotated[bool | None, shown]
    if spec_field.info.annotation == tuple[str, ...]:
        kind = Annotated[list[str] | None, shown]
    return parameter_of(spec_field.path), kind, field(default=None)


_SPEC_FIELDS: Final = tuple(one for one in fields_of(LaunchSpec) if one.option.flags)
_PARTS: Final = frozenset(one.path.partition(".")[0] for one in _SPEC_FIELDS if "." in one.path)


def _fields() -> list[tuple[str, Any, Any]]:
    """Return all options as the fields of a dataclass, in the order of the help."""
    own = [
        (name, kind, getattr(OwnOptions, name))
        for name, kind in get_type_hints(OwnOptions, include_extras=True).items()
    ]
    sources = [_declared(one) for one in _SPEC_FIELDS if one.path in _SOURCES]
    return [*sources, *own, *(_declared(one) for one in _SPEC_FIELDS if one.path not in _SOURCES)]


if TYPE_CHECKING:

    class LaunchOptions(OwnOptions):
        """Options of `add` and `run`."""
else:
    LaunchOptions = make_dataclass("LaunchOptions", _fields(), bases=(OwnOptions,), frozen=True)
