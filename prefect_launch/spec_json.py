"""Whether plain data can be a launch spec at all: what JSON, the Prefect server and PostgreSQL can keep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from prefect_launch.errors import SpecError
from prefect_launch.text import text_fault

#: The Prefect server refuses parameters beyond 512 KiB; what is left is for the rest of the spec.
MAX_SPEC_BYTES = 500_000
#: Readers of JSON give up somewhere between 200 and 1 000 levels.
MAX_SPEC_DEPTH = 100

#: Prefect's server rewrites a mapping that has this key, so nobody's data may carry it.
_RESERVED_KEY = "__prefect_kind"
_NUL = "\\u0000"  # As JSON writes it.


def check_json(data: Mapping[str, Any]) -> None:
    """Refuse data that cannot be kept.

    Raises:
        SpecError: naming where in it the fault is.
    """
    try:
        text = json.dumps(plain(data), allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise SpecError(f"The launch spec cannot be written as JSON: {_json_fault(data) or error}.") from None
    if size > MAX_SPEC_BYTES:
        raise SpecError(
            f"The launch spec has {size:,} bytes; at most {MAX_SPEC_BYTES:,} are allowed."
            " Put large inputs in a file that the job reads."
        )
    fault = _json_fault(data) if _NUL in text else None
    if fault:
        raise SpecError(f"The launch spec cannot be kept by the server: {fault}.")
    if f'"{_RESERVED_KEY}"' in text:
        raise SpecError(
            f"The key {_RESERVED_KEY!r} is reserved by Prefect and cannot be used in a launch spec. Rename it."
        )


def plain(value: Any, depth: int = 0) -> Any:
    """Copy nested mappings and sequences to plain dicts and lists, so that nothing of the caller's is shared."""
    if depth > MAX_SPEC_DEPTH:
        raise SpecError(
            f"The launch spec is nested more than {MAX_SPEC_DEPTH} levels deep, or refers to itself. Make it flatter."
        )
    if isinstance(value, Mapping):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    return value


def _json_fault(value: Any, path: str = "") -> str | None:
    if isinstance(value, Mapping):
        fault = next((fault for key in value if (fault := text_fault(str(key), f"a name in {path or 'it'}"))), None)
        if fault:
            return fault
        children = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, which JSON does not have"
    elif isinstance(value, str):
        return text_fault(value, path)
    elif value is None or isinstance(value, (int, float, bool)):
        return None
    else:
        return f"{path} is of the type {type(value).__name__!r}, which JSON does not have"
    return next((fault for key, item in children if (fault := _json_fault(item, key))), None)
