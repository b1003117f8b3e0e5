"""Input schema of a script that uses `argparse`, read from its source. Nothing of the script is run.

Each option of `add_argument` is an input under its own long name, without the dashes. Only what is written literally is
read. What is computed stays open, or is left out, and a note says so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.errors import SpecError
from prefect_launch.jobs.schema import Schema, validator
from prefect_launch.spec.input_styles import POSITIONAL

_TEXT: Final[Schema] = {"type": "string"}
_TYPES: Final[Mapping[str, Schema]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": _TEXT,
    "Path": _TEXT,
}
#: Of a function of the script's own, which reads a text.
_ANY: Final[Schema] = {"anyOf": [{"type": "number"}, _TEXT]}
_FLAG: Final[Schema] = {"type": "boolean", "default": False}
#: Actions of options that no job needs.
_ABOUT: Final = ("help", "version")
_PARSER: Final = "ArgumentParser"
_COMPUTED: Final = object()


class ParserInputs(NamedTuple):
    """Inputs of a script.

    Attributes:
        schema: of the inputs; open to others when an argument is left out.
        notes: what is left out or open, for people.
    """

    schema: Schema
    notes: tuple[str, ...]


class _LeftOutError(Exception):
    """An argument is no input."""


def read_argparse(source: bytes, script: str) -> ParserInputs:
    """Read the inputs of a script.

    Args:
        source: of the script.
        script: its path, for messages.

    Raises:
        SpecError: when it is no Python, or adds no argument to a parser.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"The script {script!r} cannot be read: {error}. Correct it, or give a schema.") from None
    calls = sorted(_calls(tree), key=lambda call: (call.lineno, call.col_offset))
    adding = [call for call in calls if _name(call.func) == "add_argument"]
    if not adding or not any(_name(call.func).endswith(_PARSER) for call in calls):
        raise SpecError(
            f"The script {script!r} has no argparse parser: it does not call ArgumentParser and add_argument. Name the"
            " script that does as the entry point, or give the schema of its inputs."
        )
    return _Parser(tree, calls).read(adding)


