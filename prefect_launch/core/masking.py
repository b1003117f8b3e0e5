"""Secret masking: a run's secrets read `********` in its logs, messages and outputs.

A value is found line by line, as it is and as JSON, URLs, Python's `repr` and base64 write it; other encodings are
not. Values, and lines of them, of fewer than 4 characters are not masked: they occur in any text. Of a
value that is a JSON object, such as a key file, the texts of 8 characters and more are masked one by one, too.

Loading it needs the standard library of Python 3.8 alone: the wrapper of jobs in other work pools takes it along.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

#: Replaces a secret.
MASK: Final = "********"
#: Shorter ones would mask half of any text, and are no secrets.
MIN_CHARS: Final = 4
#: Among the texts of a JSON object are users' names and words such as "key".
_MIN_FIELD_CHARS: Final = 8
#: A value needs so many bytes to fix a part of its base64 text, whatever precedes and follows it.
_MIN_BASE64_BYTES: Final = 8
#: The lines of a value that is written by itself: of PEM, and of `base64` and MIME.
_BASE64_LINES: Final = (64, 76)
_LINE_END: Final = re.compile(r"[\r\n]+")
#: Neither byte is part of any UTF-8 text: one stands for each byte of a secret, the other for what was this by chance.
_BLANK: Final = b"\xc1"
_NO_BLANK: Final = b"\xc0"
_BLANKS: Final = re.compile(rb"\xc1+")
_USERS: Final = re.compile(r"(?<=://)[^@/\s]*@")
_COPY_BYTES: Final = 1 << 20
#: A longer form is looked for alone: among others, it would be compared anew at each place that begins like it.
_MOST_BYTES_TOGETHER: Final = 128


class Mask:
    """Hides some secrets; one of no secrets changes nothing."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values for part in (value, *_fields(value)) for form in _forms(part)}
        alone = {form for form in forms if len(form) > _MOST_BYTES_TOGETHER or _period(form) < len(form)}
        self._longest = max(map(len, forms), default=0)
        self._alone = [(form, _period(form)) for form in alone]
        self._together = _pattern(forms - alone) if forms - alone else None

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return self._longest > 0

    def __repr__(self) -> str:
        return "<Mask>"

    def text(self, text: str) -> str:
        """Return a text with the secrets in it masked."""
        if not self:
            return text
        return self.data(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def data(self, data: bytes) -> bytes:
        """Return bytes with the secrets in them masked."""
        return self.shown(self.blank(data))

    def json(self, value: Any) -> Any:
        """Return JSON data with the secrets in it masked, names included; a number that holds one becomes the mask."""
        if not self:
            return value
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.json(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.json(item) for item in value]
        if isinstance(value, str):
            return self.text(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return MASK if is_number and self.text(repr(value)) != repr(value) else value

    def sure(self, data: bytes) -> int:
        """Return how many bytes of a text that goes on can be masked already: what follows may be half a secret."""
        if not self:
            return len(data)
        end, blanked = max(0, len(data) - self._longest + 1), self.blank(data)
        while end and blanked[end - 1 : end + 1] == _BLANK * 2:
            end -= 1
        return end

    def blank(self, data: bytes) -> bytes:
        """Return bytes of the same length in which each byte of a secret is a blank, which `shown` makes a mask of."""
        if not self:
            return data
        found = bytearray(data.replace(_BLANK, _NO_BLANK))
        for start, end in self._spans(data):
            found[start:end] = _BLANK * (end - start)
        return bytes(found)

    def shown(self, data: bytes) -> bytes:
        """Return what `blank` or `read` gave with a mask in the place of each secret."""
        return _BLANKS.sub(MASK.encode(), data) if self else data

    def read(self, path: Path, start: int, count: int) -> bytes:
        """Read a part of a file as `blank` returns it, also of a secret that begins before it or ends behind it.

        Returns:
            At most `count` bytes from `start` on; none when there is no such file.
        """
        beyond = max(self._longest - 1, 0)
        lead = min(start, beyond)
        try:
            with path.open("rb") as file:
                file.seek(start - lead)
                data = file.read(lead + count + beyond)
        except FileNotFoundError:
            return b""
        return self.blank(data)[lead : lead + count]

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file with the secrets in it masked."""
        position, in_secret = 0, False
        with target.open("wb") as file:
            while data := self.read(source, position, _COPY_BYTES):
                position += len(data)
                file.write(self.shown(data.lstrip(_BLANK) if in_secret else data))
                in_secret = data.endswith(_BLANK)

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Mask the secrets in the text of an error that comes out of the block.

        Raises:
            InternalError: in the place of any other error than a `LaunchError` that holds a secret.
        """
        from prefect_launch.errors import InternalError, LaunchError

        try:
            yield
        except LaunchError as error:
            error.args = tuple(self.text(part) if isinstance(part, str) else part for part in error.args)
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if self.text(text) == text:
                raise
            raise InternalError(self.text(text)) from None

    def _spans(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield where secrets stand; they may overlap. The time that it takes grows with the data alone."""
        for form, period in self._alone:
            yield from _runs(data, form, period)
        match = self._together.search(data) if self._together is not None else None
        while match is not None:
            yield match.span()
            match = match.re.search(data, match.start() + 1)  # The next may begin inside of this one.


def without_users(text: str) -> str:
    """Return a text with `***` for the user, and the password, of each address in it."""
    return _USERS.sub("***@", text)


def _runs(data: bytes, form: bytes, period: int) -> Iterator[tuple[int, int]]:
    """Yield where a form stands; where it overlaps itself by whole periods, as one span.

    Other places where it stands are more than half its length apart, so that none is searched more than twice.
    """
    again = form[-period:]
    start = data.find(form)
    while start >= 0:
        end = start + len(form)
        while period < len(form) and data.startswith(again, end):
            end += period
        yield start, end
        start = data.find(form, end - len(form) + 1)


def _period(form: bytes) -> int:
    """Return the shortest period of a form that repeats itself, such as 2 of "ababa"; else its length."""
    half = (len(form) + 1) // 2
    period = form.find(form[:half], 1)
    return period if 0 < period <= len(form) // 2 and form[period:] == form[:-period] else len(form)


def _fields(value: str) -> Iterator[str]:
    """Yield the texts of a secret that is a JSON object or array."""
    if value.lstrip()[:1] not in ("{", "["):
        return
    try:
        waiting = [json.loads(value)]
    except (ValueError, RecursionError):
        return
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            if len(found) >= _MIN_FIELD_CHARS:
                yield found
        elif isinstance(found, (dict, list)):
            waiting.extend(found.values() if isinstance(found, dict) else found)


def _forms(value: str) -> Iterator[bytes]:
    """Yield how a secret may stand in a log, each form at least as long as is masked."""
    for line in _LINE_END.split(value):
        piece = line.strip()
        if len(piece) >= MIN_CHARS:
            written = (
                piece,
                json.dumps(piece)[1:-1],
                json.dumps(piece, ensure_ascii=False)[1:-1],
                repr(piece)[1:-1],
                quote(piece),
                quote(piece, safe=""),
                quote_plus(piece),
            )
            yield from (form.encode("utf-8", "surrogatepass") for form in written)
    yield from _base64_forms(value.encode("utf-8", "surrogatepass"))
    yield from _base64_forms(value.strip().encode("utf-8", "surrogatepass"))


def _base64_forms(value: bytes) -> Iterator[bytes]:
    """Yield what stands of a value in the base64 text of whatever it is a part of, such as `user:password`."""
    if len(value) < _MIN_BASE64_BYTES:
        return
    for before in range(3):
        whole = base64.b64encode(bytes(before) + value)
        # Four characters tell three bytes: those that also tell a neighbour's bits are left out.
        first, last = -(-before * 8 // 6), (before + len(value)) * 8 // 6
        yield whole[first:last]
        yield whole[first:last].translate(bytes.maketrans(b"+/", b"-_"))
        if before == 0:
            for width in _BASE64_LINES:
                lines = (whole[start : min(start + width, last)] for start in range(0, last, width))
                yield from (line for line in lines if len(line) >= _MIN_BASE64_BYTES)


def _pattern(forms: Iterable[bytes]) -> re.Pattern[bytes]:
    """Compile one expression for all forms, the longest first, grouped by their first byte to be quick."""
    by_first: dict[int, list[bytes]] = {}
    for form in sorted(forms, key=len, reverse=True):
        by_first.setdefault(form[0], []).append(re.escape(form[1:]))
    groups = (re.escape(bytes([first])) + b"(?:" + b"|".join(rest) + b")" for first, rest in by_first.items())
    return re.compile(b"|".join(groups))
