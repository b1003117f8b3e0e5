"""Host folders whose paths a submitter has a part in: where the queue's owner ended, and the submitter began.

In `/data/{{team}}:/d` the owner wrote `/data/`. A job can leave a link in a folder that it may write to, so below that
part the path of a bind is looked at on the host before its container is made.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefect_launch.policy.template import PLACEHOLDER_OR_MACRO, SUBMITTED, QueueConfig, fill_text
from prefect_launch.runners.base import HostFolder
from prefect_launch.runners.option_values import mounts, texts, volumes
from prefect_launch.server.secrets import SECRET_PREFIX
from prefect_launch.spec.option_names import normalise_options

#: Options that bind folders of the host, and their readers.
_BINDS: Final = {"volume": volumes, "mount": mounts}


def host_folders(
    config: QueueConfig, values: Mapping[str, Any], macros: Mapping[str, str], secrets: Mapping[str, str]
) -> tuple[HostFolder, ...]:
    """Return the folders of the host that an item's binds name with a variable, or a macro of its submitter's choice.

    Args:
        config: the queue's.
        values: of its template variables, as the submitter gave them.
        macros: what `prefect_launch.policy.template` fills in.
        secrets: what the Secret blocks hold, by name.
    """
    held = {f"{SECRET_PREFIX}{name}": value for name, value in secrets.items()}
    defaults = {name: rule["default"] for name, rule in config.template_variables.items() if "default" in rule}
    of_others = {name: value for name, value in macros.items() if name not in SUBMITTED}
    found = []
    for option, value in normalise_options(config.resource_args).items():
        for text in texts(value) if option in _BINDS else ():
            named = list(_chosen(fill_text(text, held, of_others)))
            if not named:
                continue
            source = _source(option, fill_text(text, {**defaults, **values, **held}, macros))
            owners = _owners_part(option, fill_text(text, held, of_others))
            if source is not None and owners is not None:
                bounded = all(config.template_variables.get(name, {}).keys() & {"enum", "pattern"} for name in named)
                found.append(HostFolder(path=source, below=owners, is_bounded=bounded))
    return tuple(found)


def _chosen(text: str) -> Iterator[str]:
    """Yield what a submitter's values stand for in a text: variables by name, macros as they are written."""
    for match in re.finditer(PLACEHOLDER_OR_MACRO, text):
        if match[1] or match[2] in SUBMITTED:
            yield match[1] or match[0]


def _source(option: str, text: str) -> str | None:
    """Return the folder of the host that a text binds; None when it binds none, or is refused elsewhere."""
    try:
        mount = _BINDS[option](text)[0]
    except ValueError:
        return None
    return str(mount["Source"]) if mount["Type"] == "bind" else None


def _owners_part(option: str, text: str) -> str | None:
    """Return the folder that the owner wrote before the first variable; None when the host's path has no variable."""
    source = _source(option, text)
    if source is None:  # A variable says what is bound, from the first character on.
        return "/"
    first = re.search(PLACEHOLDER_OR_MACRO, source)
    return None if first is None else posixpath.dirname(source[: first.start()])
