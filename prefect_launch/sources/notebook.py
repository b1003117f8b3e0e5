"""Notebooks as entry points: `train.ipynb` becomes `train_ipynb.py`, which any Python runs without Jupyter.

A folder's notebook is converted when the job is made, a git repository's when it is fetched. nbconvert converts it (the
extra `notebook`) and IPython's own transformer makes calls of its magics; those calls are then removed, or refused:

- A magic that only sets the notebook up (`%matplotlib inline`) is removed.
- A command (`!pip install …`) is removed as in the reference, and the program prints a line in its place.
- `%time` and `%%time` leave their code.
- Any other magic is refused, because the program would lack it without a word.
"""

from __future__ import annotations

import ast
import posixpath
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from prefect_launch.errors import InfrastructureError, OperatorError, SourceError

_NOTEBOOK: Final = ".ipynb"
_SCRIPT: Final = "_ipynb.py"

#: Magics that are removed without a word.
_SETUP_MAGICS: Final = frozenset(
    {"matplotlib", "load_ext", "reload_ext", "unload_ext", "autoreload", "config", "pinfo", "pinfo2", "xmode"}
    | {"precision", "pprint", "colors", "history", "who", "whos", "lsmagic", "pdb", "doctest_mode", "page", "psearch"}
)
#: Magics in whose place the program prints a line.
_COMMAND_MAGICS: Final = frozenset({"pip", "conda", "mamba", "micromamba", "uv", "timeit", "system", "sx"})
_DISPLAY_CELLS: Final = frozenset({"html", "HTML", "javascript", "js", "latex", "markdown", "svg", "SVG", "timeit"})
_METHODS: Final = frozenset({"run_line_magic", "run_cell_magic", "system", "getoutput"})
#: IPython gives each cell a function `display`.
_DISPLAY: Final = "try:\n    display\nexcept NameError:\n    display = print\n"
#: Jupyter runs a notebook in its own folder.
_HOME: Final = "import os as _os\n_os.chdir(_os.path.dirname(_os.path.abspath(__file__)))\n"


def notebook_in(entry_point: Sequence[str]) -> str | None:
    """Return the notebook that a command runs as a program: `train.ipynb`, or `python train.ipynb`; None otherwise."""
    place = _place_of_notebook(entry_point)
    return None if place is None else posixpath.normpath(entry_point[place])


def as_program(entry_point: Sequence[str]) -> tuple[str, ...]:
    """Return a command with the program that is made of its notebook in the notebook's place."""
    place = _place_of_notebook(entry_point)
    if place is None:
        return tuple(entry_point)
    script = script_of(posixpath.normpath(entry_point[place]))
    return (*(entry_point[:place] or ("python",)), script, *entry_point[place + 1 :])


def script_of(notebook: str) -> str:
    """Return the path of a notebook's program: next to it, under a name that no program of its folder has."""
    return notebook.removesuffix(_NOTEBOOK) + _SCRIPT


