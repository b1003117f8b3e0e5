"""Validation of data: JSON that the server and a launch spec can keep, pydantic's first error, texts in nested data.

The server answers with `orjson`, which has no integers beyond 64 bits, no NaN and no infinity, and PostgreSQL keeps no
text with a NUL. One such value, once stored, makes every list that holds it fail with 500, for everybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator

from prefect_launch.errors import LaunchError, SpecError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


def first_error(error: ValidationError) -> ErrorDetails:
    """Return what is wrong first.

    Raises:
        LaunchError: in its place, when a validator of ours has said it in words already.
    """
    first = error.errors()[0]
    said = first.get("ctx", {}).get("error")
    if isinstance(said, LaunchError):
        raise said from None
    return first


def reason(first: ErrorDetails) -> str:
    """Return why a value was refused: in the words of our validator, else of pydantic."""
    return str(first.get("ctx", {}).get("error") or first["msg"])


# --- JSON that the server can keep ---

#: The integers of 64 bits, signed or unsigned: what `orjson` writes.
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1
#: `orjson` gives up at 255 levels; the server puts what it keeps inside levels of its own.
MAX_DEPTH: Final = 200
#: Integers with more digits than this are described by their size: Python refuses to print the longest ones.
_SHOWN_DIGITS: Final = 100
_REPLACEMENT: Final = "\ufffd"
#: What may be a fault in a request's body, each digit written as 0; a look at it is needed only then. Searched so, a
#: megabyte takes less than a millisecond. 2**63 has 19 digits.
_SUSPECTS: Final = (b"\\u0000", b"0" * 19)
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")


def json_fault(value: Any, path: str = "") -> str | None:
    """Return what keeps a value from being kept by the server, in words; `None` when nothing does."""
    try:
        return _fault(value, path, MAX_DEPTH)
    except RecursionError:  # Python 3.10 counts each generator on the way down, and the caller's own depth.
        return _too_deep(path)


def _fault(value: Any, path: str, depth: int) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _text_fault(value, path)
    if isinstance(value, int):
        return None if MIN_INTEGER <= value <= MAX_INTEGER else f"{path} is {_number(value)}, {_CANNOT_SEND}"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}, which JSON does not have"
    if not isinstance(value, (Mapping, list, tuple)):
        return f"{path} is of the type {type(value).__name__!r}, which JSON does not have"
    if not depth:
        return _too_deep(path)
    if not isinstance(value, Mapping):
        return _first(_fault(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value))
    inside = f"a name in {path}" if path else "a name"
    return _first(_key_fault(key, inside) for key in value) or _first(
        _fault(item, f"{path}.{key}" if path else str(key), depth - 1) for key, item in value.items()
    )


def _too_deep(path: str) -> str:
    return f"{path.partition('.')[0].partition('[')[0]} is nested more than {MAX_DEPTH} levels deep"


_CANNOT_SEND: Final = "which Prefect's server cannot send"


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault), None)


def _key_fault(key: object, what: str) -> str | None:
    return _text_fault(key, what) if isinstance(key, str) else f"{what} is {key!r}, and must be a text: quote it"


def _text_fault(text: str, path: str) -> str | None:
    if "\0" in text:
        return f"{path} holds a NUL character, which PostgreSQL does not keep"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{path} holds half of a character (a lone surrogate); write it as whole UTF-8 text"
    return None


def _number(value: int) -> str:
    digits = math.ceil(value.bit_length() * math.log10(2))
    return str(value) if digits <= _SHOWN_DIGITS else f"an integer of about {digits:,} digits"


def check_server_json(value: Any, what: str, *, path: str = "", error: type[LaunchError] = SpecError) -> None:
    """Refuse a value that the server cannot keep.

    Args:
        value: the value.
        what: what it is, as the subject of the message, such as `The launch spec`.
        path: its name in the message, before the place of the fault in it.
        error: what is raised.

    Raises:
        LaunchError: of the kind `error`, naming the place, the value and the rule.
    """
    if fault := json_fault(value, path):
        raise error(f"{what} cannot be kept by the server: {fault}.")


def check_body(content: bytes) -> None:
    """Refuse a request whose JSON the server would keep and could not send again: the last look, before it leaves.

    Raises:
        SpecError: naming the place and the value.
    """
    zeros = content.translate(_DIGITS)
    if any(suspect in zeros for suspect in _SUSPECTS):
        check_server_json(json.loads(content), "What is sent to the Prefect server")


def clean_text(text: str) -> str:
    """Return a text as the server can keep it: U+FFFD for each NUL, and each half of a character, in it."""
    whole = text.replace("\0", _REPLACEMENT)
    return whole if whole.isascii() else whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_json(value: Any) -> Any:
    """Return a copy of a value that the server can keep, with what it cannot keep in it as text."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_json(item) for item in value]
    if isinstance(value, int) and json_fault(value):
        return _number(value)
    return value if json_fault(value) is None else clean_text(str(value))


#: A field of a frozen value that the server keeps as text.
ServerText = Annotated[str, BeforeValidator(lambda value: clean_text(value) if isinstance(value, str) else value)]


# --- JSON of a launch spec ---

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


# --- texts in nested data ---


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts of nested mappings and lists, in their order; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a copy of nested mappings and lists with their texts changed; keys and everything else stay."""
    if isinstance(value, Mapping):
        return {key: map_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
