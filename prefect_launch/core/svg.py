"""SVG drawings: their frame, texts in them, and how they stand in Markdown.

Both of Prefect's UIs draw an image in a data address, and no `<svg>` that stands in Markdown. A drawing has a
background of its own, so that it can be read on a dark page.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape
from typing import Final

#: Colours on the drawing's white: text, less important text, lines of a grid, data, the best of it, and faults.
INK: Final = "#374151"
PALE_INK: Final = "#6b7280"
GRID: Final = "#e5e7eb"
DATA: Final = "#2563eb"
BEST: Final = "#ea580c"
BAD: Final = "#dc2626"
#: What no XML may hold, escaped or not.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def drawing(width: float, height: float, parts: Iterable[str], title: str = "", *, font: int = 11) -> str:
    """Return a whole drawing.

    Args:
        width: in pixels.
        height: in pixels.
        parts: elements, in the order in which they are drawn.
        title: the text for readers who cannot see it.
        font: size of its texts in pixels.
    """
    name = f"<title>{escaped(title)}</title>" if title else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
        f' height="{height:g}" font-family="system-ui, sans-serif" font-size="{font}">{name}'
        f'<rect width="{width:g}" height="{height:g}" rx="6" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "middle", *, fill: str = INK, more: str = "") -> str:
    """Return a line of text; nothing in it is markup.

    Args:
        x: of its start, middle or end.
        y: of its base line.
        words: what it says.
        anchor: what of it is at x: `start`, `middle` or `end`.
        fill: its colour.
        more: further attributes.
    """
    attributes = f" {more}" if more else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}"{attributes}>{escaped(words)}</text>'


def escaped(words: str) -> str:
    """Return a text as XML and HTML have it."""
    return escape(_NOT_XML.sub("\ufffd", words))


def title(x: float, y: float, words: str, *, max_chars: int = 45) -> str:
    """Return the heading of a chart, cut to so many characters."""
    return text(x, y, shortened(words, max_chars), "start", more='font-weight="600" font-size="13"')


def shortened(words: str, max_chars: int) -> str:
    """Return a text of at most so many characters, with a sign where it is cut."""
    return words if len(words) <= max_chars else f"{words[: max(1, max_chars - 1)]}…"


def abbreviated(name: str, max_chars: int) -> str:
    """Return a name of at most so many characters, cut in its middle: names of a family differ at their ends."""
    if len(name) <= max_chars:
        return name
    end = max_chars // 2
    return f"{name[: max(1, max_chars - end - 1)]}…{name[-end:] if end else ''}"


def markdown_image(svg: str, words: str) -> str:
    """Return a drawing as an image in Markdown.

    Args:
        svg: the drawing.
        words: what is shown in its place where it cannot be drawn.
    """
    return f"![{words}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def markdown_code(words: str) -> str:
    """Return a text as code in a cell of a Markdown table: nothing in it is Markdown or HTML."""
    flat = " ".join(words.split())
    return "`" + flat.replace("`", "'").replace("|", "\\|") + "`" if flat else ""
