"""Marked lines in the log of a job whose system hands back nothing but the log: its start, its results, its end.

A small shell program (`marked_script`) runs the job's command and prints the lines: ASCII's record separator, the run's
name in brackets, a word, and the word's value. `MarkedLog` takes them out again, wherever they stand: what precedes the
first one is the system's own, and a job's last line need not end. A job's bytes are never changed.

The words: ``begin``; ``outputs`` and `outputs.json` in base64; ``too-large`` and its bytes when it is beyond the
limit; ``files`` and how many other files are in the outputs folder; ``end`` and the exit code, with ``no-program``
after it when the program is not there. A job that was killed together with the shell has no ``end``.
"""

from __future__ import annotations

import base64
import binascii
import shlex
from collections.abc import Iterator
from typing import Final

#: What `outputs.json` may have: a line of a log holds a third more.
MAX_OUTPUTS_BYTES: Final = 64 * 1024

_SEPARATOR: Final = b"\x1e"

#: Runs the positional parameters as the job. `exec 2>`: a shell reports the signal that has ended its child.
_SCRIPT: Final = r"""
launch_name={name}
{before}
launch_term=
trap launch_term=1 TERM
launch_dir=$(mktemp -d) || exit 125
{outputs}
mkdir -p "$LAUNCH_OUTPUT_DIR" || exit 125
export LAUNCH_OUTPUT_DIR
printf '\036[%s] begin\n' "$launch_name"
{enter}
exec 3>&2 2>/dev/null
launch_code=143
if [ -z "$launch_term" ]; then
  (exec env "$@" 2>&3 3>&-)
  launch_code=$?
fi
trap '' TERM HUP INT
launch_note=
[ "$launch_code" != 127 ] || command -v "$1" >/dev/null || launch_note=' no-program'
launch_file=$LAUNCH_OUTPUT_DIR/outputs.json
if [ -f "$launch_file" ]; then
  launch_size=$(($(wc -c <"$launch_file")))
  if [ "$launch_size" -le {limit} ]; then
    printf '\036[%s] outputs %s\n' "$launch_name" "$(base64 <"$launch_file" | tr -d '\n')"
  else
    printf '\036[%s] too-large %s\n' "$launch_name" "$launch_size"
  fi
fi
launch_files=$(($(find "$LAUNCH_OUTPUT_DIR" -type f ! -path "$launch_file" | wc -l)))
cd /
rm -rf "$launch_dir"
printf '\036[%s] files %s\n\036[%s] end %s%s\n' \
  "$launch_name" "$launch_files" "$launch_name" "$launch_code" "$launch_note"
exit "$launch_code"
"""


def marked_script(name: str, *, output_dir: str | None = None, before: str = "", enter: str = "") -> str:
    """Return a POSIX shell program that runs its positional parameters as a job, and marks its log.

    The job and the shell are sent TERM together: the shell waits for the job, and prints what it left. When the job has
    not begun by then, it never does.

    Args:
        name: of the run, unique: it is in every marked line.
        output_dir: what `$LAUNCH_OUTPUT_DIR` is; None: a temporary folder, which is removed when the job has ended.
        before: commands before the job begins; what they print is no part of its log.
        enter: commands of the job before its own, such as to change the folder; `$launch_dir` is a temporary folder.
    """
    outputs = f"LAUNCH_OUTPUT_DIR={shlex.quote(output_dir) if output_dir else '$launch_dir/outputs'}"
    return _SCRIPT.format(
        name=shlex.quote(name), outputs=outputs, before=before, enter=enter, limit=MAX_OUTPUTS_BYTES
    ).lstrip()


class MarkedLog:
    """A log with marked lines, read in pieces from a position on.

    Args:
        name: of the run.
        position: how much of the log was read before, in bytes; 0: nothing, so what precedes ``begin`` is left out.

    Attributes:
        position: up to where the log is read now. The next reader continues from there.
        has_begun: whether the job has begun; always so with a position.
        outputs: its `outputs.json`; None while there is none, or it is not readable.
        outputs_bytes: how many bytes it has when it is beyond the limit, else None.
        other_files: how many other files the job has left in its outputs folder; None while it is not known.
        exit_code: of the job; None while it is not known.
        has_program: False when the job's program is not there.
    """

    def __init__(self, name: str, position: int = 0) -> None:
        self._mark = _SEPARATOR + f"[{name}] ".encode()
        self._held = b""
        self.position = position
        self.has_begun = position > 0
        self.outputs: bytes | None = None
        self.outputs_bytes: int | None = None
        self.other_files: int | None = None
        self.exit_code: int | None = None
        self.has_program = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next piece of the log, and yield what of it the job has written.

        `position` is behind each piece as it is yielded. What may be the beginning of a marked line is held back.
        """
        self._held += data
        while self._held:
            at = self._held.find(self._mark)
            if at != 0:
                yield from self._take(self._held[: at if at > 0 else self._sure()])
                if at < 0:
                    return
            end = self._held.find(b"\n")
            if end < 0:
                return
            self._read(self._held[len(self._mark) : end].decode(errors="replace"))
            self._skip(end + 1)

    def _take(self, content: bytes) -> Iterator[bytes]:
        self._skip(len(content))
        if content and self.has_begun:
            yield content

    def _skip(self, count: int) -> None:
        self._held = self._held[count:]
        self.position += count

    def _sure(self) -> int:
        """Return how many of the held bytes are no beginning of a mark."""
        at = self._held.rfind(_SEPARATOR)
        return at if at >= 0 and self._mark.startswith(self._held[at:]) else len(self._held)

    def _read(self, line: str) -> None:
        word, _, value = line.partition(" ")
        if word == "begin":
            self.has_begun = True
        elif word == "outputs":
            self.outputs = _decoded(value)
        elif word == "too-large":
            self.outputs_bytes = _number(value)
        elif word == "files":
            self.other_files = _number(value)
        elif word == "end":
            code, _, note = value.partition(" ")
            self.exit_code, self.has_program = _number(code), note != "no-program"


def _decoded(value: str) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        return None


def _number(value: str) -> int | None:
    return int(value) if value.isdecimal() else None
