"""Sweep files: YAML 1.1 as PyYAML reads it, with the numbers of YAML 1.2.

PyYAML reads `1e-4` as text, since YAML 1.1 asks for a dot; sweep files are full of such numbers. A key such as `on` or
`no` is text, and only a value so is a boolean. A key that stands twice in one mapping is refused: PyYAML would keep the
last one only.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final

import yaml

from prefect_launch.errors import SpecError, clause

#: More than any sweep by hand; the configuration is kept on the Prefect server, which takes 512 KiB.
MAX_FILE_BYTES: Final = 400_000
#: More than a file of that size can hold without aliases in aliases, which would take hours to read.
_MAX_VALUES: Final = MAX_FILE_BYTES
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 floats, keys that are text, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice in one mapping; keep one", key.start_mark
                )
            seen.add(key.value)
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_sweep_yaml(text: str, what: str = "The sweep file") -> Any:
    """Read the text of a sweep file; JSON is YAML too.

    Args:
        text: the text.
        what: its name, for the message.

    Raises:
        SpecError: when it is not YAML, has a key twice, is too deep, or is too large with its aliases filled in.
    """
    try:
        content = yaml.load(text, _Loader)
        if _values_in(content, {}) > _MAX_VALUES:
            raise SpecError(f"{what} has more than {_MAX_VALUES:,} values once its aliases (*name) are filled in.")
        return content
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{what} is not YAML: {clause(reason)}.") from None
    except (RecursionError, ValueError) as error:
        raise SpecError(f"{what} cannot be read: {clause(error)}.") from None


def _values_in(content: Any, known: dict[int, float]) -> float:
    """Return how many values there are, each alias counted whenever it stands; without an end for one inside itself."""
    if not isinstance(content, (dict, list)):
        return 1
    if id(content) not in known:
        known[id(content)] = math.inf
        inside = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_values_in(item, known) for item in inside)
    return known[id(content)]


def read_sweep_file(file: Path | str) -> Any:
    """Read a sweep file.

    Args:
        file: its path.

    Raises:
        SpecError: when it cannot be read, is larger than `MAX_FILE_BYTES`, or is not YAML.
    """
    path = Path(file)
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else clause(error)
        raise SpecError(f"The sweep file {str(file)!r} cannot be read: {reason}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise SpecError(f"The sweep file {str(file)!r} is larger than {MAX_FILE_BYTES:,} bytes. Shorten it.")
    return parse_sweep_yaml(text, f"The sweep file {str(file)!r}")
