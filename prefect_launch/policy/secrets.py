"""Which secrets a submitter may name: those that the queue's owner allows by name, and in `env` alone.

Whoever may name a secret can have it: a job prints what it was given. So a queue names its secrets in its own config,
and a submitter names only those of its `submitter_secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.server.secrets import reference_to, secret_names

_ENV = "env"


def check_submitter_secrets(options: Mapping[str, Any], *, resource: str, allowed: Collection[str] | None) -> None:
    """Refuse a submitter's options that name a secret which is not the submitter's to name. None is read for it.

    Args:
        options: `resource_args` of this resource, under their normal names.
        resource: its name, for the messages.
        allowed: names of the secrets that the queue lets submitters name; `None`: any, for a run of no queue, which its
            caller starts on their own machine with their own access to the server.

    Raises:
        UnsafeSpecError: naming the secret, where it stands, and the next step.
    """
    for option, value in options.items():
        for name in secret_names(value):
            if option != _ENV:
                raise UnsafeSpecError(
                    f"resource_args.{resource} option {option!r} names the secret {name!r}: a submitter's secret may"
                    " stand in env alone, where no command line shows it. Give it as"
                    f" env={{NAME: {reference_to(name)}}}."
                )
            if allowed is not None and name not in allowed:
                raise UnsafeSpecError(
                    f"resource_args.{resource} option 'env' names the secret {name!r}, which this queue does not let"
                    f" submitters name{_instead(allowed)}. The queue's owner can name it in the queue's own config, or"
                    f" allow it to submitters ('prefect-launch queue create … --replace --allow-secret {name}')."
                )


def check_variables_name_no_secret(values: Mapping[str, Any]) -> None:
    """Refuse template variables whose values name a secret: what a submitter fills in is never filled in again.

    Raises:
        UnsafeSpecError: naming the variable and the secret.
    """
    for variable, value in values.items():
        for name in secret_names(value):
            raise UnsafeSpecError(
                f"Template variable {variable!r} names the secret {name!r}; a variable's value is taken as it is, and"
                " names none. Give another value; the queue's owner can name the secret in the queue's own config."
            )


def secrets_pattern(allowed: Collection[str]) -> str:
    """Return a regular expression (of JSON schemas) that texts match which name no secret but these."""
    names = "|".join(re.escape(name) for name in sorted(allowed)) or r"(?!)"
    reference = rf"\{{\{{\s*prefect\.blocks\.secret\.(?!(?:{names})\s*\}}\}})[a-z0-9-]+\s*\}}\}}"
    return rf"^(?![\s\S]*{reference})"


def _instead(allowed: Collection[str]) -> str:
    return f" (it lets them name {', '.join(sorted(allowed))})" if allowed else ""
