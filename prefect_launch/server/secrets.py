"""Secret blocks of Prefect that a queue or a submitter names; the agent reads them when a run starts.

`{{ prefect.blocks.secret.<name> }}` is filled in where the queue's owner wrote it, and in a submitter's `env` if the
queue allows that name (`prefect_launch.policy.submitter_options`). It is filled in nowhere else. The values go into the
run's environment and options, and never into the database, a log, a command line or a file that stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.core.validation import map_texts, texts_in
from prefect_launch.errors import NotFoundError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

#: How a placeholder names a secret; the block's name follows.
SECRET_PREFIX: Final = "prefect.blocks.secret."
_SECRET: Final = re.compile(r"\{\{\s*prefect\.blocks\.secret\.([a-z0-9-]+)\s*\}\}")

#: How a queue's base job template names one: Prefect's server takes what it knows as a placeholder, the usual form
#: too, for a variable of the template that is not declared, and refuses it.
_STORED: Final = re.compile(r"\{\{ prefect\.blocks\.secret/([a-z0-9-]+) \}\}")

#: Reads a Secret block by its name.
ReadSecret = Callable[[str], Awaitable[str]]


def secret_names(value: Any) -> list[str]:
    """List the secrets that the texts of nested mappings and lists name, each once, in their order."""
    return list(dict.fromkeys(name for text in texts_in(value) for name in _SECRET.findall(text)))


def reference_to(name: str) -> str:
    """Return the text that names a secret: `{{ prefect.blocks.secret.<name> }}`."""
    return f"{{{{ {SECRET_PREFIX}{name} }}}}"


def fill_secrets(value: Any, known: Mapping[str, str]) -> Any:
    """Return a copy of nested mappings and lists with the secrets that their texts name filled in, in one pass.

    Args:
        value: what names them. It is not changed.
        known: what the blocks hold, by name. A secret that is not among them stays as it is named.
    """
    return map_texts(value, lambda text: _SECRET.sub(lambda match: known.get(match[1], match[0]), text))


def as_stored(value: Any) -> Any:
    """Return a queue's config with its secrets named as a base job template can keep them."""
    return map_texts(value, lambda text: _SECRET.sub(lambda match: f"{{{{ prefect.blocks.secret/{match[1]} }}}}", text))


def from_stored(value: Any) -> Any:
    """Return what `as_stored` was given."""
    return map_texts(value, lambda text: _STORED.sub(lambda match: reference_to(match[1]), text))


async def read_secrets(names: Collection[str], read: ReadSecret) -> dict[str, str]:
    """Return what Secret blocks hold, by name.

    Raises:
        NotFoundError: when there is no such block.
    """
    return {name: await read(name) for name in names}


async def name_secret(name: str) -> str:
    """Return the text that names a secret, in the place of what it holds: for a preview that must read none."""
    return reference_to(name)


async def read_secret(name: str, client: PrefectClient | None = None) -> str:
    """Return what a Secret block holds: text as it is, anything else as JSON.

    Raises:
        NotFoundError: when there is no such block.
    """
    from prefect.blocks.system import Secret

    try:
        block: Any = await Secret.aload(name, client=client)
    except ValueError:
        raise no_such_secret(name) from None
    # Not `block.get()`, which reads text that happens to be JSON: a key file would become a Python dict, 1e5 100000.0.
    held = block.value.get_secret_value()
    return held if isinstance(held, str) else json.dumps(held)


def no_such_secret(name: str) -> NotFoundError:
    """Return the error of a secret that is not there."""
    return NotFoundError(
        f"There is no Secret block {name!r} on the Prefect server. Make it in the UI (Blocks, Secret) or with"
        f" Secret(value=…).save({name!r})."
    )