def convert(content: bytes, name: str) -> str:
    """Return a notebook as a program.

    Args:
        content: of the notebook.
        name: its path in the code.

    Raises:
        SourceError: when it is no notebook of Python, or does what only a notebook can.
        OperatorError: when nbconvert is not installed here.
    """
    try:
        import nbformat
        from nbconvert import PythonExporter
    except ImportError as error:
        raise OperatorError(
            f"The notebook {name!r} cannot be converted here ({error}). Install the extra on this machine:"
            " pip install 'prefect-launch[notebook]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # An old notebook's cells have no ids; nobody needs them here.
            notebook = nbformat.reads(content.decode("utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - nbformat raises whatever its readers raise
        raise SourceError(
            f"{name!r} is no notebook that can be read: {str(error)[:200]}. Save it again in Jupyter."
        ) from None
    language = _language(notebook.get("metadata", {}))
    if language != "python":
        raise SourceError(f"The notebook {name!r} is written in {language}. Only notebooks of Python can be jobs.")
    exported, _ = PythonExporter().from_notebook_node(notebook)  # type: ignore[no-untyped-call]
    program = _without_magics(exported, name)
    home = _HOME if posixpath.dirname(name) else ""
    display = _DISPLAY if re.search(r"\bdisplay\b", program) else ""
    return _begun(program, f"{home}{display}", name)


def convert_in(folder: Path, entry_point: Sequence[str], build_context: str | None) -> None:
    """Make the program of a fetched notebook, unless it exists.

    Args:
        folder: the code.
        entry_point: the job's command, which runs the program.
        build_context: the folder in the code that the command's paths are relative to, if not to its top.

    Raises:
        SourceError: when the notebook is not there, or cannot be a program.
        OperatorError: when nbconvert is not installed here.
        InfrastructureError: when the program cannot be written.
    """
    script = next((part for part in entry_point if part.endswith(_SCRIPT)), None)
    if script is None:
        return
    for place in (build_context or "", ""):
        path = folder / place / script
        if path.is_file():
            return
        notebook = path.with_name(path.name.removesuffix(_SCRIPT) + _NOTEBOOK)
        if notebook.is_file():
            try:
                name = notebook.relative_to(folder).as_posix()
                path.write_text(convert(notebook.read_bytes(), name), encoding="utf-8")
            except OSError as error:
                raise InfrastructureError(f"{path} cannot be written: {error}. Look at this machine's disk.") from error
            return
    raise SourceError(f"The notebook of the program {script!r} is not in the code. Make the job again.")


def _begun(program: str, start: str, name: str) -> str:
    """Put lines at the start of a program, behind its `from __future__ import …`."""
    body = _parsed(program, name).body
    future = [node.end_lineno or 0 for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    lines = program.splitlines(keepends=True)
    at = max(future, default=0)
    return "".join([*lines[:at], start, *lines[at:]])


def _place_of_notebook(entry_point: Sequence[str]) -> int | None:
    if entry_point and entry_point[0].endswith(_NOTEBOOK):
        return 0
    if not entry_point or not posixpath.basename(entry_point[0]).startswith("python"):
        return None  # papermill, jupyter: programs that want the notebook itself
    for place, part in enumerate(entry_point[1:], start=1):
        if not part.startswith("-"):
            return place if part.endswith(_NOTEBOOK) else None
    return None


def _language(metadata: Any) -> str:
    kernel, about = metadata.get("kernelspec", {}), metadata.get("language_info", {})
    return str(kernel.get("language") or about.get("name") or "python").lower()


def _without_magics(program: str, name: str) -> str:
    """Return a program, as nbconvert writes it, without calls of magics; refuse those that cannot be removed."""
    tree = _parsed(program, name)
    handled = {id(call) for _, call in _statements(tree)}
    for node in ast.walk(tree):
        if _is_magic(node) and id(node) not in handled:
            raise _magic_error(name, ast.get_source_segment(program, node) or "a magic", "its result is used")
    lines = program.splitlines()
    for statement, call in sorted(_statements(tree), key=lambda pair: -pair[0].lineno):
        indent = lines[statement.lineno - 1][: statement.col_offset]  # as it is written: tabs stay tabs
        instead = _replacement(call, name).splitlines() or ["pass"]
        lines[statement.lineno - 1 : statement.end_lineno] = [f"{indent}{line}".rstrip() for line in instead]
    plain = "\n".join(lines) + "\n"
    _parsed(plain, name)
    return plain


def _replacement(call: ast.Call, name: str) -> str:
    method = ast.unparse(call.func).rpartition(".")[2]
    words = [str(part.value) for part in call.args if isinstance(part, ast.Constant)]
    if method in ("system", "getoutput"):
        return _printed(f"!{words[0] if words else ''}")
    magic, line = words[0], words[1] if len(words) > 1 else ""
    if method == "run_line_magic":
        if magic in _SETUP_MAGICS:
            return f"pass  # %{magic} {line}".rstrip()
        if magic in _COMMAND_MAGICS:
            return _printed(f"%{magic} {line}")
        if magic == "time":
            return _without_magics(_transformed(line), name)
        raise _magic_error(name, f"%{magic} {line}", "it cannot be left out")
    body = words[2] if len(words) > 2 else ""
    if magic == "time" or (magic == "capture" and not line.strip()):
        return _without_magics(_transformed(body), name)
    if magic in _DISPLAY_CELLS:
        return _printed(f"%%{magic} {line}")
    raise _magic_error(name, f"%%{magic} {line}", "it cannot be left out")


def _printed(what: str) -> str:
    text = f"[prefect-launch] left out of the notebook: {what.strip()}"
    return f"print({text!r}, flush=True)"


def _magic_error(name: str, what: str, why: str) -> SourceError:
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
    """Whether a node is one of the calls `get_ipython().…()` that IPython itself writes."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in _METHODS:
        return False
    shell = node.func.value
    return isinstance(shell, ast.Call) and isinstance(shell.func, ast.Name) and shell.func.id == "get_ipython"
