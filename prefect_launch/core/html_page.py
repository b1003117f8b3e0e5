"""HTML pages that need nothing else: one file, with tables that a click on a heading sorts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from prefect_launch.core.svg import escaped


class Html(str):
    """A text that is HTML already."""


def html_page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page, which loads nothing and runs no script but its own.

    Args:
        title: its title, as plain text.
        parts: its content as HTML, in order.
    """
    digest = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escaped(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + f"\n<script>{_SORT}</script></body></html>\n"
    )


def html_rows(headings: Sequence[str], rows: Iterable[Sequence[str]], *, sortable: bool = False) -> str:
    """Return a table; a cell that is no `Html` is plain text.

    Args:
        headings: of the columns; none for a table without a head.
        rows: the cells of each row.
        sortable: whether a click on a heading sorts it.
    """
    head = "".join(f"<th>{_cell(words)}</th>" for words in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return (
        f'<div class="wide"><table{" class=sortable" if sortable else ""}>'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table></div>"
    )


def _cell(words: str) -> str:
    return words if isinstance(words, Html) else escaped(words)


_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
figure { margin: 1rem 0; }
figure svg { width: 100%; max-width: 900px; height: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
td { max-width: 30rem; overflow-wrap: break-word; }
.sortable th { cursor: pointer; white-space: nowrap; }
.sortable td { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
"""
_SORT: Final = """
for (const table of document.querySelectorAll(".sortable")) {
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const down = head.dataset.order === "up";
    table.querySelectorAll("th").forEach((other) => delete other.dataset.order);
    head.dataset.order = down ? "down" : "up";
    const key = (row) => row.cells[column].textContent.trim();
    const number = (text) => (text === "" || isNaN(Number(text)) ? null : Number(text));
    const compare = (a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      if (x !== null && y !== null) return down ? y - x : x - y;
      if ((x === null) !== (y === null)) return x === null ? 1 : -1;
      return (down ? -1 : 1) * key(a).localeCompare(key(b));
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }));
}
"""
