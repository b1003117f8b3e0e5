"""What IPython understands and Python does not, taken out of a notebook's program, or refused.

What only sets the notebook up (`%matplotlib inline`) goes. What runs a command (`!pip install …`) goes too, as in the
reference, and the program says so when it comes there. `%time` and `%%time` leave their code. What else a notebook does
with magics would be missing without a word, so it is refused.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from prefect_launch.errors import SourceError

_QUIET: Final = frozenset(
    {"matplotlib", "load_ext", "reload_ext", "unload_ext", "autoreload", "config", "pinfo", "pinfo2", "xmode"}
    | {"precision", "pprint", "colors", "history", "who", "whos", "lsmagic", "pdb", "doctest_mode", "page", "psearch"}
)
_TOLD: Final = frozenset({"pip", "conda", "mamba", "micromamba", "uv", "timeit", "system", "sx"})
_SHOWN_CELLS: Final = frozenset({"html", "HTML", "javascript", "js", "latex", "markdown", "svg", "SVG", "timeit"})
_METHODS: Final = frozenset({"run_line_magic", "run_cell_magic", "system", "getoutput"})
_DISPLAY: Final = "try:\n    display\nexcept NameError:\n    display = print\n"


def as_plain_python(program: str, name: str) -> str:
    """Return a program, as nbconvert writes it, without anything of IPython's.

    Args:
        program: the source.
        name: of the notebook, for messages.

    Raises:
        SourceError: when it is no Python, or does what cannot be left out.
    """
    plain = _rewrite(program, name)
    return f"{_DISPLAY}{plain}" if _wants_display(plain) else plain


def _rewrite(program: str, name: str) -> str:
    tree = _parsed(program, name)
    handled = {id(call) for _, call in _statements(tree)}
    for node in ast.walk(tree):
        if _is_magic(node) and id(node) not in handled:
            raise _refusal(name, ast.get_source_segment(program, node) or "a magic", "its result is used")
    lines = program.splitlines()
    for statement, call in sorted(_statements(tree), key=lambda pair: -pair[0].lineno):
        indent = lines[statement.lineno - 1][: statement.col_offset]  # as it is written: tabs stay tabs
        instead = _instead_of(call, name).splitlines() or ["pass"]
        lines[statement.lineno - 1 : statement.end_lineno] = [f"{indent}{line}".rstrip() for line in instead]
    plain = "\n".join(lines) + "\n"
    _parsed(plain, name)
    return plain


def _instead_of(call: ast.Call, name: str) -> str:
    method = ast.unparse(call.func).rpartition(".")[2]
    words = [str(part.value) for part in call.args if isinstance(part, ast.Constant)]
    if method in ("system", "getoutput"):
        return _told(f"!{words[0] if words else ''}")
    magic, line = words[0], words[1] if len(words) > 1 else ""
    if method == "run_line_magic":
        if magic in _QUIET:
            return f"pass  # %{magic} {line}".rstrip()
        if magic in _TOLD:
            return _told(f"%{magic} {line}")
        if magic == "time":
            return _rewrite(_transformed(line), name)
        raise _refusal(name, f"%{magic} {line}", "it cannot be left out")
    body = words[2] if len(words) > 2 else ""
    if magic == "time" or (magic == "capture" and not line.strip()):
        return _rewrite(_transformed(body), name)
    if magic in _SHOWN_CELLS:
        return _told(f"%%{magic} {line}")
    raise _refusal(name, f"%%{magic} {line}", "it cannot be left out")


def _told(what: str) -> str:
    text = f"[prefect-launch] left out of the notebook: {what.strip()}"
    return f"print({text!r}, flush=True)"


def _refusal(name: str, what: str, why: str) -> SourceError:
    return SourceError(
        f"The notebook {name!r} does what only a notebook can: {what.strip().splitlines()[0][:120]!r}; {why}."
        " Write it as Python, such as with subprocess or os, and put packages into requirements.txt."
    )


def _transformed(cell: str) -> str:
    from IPython.core.inputtransformer2 import TransformerManager

    return str(TransformerManager().transform_cell(cell))  # type: ignore[no-untyped-call]


def _parsed(program: str, name: str) -> ast.Module:
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError) as error:
        line = (getattr(error, "text", None) or "").strip()
        raise SourceError(
            f"The notebook {name!r} is no good Python: {error} {line!r}. Run it in Jupyter first."
        ) from None


def _statements(tree: ast.Module) -> Iterator[tuple[ast.Expr, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _is_magic(node.value):
            yield node, node.value


def _is_magic(node: ast.AST) -> bool:
    """Whether it is one of the calls `get_ipython().…()` that IPython itself writes."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in _METHODS:
        return False
    shell = node.func.value
    return isinstance(shell, ast.Call) and isinstance(shell.func, ast.Name) and shell.func.id == "get_ipython"


def _wants_display(program: str) -> bool:
    """Whether it uses the function `display`, which IPython gives to every cell, without having one of its own."""
    names = [node for node in ast.walk(ast.parse(program)) if isinstance(node, (ast.Name, ast.alias))]
    own = any(
        (isinstance(node, ast.Name) and node.id == "display" and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.alias) and "display" in (node.name.split(".")[0], node.asname, node.name))
        for node in names
    )
    used = any(isinstance(node, ast.Name) and node.id == "display" for node in names)
    return used and not own and "from __future__" not in program
