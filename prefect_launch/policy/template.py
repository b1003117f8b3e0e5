"""Queue configuration as a Prefect base job template, with its template variables and macros.

The queue's owner writes a resource config in which `{{var}}` stands for a template variable. Prefect keeps it as a work
pool's `base_job_template`. With its `variables` schema, the server itself refuses a wrong value or an unknown variable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import jsonschema
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.core.validation import check_server_json, map_texts, texts_in
from prefect_launch.errors import AgentConfigError, QueueError, SpecError, unknown_name
from prefect_launch.server.secrets import SECRET_PREFIX, as_stored, from_stored, secret_names

#: What an item itself gives a value to.
BUILT_IN = (
    "project_name",
    "entity_name",
    "run_id",
    "run_name",
    "image_uri",
    "author",
    "item_id",
    "queue_name",
    "attempt",
)

#: Those of them whose value its submitter chooses freely, or nearly so.
SUBMITTED = ("project_name", "entity_name", "run_id", "run_name", "image_uri", "author")

#: A macro in a text; its name is the group.
MACRO = re.compile(r"\$\{(\w+)\}")

_NAME = re.compile(r"\w+")
#: How alike two names are of which one is a misspelling: a letter or two of seven are others.
_MISSPELT: Final = 0.85

_Value = TypeVar("_Value")

_PLACEHOLDER = re.compile(r"\{\{\s*([\w.\-$]+)\s*\}\}")
#: All that is filled in: a placeholder, whose name is the first group, or a macro, whose name is the second.
PLACEHOLDER_OR_MACRO = re.compile(rf"{_PLACEHOLDER.pattern}|{MACRO.pattern}")
_TYPES: Final = ("string", "integer", "number", "boolean")
#: What limits a value, in the order in which messages name it.
_RULES: Final = ("type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum")
_KEYWORDS: Final = (*_RULES, "default", "title", "description")
_OF_TEXT: Final = ("pattern", "minLength", "maxLength")


class QueueConfig(BaseModel):
    """What a queue's owner configures: the part of a queue that is kept in its base job template."""

    model_config = ConfigDict(frozen=True)

    resource: str
    resource_args: dict[str, Any] = Field(
        default_factory=dict, description="Options of the resource, with placeholders."
    )
    template_variables: dict[str, dict[str, Any]] = Field(default_factory=dict, description="JSON schema by name.")
    submitter_options: tuple[str, ...] = Field(
        default=(), description="Options that submitters may set besides the usual."
    )
    limits: dict[str, Any] = Field(
        default_factory=dict, description="The most that an item may ask for, by the option, or `timeout`."
    )
    submitter_secrets: tuple[str, ...] = Field(
        default=(), description="Names of Secret blocks that submitters may name in env."
    )
    entity: str | None = None
    prioritization_mode: str = "V0"
    outputs: OutputLimits = Field(default=OutputLimits(), description="How much is kept of the outputs of one run.")
    pin: bool | None = Field(
        default=None,
        description="Items run only the image that their tag means when they are queued (True), or when they start"
        " (False); None: as with True if the registry answers.",
    )
    fail_impossible_after: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which an item fails that asks for more than its agent can ever give, while no other"
        " agent is online for the queue that can; None: it waits.",
    )
    per_author: int | None = Field(default=None, ge=1, description="Jobs that one author may have in work at a time.")
    per_author_waiting: int | None = Field(default=None, ge=1, description="Jobs of one author that may wait.")
    preempt: bool = Field(
        default=False,
        description="A critical item that waits for a place sends a low, resumable one back.",
    )

    def to_template(self) -> dict[str, Any]:
        """Return the work pool's `base_job_template`."""
        required = [name for name, schema in self.template_variables.items() if "default" not in schema]
        return {
            "job_configuration": {
                "resource": self.resource,
                "resource_args": {self.resource: as_stored(self.resource_args)},
                "submitter_options": list(self.submitter_options),
                "limits": self.limits,
                "submitter_secrets": list(self.submitter_secrets),
                "entity": self.entity,
                "prioritization_mode": self.prioritization_mode,
                **({} if self.pin is None else {"docker": {"pin": self.pin}}),
                **({} if self.fail_impossible_after is None else {"fail_impossible_after": self.fail_impossible_after}),
                **({} if self.per_author is None else {"per_author": self.per_author}),
                **({} if self.per_author_waiting is None else {"per_author_waiting": self.per_author_waiting}),
                **({"preempt": True} if self.preempt else {}),
                **({"outputs": outputs} if (outputs := self.outputs.model_dump(exclude_none=True)) else {}),
            },
            "variables": {
                "type": "object",
                "properties": {name: {"title": name, **schema} for name, schema in self.template_variables.items()},
                "required": required,
                "additionalProperties": False,
            },
        }

    @classmethod
    def from_template(cls, name: str, template: Mapping[str, Any]) -> QueueConfig:
        """Read a work pool's `base_job_template`.

        Raises:
            QueueError: when it is not one of ours; the message says how to repair it.
        """
        configuration = template.get("job_configuration")
        try:
            properties = (template.get("variables") or {}).get("properties") or {}
            found = {name: value for name, value in configuration.items() if name in cls.model_fields and value}  # type: ignore[union-attr]
            found["resource_args"] = from_stored((found.get("resource_args") or {}).get(found["resource"]) or {})
            found["template_variables"] = {name: _without_own_title(name, each) for name, each in properties.items()}
            found["pin"] = (configuration.get("docker") or {}).get("pin")  # type: ignore[union-attr]
            return cls.model_validate(found)
        except (TypeError, KeyError, AttributeError, ValidationError):
            raise QueueError(
                f"The work pool {name!r} has no launch configuration: its base job template needs"
                " job_configuration.resource and .resource_args."
                " Write it anew with 'prefect-launch queue create --replace'."
            ) from None

    @property
    def secret_names(self) -> list[str]:
        """The secrets that the queue's owner names in its options."""
        return secret_names(self.resource_args)

    def fill(
        self,
        values: Mapping[str, Any],
        secrets: Mapping[str, str] | None = None,
        macros: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the resource's options with the template variables, secrets and macros filled in, in one pass.

        What a value brings in is not filled again: a submitter's value names no variable, no secret and no macro.

        Args:
            values: of the template variables. A value that is one placeholder keeps the variable's type; one with text
                around it becomes text. A variable without a value and default leaves its option out.
            secrets: what the Secret blocks hold, by name; one that is not among them stays as it is named.
            macros: the values of `${name}`; one that is not among them stays as it is written.

        Raises:
            QueueError: when a default that is filled in names a secret, as one of an older version may.
        """
        known = {name: schema["default"] for name, schema in self.template_variables.items() if "default" in schema}
        for name in known.keys() - values.keys():
            _refuse_secret(name, known[name])
        held = {f"{SECRET_PREFIX}{name}": value for name, value in (secrets or {}).items()}
        filled: dict[str, Any] = _fill(self.resource_args, {**known, **values, **held}, macros or {})
        return filled


def _without_own_title(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {word: schema[word] for word in _KEYWORDS if word in schema and (word, schema[word]) != ("title", name)}


def _refuse_secret(variable: str, values: object) -> None:
    for name in secret_names(values):
        raise QueueError(
            f"Template variable {variable!r} names the secret {name!r}: a variable's values are shown to everybody, and"
            " taken as they are. Name the secret in the queue's config."
        )


class _LeaveOut:
    pass


_LEAVE_OUT: Final = _LeaveOut()


def placeholders(value: Any) -> list[str]:
    """List the template variables in a value, nested ones too; Prefect's own (`prefect.…`, `$…`) are left out."""
    names = _PLACEHOLDER.findall(json.dumps(value))
    return [name for name in names if not name.startswith(("prefect.", "$"))]


def named_in(text: str) -> list[str]:
    """List what a text is filled with: the names of template variables, and macros as they are written (`${name}`)."""
    return [match[1] or match[0] for match in PLACEHOLDER_OR_MACRO.finditer(text)]


def fill_text(text: str, values: Mapping[str, Any], macros: Mapping[str, str]) -> str:
    """Return a text with variables and macros filled in, in one pass; those that are not known stay as written."""

    def value_of(match: re.Match[str]) -> str:
        known, name = (values, match[1]) if match[1] else (macros, match[2])
        return str(known[name]) if name in known else match[0]

    return PLACEHOLDER_OR_MACRO.sub(value_of, text)


def is_whole(value: Any) -> bool:
    """Whether nothing is left to be filled into an option's value: no macro of the agent's operator, and no secret."""
    return not secret_names(value) and not any(MACRO.search(text) for text in texts_in(value))


def with_macros(value: Any, macros: Mapping[str, str]) -> Any:
    """Return an option's value, which has no template variable, with macros filled in."""
    return _fill(value, {}, macros)


def _fill(value: Any, values: Mapping[str, Any], macros: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        pairs = ((key, _fill(item, values, macros)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not _LEAVE_OUT}
    if isinstance(value, list):
        return [item for item in (_fill(part, values, macros) for part in value) if item is not _LEAVE_OUT]
    if not isinstance(value, str):
        return value
    whole = _PLACEHOLDER.fullmatch(value.strip())
    if whole and not whole[1].startswith(("prefect.", "$")):
        return values.get(whole[1], _LEAVE_OUT)
    return fill_text(value, values, macros)


def read_template_variables(given: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Read template variables as the reference writes them.

    Args:
        given: `{name: {"schema": {…}}}`, `{name: {…}}`, or a list of `{"name": …, "schema": {…} or JSON text}`.

    Raises:
        QueueError: for a schema that uses more than type (string, integer, number, boolean), enum, pattern, minLength,
            maxLength, minimum, maximum, default, title and description, or whose default or enum break its own rule.

    A `pattern` is a regular expression that the whole value must match: `[a-z]+` takes `vision`, and not `../vision`.
    It is kept as `^(?:[a-z]+)$`, for the server and the UI look for a match anywhere.
    """
    if not given:
        return {}
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, (list, tuple)) and all(isinstance(entry, Mapping) and "name" in entry for entry in given):
        pairs = [(entry["name"], entry) for entry in given]
    else:
        raise QueueError(
            f"template_variables must be a mapping of names to schemas, or a list of {{name, schema}}, not {given!r}."
        )
    return {name: _read_schema(name, entry) for name, entry in pairs}


def _read_schema(name: str, entry: Any) -> dict[str, Any]:
    given = entry.get("schema", entry) if isinstance(entry, Mapping) else entry
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise QueueError(f"The schema of template variable {name!r} is no JSON: {error}.") from None
    if not isinstance(given, Mapping):
        raise QueueError(f"The schema of template variable {name!r} must be a mapping, not {given!r}.")
    check_server_json(given, f"The schema of template variable {name!r}", error=QueueError)
    schema: dict[str, Any] = {key: value for key, value in given.items() if key != "name"}
    if not re.fullmatch(r"[A-Za-z_][\w\-]*", name):
        raise QueueError(f"Invalid template variable name {name!r}: use letters, digits and '_', a letter first.")
    for keyword in schema:
        if keyword not in _KEYWORDS:
            raise QueueError(str(unknown_name("keyword", keyword, _KEYWORDS, where=f" in template variable {name!r}")))
    if schema.get("type", "string") not in _TYPES:
        raise QueueError(f"Template variable {name!r} has the type {schema['type']!r}; use one of {', '.join(_TYPES)}.")
    _refuse_secret(name, [schema.get("default"), schema.get("enum")])
    schema = {"type": "string", **schema}
    own = [schema.get("default"), *(schema["enum"] if isinstance(schema.get("enum"), (list, tuple)) else ())]
    macro = next((macro for text in own if isinstance(text, str) for macro in MACRO.findall(text)), None)
    if macro in BUILT_IN:
        raise QueueError(
            f"Template variable {name!r} has the macro ${{{macro}}} in its default or enum: a variable's values are"
            " taken as they are. Write the macro in the queue's config."
        )
    _check_text_rules(name, schema)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise QueueError(f"Template variable {name!r} has no good schema: {error.message}.") from None
    if "pattern" in schema:
        schema["pattern"] = f"^(?:{schema['pattern']})$"
    for value in (*schema.get("enum", ()), *([schema["default"]] if "default" in schema else ())):
        if fault := _value_fault(schema, value):
            raise QueueError(f"Template variable {name!r}: its default or enum breaks its own rule: {fault}.")
    if schema.get("minimum", float("-inf")) > schema.get("maximum", float("inf")):
        raise QueueError(
            f"Template variable {name!r}: minimum {schema['minimum']} is above maximum {schema['maximum']}."
        )
    return schema


def _check_text_rules(name: str, schema: Mapping[str, Any]) -> None:
    for keyword in _OF_TEXT:
        if keyword in schema and schema["type"] != "string":
            raise QueueError(f"Template variable {name!r}: {keyword} is for text, and its type is {schema['type']!r}.")
    try:
        re.compile(schema.get("pattern", ""))
    except (re.error, TypeError) as error:
        raise QueueError(
            f"Template variable {name!r}: its pattern {schema['pattern']!r} is no regular expression: {error}."
        ) from None


def _value_fault(schema: Mapping[str, Any], value: Any) -> str | None:
    """Return what is wrong with a value under its variable's schema, whose pattern the whole value must match."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        return str(error.message)
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):  # `$` lets a last line break through
        return f"{value!r} does not match {schema['pattern']!r} from its first to its last character"
    return None


def check_placeholders(config: QueueConfig) -> QueueConfig:
    """Return the config when every placeholder in it is a declared template variable, and no macro is misspelt.

    A macro may also be one of an agent's config, which is not known here, and a program may read `${name}` itself. So
    what is refused is a whole value whose name is all but that of a built-in macro.

    Raises:
        QueueError: naming the one that is not right.
    """
    for name in placeholders(config.resource_args):
        if name not in config.template_variables:
            unknown = unknown_name("template variable", name, config.template_variables, where=" in the queue's config")
            raise QueueError(f"{unknown} Declare it in template_variables.")
    for text in texts_in(config.resource_args):
        if (found := MACRO.fullmatch(text.strip())) and (meant := _misspelt(found[1])):
            raise QueueError(
                f"The queue's config has the value {text!r}, and an item has no such macro. Did you mean ${{{meant}}}?"
                " If an agent's config has it ('macros'), rename it there: its name is too close to the item's own."
            )
    return config


def _misspelt(macro: str) -> str | None:
    """Return the built-in macro of which this one is a misspelling."""
    return None if macro in BUILT_IN else next(iter(get_close_matches(macro, BUILT_IN, 1, _MISSPELT)), None)


def check_variables(queue: str, config: QueueConfig, values: Mapping[str, Any]) -> None:
    """Check template variables before the server does, for errors that name the nearest right one.

    Raises:
        NotFoundError: for a variable that the queue does not have.
        SpecError: for a missing one, or a value that has the wrong type or is out of its range.
    """
    for name, value in values.items():
        if name not in config.template_variables:
            raise unknown_name("template variable", name, config.template_variables, where=f" of queue {queue!r}")
        schema = config.template_variables[name]
        if fault := _value_fault(schema, value):
            rule = ", ".join(f"{key} {schema[key]}" for key in _RULES if key in schema)
            raise SpecError(f"Template variable {name!r} of queue {queue!r} cannot be {value!r}: {fault} ({rule}).")
    missing = [
        name for name, schema in config.template_variables.items() if "default" not in schema and name not in values
    ]
    if missing:
        raise SpecError(
            f"Queue {queue!r} needs a value for the template variable {missing[0]!r}"
            f" (template_variables={{{missing[0]!r}: …}}, or -v {missing[0]}=… on the command line)."
        )


# --- macros ---


def macro_values(named: Mapping[str, str] | None = None, **own: str | int | None) -> dict[str, str]:
    """Return the values of all macros: those of the agent's config (`named`), and those of one item (of `BUILT_IN`).

    A macro for which the item has nothing is unknown: it stays as it is written, and does not become the word "None".

    Raises:
        AgentConfigError: when a name in `named` is no word, is built in, or has a value that is not text.
    """
    return {**check_named_macros(named or {}), **{name: str(value) for name, value in own.items() if value}}


def check_named_macros(named: Mapping[str, str]) -> dict[str, str]:
    """Return the macros of an agent's config when they are good.

    Raises:
        AgentConfigError: as `macro_values`.
    """
    for name, value in named.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise AgentConfigError(f"Invalid macro name {name!r}: use letters, digits and '_', as in ${{data_dir}}.")
        if name in BUILT_IN:
            raise AgentConfigError(
                f"The macro {name!r} is built in and cannot be set in the agent's config. Rename yours."
            )
        if not isinstance(value, str):
            raise AgentConfigError(f"The macro {name!r} is {value!r}; a macro's value must be text. Put it in quotes.")
    return dict(named)


def fill_macros(value: _Value, macros: Mapping[str, str]) -> _Value:
    """Return a copy of resource arguments with its macros filled in: of a run of no queue, whose caller wrote them.

    In a queue's options they are filled by `QueueConfig.fill`, in one pass with the template variables and secrets.

    Args:
        value: nested mappings and lists. Text in them is filled; keys and everything else stay. It is not changed.
        macros: as `macro_values` returns them. A macro that is not among them stays as it is written; what a value
            brings in is not filled again.
    """
    filled: Any = map_texts(value, lambda text: MACRO.sub(lambda match: macros.get(match[1], match[0]), text))
    return filled  # type: ignore[no-any-return]
