"""Settings of a machine's operator, in a YAML file in `~/.config/prefect-launch/`, or one that a variable names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from prefect_launch.core.validation import reason
from prefect_launch.errors import AgentConfigError

_Settings = TypeVar("_Settings", bound=BaseModel)


def read_machine_settings(model: type[_Settings], file: Path, variable: str, what: str) -> _Settings:
    """Read the settings of one kind; without a file, those by default.

    Args:
        model: of the settings.
        file: where they are, unless the variable names another file.
        variable: that environment variable.
        what: the settings, for messages.

    Raises:
        AgentConfigError: when the file cannot be read, or says something that it must not.
    """
    named = os.environ.get(variable)
    path = Path(named or file).expanduser()
    if not named and not path.is_file():
        return model()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AgentConfigError(f"The {what} {str(path)!r} cannot be read: {error}. Correct the file.") from None
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise AgentConfigError(f"The {what} {str(path)!r} are wrong at {where}: {reason(first)}.") from None