class _Parser:
    """Parser of a script, as far as it is written literally."""

    def __init__(self, tree: ast.Module, calls: list[ast.Call]) -> None:
        self._made_by = dict(_assigned_calls(tree))
        #: Whose default is set in another place.
        self._set = {each.arg for call in calls if _name(call.func) == "set_defaults" for each in call.keywords}
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        #: What adds arguments out of sight.
        self._unseen = [call for call in calls if _name(call.func) not in own and self._is_handed_on(call)]
        self._notes = [f"what {ast.unparse(call.func)} adds to its parser is not read" for call in self._unseen]

    def _is_handed_on(self, call: ast.Call) -> bool:
        """Whether a function gets the parser, or a parser gets the arguments of others."""
        parents = [each.value for each in call.keywords if each.arg == "parents"]
        if parents:
            return not all(map(self._is_parser, getattr(parents[0], "elts", [None])))
        return any(map(self._is_parser, call.args))

    def _is_parser(self, node: ast.AST | None) -> bool:
        return self._made_by.get(_name(node), "").endswith(_PARSER)

    def read(self, adding: list[ast.Call]) -> ParserInputs:
        properties: dict[str, Schema] = {}
        required: list[str] = []
        is_whole = not self._unseen
        for call in adding:
            try:
                name, rules, is_required = self._argument(call)
            except _LeftOutError as error:
                is_whole = False
                self._notes.append(f"{error}: it is left out")
                continue
            if name in properties:
                self._notes.append(f"{name} is added twice: the first counts")
            elif name:
                properties[name] = rules
                required += [name] if is_required else []
        schema = {"type": "object", "properties": properties, "required": required}
        return ParserInputs({**schema, "additionalProperties": not is_whole}, tuple(dict.fromkeys(self._notes)))

    def _argument(self, call: ast.Call) -> tuple[str, Schema, bool]:
        """Return an argument's name, rules, and whether it must be given; no name for one that no job needs."""
        given = {each.arg: each.value for each in call.keywords}
        name, is_positional = _option(call)
        owner = self._owner(call.func)
        if owner == "add_parser":
            raise _LeftOutError(f"{name} is of a subcommand")
        if None in given:
            raise _LeftOutError(f"{name} has computed options")
        if _literal(given.get("action")) in _ABOUT:
            return "", {}, False
        rules = self._rules(name, given)
        # Of those that exclude each other, a default would be given together with another.
        default = None if owner == "add_mutually_exclusive_group" else self._default(name, given, rules)
        if default is not None:
            rules = {**rules, "default": default}
        text = _literal(given.get("help"))
        if isinstance(text, str):
            rules["description"] = text.replace("%(default)s", str(default)).replace("%%", "%")
        if is_positional:
            return name, {**rules, POSITIONAL: True}, _literal(given.get("nargs")) not in ("?", "*")
        return name, rules, _literal(given.get("required")) is True

    def _owner(self, function: ast.expr) -> str:
        """Return the function that has made what an argument is added to: `add_parser` for a subcommand's parser."""
        owner = function.value if isinstance(function, ast.Attribute) else None
        return _name(owner.func) if isinstance(owner, ast.Call) else self._made_by.get(_name(owner), "")

    def _rules(self, name: str, given: Mapping[Any, ast.expr]) -> Schema:
        action = _literal(given.get("action"), "store")
        if action in ("store_true", "store_false"):
            return dict(_FLAG)
        if action is _COMPUTED and _name(given["action"]) == "BooleanOptionalAction":
            return {"type": "boolean"}
        nargs = _literal(given.get("nargs"))
        if action not in ("store", "extend") or not (
            nargs is None or isinstance(nargs, int) or nargs in ("?", "*", "+")
        ):
            what = "nargs" if action in ("store", "extend") else "action"
            raise _LeftOutError(f"{name} has {what}={ast.unparse(given[what])}")
        rules = self._type(name, given)
        choices = _literal(given.get("choices"))
        if isinstance(choices, (set, frozenset)):
            choices = sorted(choices, key=str)
        if not isinstance(choices, (list, tuple, type(None))):
            self._notes.append(f"{name}: its choices are computed, and are not checked")
        elif choices is not None:
            rules = {**rules, "enum": list(choices)}
        if nargs in (None, "?"):
            return rules
        count = {"minItems": nargs, "maxItems": nargs} if isinstance(nargs, int) else {}
        return {"type": "array", "items": rules, **count, **({"minItems": 1} if nargs == "+" else {})}

    def _type(self, name: str, given: Mapping[Any, ast.expr]) -> Schema:
        if "type" not in given:
            return dict(_TEXT)
        kind = _name(given["type"])
        if kind in _TYPES:
            return dict(_TYPES[kind])
        why = "takes every text but '' for true" if kind == "bool" else "is the script's own, and is not checked"
        self._notes.append(f"{name}: its type {ast.unparse(given['type'])} {why}")
        return dict(_ANY)

    def _default(self, name: str, given: Mapping[Any, ast.expr], rules: Schema) -> Any:
        """Return the default; `None` when it has none, or it is not known."""
        if rules == _FLAG:
            return False
        default = _literal(given.get("default"))
        default = list(default) if isinstance(default, tuple) else default
        dest = _literal(given.get("dest"), name.replace("-", "_"))
        is_own = rules.get("anyOf") is not None and not isinstance(default, str)
        if default is None or _is_suppressed(given.get("default")):
            return None
        if default is _COMPUTED or dest in self._set or is_own or not validator(rules).is_valid(default):
            self._notes.append(f"{name}: its default is not known here, and is left to the script")
            return None
        return default


def _option(call: ast.Call) -> tuple[str, bool]:
    """Return an argument's name, and whether it is given by its place."""
    names = [_literal(each) for each in call.args]
    if not names or not all(isinstance(each, str) for each in names):
        raise _LeftOutError(f"an argument in line {call.lineno} has a computed name")
    long = [each for each in names if each.startswith("--")]
    if not long and names[0].startswith("-"):
        raise _LeftOutError(f"{names[0]} has no long name")
    return (long[0][2:], False) if long else (names[0], True)


def _literal(node: ast.expr | None, default: Any = None) -> Any:
    """Return a value that is written literally; `_COMPUTED` for another, the default for none."""
    if node is None:
        return default
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _COMPUTED


def _name(node: ast.AST | None) -> str:
    """Return the last name of `a.b.name`, or `name`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_suppressed(node: ast.expr | None) -> bool:
    return node is not None and _name(node) == "SUPPRESS"


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _assigned_calls(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names of variables, and of the functions whose results they are: `group`, `add_argument_group`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            yield from ((_name(target), _name(node.value.func)) for target in node.targets)
