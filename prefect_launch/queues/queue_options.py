"""Queue options as a queue's owner gives them, before they are checked.

The command line derives its options from them, so this module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class QueueOptions:
    """One queue, as its owner asks for it.

    Attributes:
        name: 1 to 64 letters, digits, `_`, `.`, `-`.
        type: the resource that its items run on, such as `local-process` or `local-container`.
        entity: its owner; by default that of the `Api`.
        prioritization_mode: `V0` (four priorities, the default) or `DISABLED` (one).
        config: the resource's options; `{{var}}` in it stands for a template variable, and
            `{"resource_args": {type: options}}` is understood too. Beside them may stand `docker: {pin: true}`, every
            item runs just the image that its tag meant when it was queued, or `{pin: false}`, the one that its tag
            means at the start; what an item says of it wins. `limits` is the most that an item may ask for:
            `{memory: 16g, gpus: 2, timeout: 12h}`. And `outputs: {max_bytes: 1g, max_files: 100}`: no more is kept of
            the outputs of one run.
        template_variables: `{name: {"schema": {type, enum, minimum, maximum, default}}}`.
        concurrency: how many items may be in work at a time, at least 1; `None` for no limit.
        submitter_options: options that submitters may set besides the resource's usual ones, or though the config sets
            them; `env.NAME` for one variable.
        submitter_secrets: names of the Secret blocks that submitters may name in `env`, and so have; by default none.
            The queue's own config may name any.
        fail_impossible_after: seconds, or a text such as `1h`, after which an item fails that asks for more than its
            agent's machine has, while no other agent is online for the queue that has as much; by default it waits.
    """

    name: str
    type: str
    entity: str | None = None
    prioritization_mode: str | None = None
    config: Mapping[str, Any] | None = None
    template_variables: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None
    concurrency: int | None = field(default=None, kw_only=True)
    submitter_options: Iterable[str] = field(default=(), kw_only=True)
    submitter_secrets: Iterable[str] = field(default=(), kw_only=True)
    fail_impossible_after: float | str | None = field(default=None, kw_only=True)
