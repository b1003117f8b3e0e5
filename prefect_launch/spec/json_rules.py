"""JSON rules of a launch spec: what JSON, the Prefect server and PostgreSQL can store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefect_launch.core.validation import json_fault
from prefect_launch.errors import SpecError

#: The Prefect server refuses parameters beyond 512 KiB; the difference is for the rest of the spec.
MAX_SPEC_BYTES = 500_000
#: JSON parsers fail somewhere between 200 and 1 000 levels.
MAX_SPEC_DEPTH = 100

#: Prefect's server rewrites a mapping that has this key, so no data may use it.
_RESERVED_KEY = "__prefect_kind"


def check_json(data: Mapping[str, Any]) -> None:
    """Refuse data that cannot be stored.

    Raises:
        SpecError: names the place of the fault.
    """
    copy = plain(data)
    if fault := json_fault(copy):
        raise SpecError(f"The launch spec cannot be kept by the server: {fault}.")
    text = json.dumps(copy, ensure_ascii=False)
    size = len(text.encode())
    if size > MAX_SPEC_BYTES:
        raise SpecError(
            f"The launch spec has {size:,} bytes; at most {MAX_SPEC_BYTES:,} are allowed."
            " Put large inputs in a file that the job reads."
        )
    if f'"{_RESERVED_KEY}"' in text:
        raise SpecError(
            f"The key {_RESERVED_KEY!r} is reserved by Prefect and cannot be used in a launch spec. Rename it."
        )


def plain(value: Any, depth: int = 0) -> Any:
    """Copy nested mappings and sequences to plain dicts and lists, so that the copy shares nothing with the caller."""
    if depth > MAX_SPEC_DEPTH:
        raise SpecError(
            f"The launch spec is nested more than {MAX_SPEC_DEPTH} levels deep, or refers to itself. Make it flatter."
        )
    if isinstance(value, Mapping):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    return value
