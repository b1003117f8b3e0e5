"""The house rules that a machine can check: layout, docstrings, what no file may name."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prefect_launch.runners.base import LOG_FILE
from prefect_launch.runners.process import supervisor

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "prefect_launch"

# What a job's own code imports must start in milliseconds.
TOO_HEAVY_FOR_JOBS = ("prefect", "docker", "httpx", "pydantic", "git", "sqlalchemy", "fastapi")

# An index of packages by its address; the public one may be named.
INDEX_ADDRESS = re.compile(r"https?://(?!pypi\.org|[\w.-]*example\.)[^\s\"'`]+/simple\b")
# Names that other programs rely on: variables, labels, files of a run. A module that needs one imports it.
SHARED_NAME = re.compile(r"(PREFECT_)?LAUNCH_[A-Z_]+|prefect-launch\.[a-z-]+|outputs\.json|job\.log")
# Runs as a file of its own, and imports nothing.
SUPERVISOR = f"{PACKAGE}/runners/process/supervisor.py"
# A path as the documentation writes it, in backticks. Some are not of the project, but of a user's job.
PATH_IN_DOCUMENT = re.compile(r"`([A-Za-z_][\w.-]*(?:/[\w.-]+)*/?)`")
PATHS_OF_A_JOB = {"wandb/", "train_ipynb.py", "setup.py", "requirements/train.txt", "configs/train.yaml"}
IMPORT_OF_DEPLOYED = re.compile(r"^\s*(from|import) (flows|blocks|tests|benchmarks|examples)\b", re.MULTILINE)
TEST_NAME = re.compile(r"^\s*(?:async )?def (test_\w*)", re.MULTILINE)
# What waits for a disk, which may be another machine's.
OF_A_DISK = re.compile(
    r"(?!files\(__package__\))(.*\.)?(read|write)_(text|bytes)|.*\.(exists|is_(file|dir|symlink)|l?stat|r?glob|iterdir|r?mkdir|unlink|touch|chmod"
    r"|symlink_to|hardlink_to)|os\.(open|ftruncate|pwrite|fsync|scandir|listdir|readlink|makedirs|utime|statvfs)"
    r"|os\.path\.(exists|isfile|isdir|islink|realpath)|fcntl\.\w+|shutil\.(rmtree|copy\w*|disk_usage)|open"
)
# What a caller's own program does, and folders of this machine alone.
OFF_THE_AGENT = {"__init__.py", "errors.py", "testing", "cli", "client", "direct", "inputs", "sweeps", "builds"}
PRIVATE_TALK = re.compile(r"\bissue #?\d+\b(?!.*PrefectHQ)", re.IGNORECASE)


def test_every_public_class_and_function_of_the_library_has_a_docstring() -> None:
    silent = [
        f"{name}:{node.lineno} {node.name}"
        for name, text in _modules(PACKAGE)
        for node in _public_definitions(ast.parse(text, filename=name))
        if not ast.get_docstring(node) and "overload" not in _decorators(node)
    ]

    assert not silent


def test_library_never_imports_what_is_deployed_with_it() -> None:
    wrong = [
        f"{name}: {found.group()}" for name, text in _modules(PACKAGE) for found in IMPORT_OF_DEPLOYED.finditer(text)
    ]

    assert not wrong


def test_nothing_on_the_event_loop_of_an_agent_waits_for_a_disk() -> None:
    trees = {name: ast.parse(text) for name, text in _modules(PACKAGE) if name.split("/")[1] not in OFF_THE_AGENT}
    functions = {
        (name.removesuffix(".py").replace("/", "."), node.name): node
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    blocking = {
        key
        for key, function in functions.items()
        if isinstance(function, ast.FunctionDef) and any(map(_is_of_a_disk, _own_calls(function)))
    } - {key for key, function in functions.items() if "cache" in _decorators(function)}
    called = {name: _imported(tree, name) for name, tree in trees.items()}
    while more := {
        key
        for key, function in functions.items()
        if isinstance(function, ast.FunctionDef) and key not in blocking and "cache" not in _decorators(function)
        for call in _own_calls(function)
        if called[key[0].replace(".", "/") + ".py"].get(ast.unparse(call.func)) in blocking
    }:
        blocking |= more
    found = [
        f"{name}:{call.lineno} {ast.unparse(call)}"
        for name, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.AsyncFunctionDef)
        for call in _own_calls(function)
        if _is_of_a_disk(call) or called[name].get(ast.unparse(call.func)) in blocking
    ]

    assert ("prefect_launch.agent.item.ownership", "plan_of") in blocking
    assert not found


def test_inputs_of_a_job_load_without_prefect_or_anything_heavy() -> None:
    code = f"import sys, {PACKAGE}.inputs; print(*{{name.split('.')[0] for name in sys.modules}})"

    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT).stdout

    assert not set(loaded.split()) & set(TOO_HEAVY_FOR_JOBS)


def test_name_that_several_modules_use_is_written_in_one_of_them() -> None:
    places: dict[str, set[str]] = {}
    for module, text in _modules(PACKAGE):
        for node in ast.walk(ast.parse(text)) if module != SUPERVISOR and SHARED_NAME.search(text) else ():
            if isinstance(node, ast.Constant) and SHARED_NAME.fullmatch(str(node.value)):
                places.setdefault(str(node.value), set()).add(module)

    assert places
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}
    assert supervisor.LOG == LOG_FILE


def test_every_test_name_is_a_sentence() -> None:
    names = [(name, found) for name, text in _modules("tests") for found in TEST_NAME.findall(text)]

    assert names
    assert not [f"{name} {test}" for name, test in names if test.count("_") < 3]


def test_no_file_names_a_package_index_or_a_path_of_this_machine() -> None:
    private = [re.escape(place) for place in _places_of_this_machine()]
    patterns = [INDEX_ADDRESS, PRIVATE_TALK, *map(re.compile, private)]
    wrong = [
        f"{name}: {found.group()}"
        for name, text in _texts()
        for pattern in patterns
        if (found := pattern.search(text)) and PROJECT / name != Path(__file__)
    ]

    assert not wrong


def test_every_file_and_folder_that_the_documentation_names_exists() -> None:
    pages = [*(PROJECT / "docs").rglob("*.md"), PROJECT / "CONTRIBUTING.md"]
    named = [(page.name, path) for page in pages for path in _paths_in(page.read_text())]
    missing = [
        f"{page}: {path}"
        for page, path in named
        if not (PROJECT / path).exists() and not (PROJECT / PACKAGE / path).exists()
    ]

    assert ("design.md", "queues/claim.py") in named
    assert not missing


def test_pinned_versions_name_no_address() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()

    pin = re.compile(r"[\w.-]+==[\w.+!-]+( ; .*)?")

    assert not [line for line in lines if not line.startswith("#") and not pin.fullmatch(line)]


def _places_of_this_machine() -> Iterator[str]:
    yield str(PROJECT)
    if not sys.base_prefix.startswith("/usr"):
        yield sys.base_prefix
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        yield from (place for place in os.environ.get(variable, "").split() if "pypi.org" not in place)


def _paths_in(page: str) -> list[str]:
    """Return the paths of project files and folders that a page names in backticks."""
    paths = PATH_IN_DOCUMENT.findall(page)
    return [path for path in paths if ("/" in path or path.endswith(".py")) and path not in PATHS_OF_A_JOB]


@cache
def _project_files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (PROJECT / name).is_file()]


def _texts() -> Iterator[tuple[str, str]]:
    for name in _project_files():
        content = (PROJECT / name).read_bytes()
        if b"\0" not in content:
            yield name, content.decode(errors="replace")


def _modules(folder: str) -> Iterator[tuple[str, str]]:
    for name, text in _texts():
        if name.endswith(".py") and name.startswith(f"{folder}/"):
            yield name, text


def _public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef) and not node.bases:  # with a base, its docstring goes for the method too
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith(
                    ("_", "test_")
                ):
                    yield member


def _own_calls(function: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that a function makes itself, but those that it awaits, or enters in a thread."""
    awaited: set[ast.AST] = {node.value for node in ast.walk(function) if isinstance(node, ast.Await)}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and any(ast.unparse(one).endswith(".enter_context") for one in node.args):
            awaited.update(node.args)
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call) and node not in awaited:
            yield node
        waiting += ast.iter_child_nodes(node)


def _is_of_a_disk(call: ast.Call) -> bool:
    return OF_A_DISK.fullmatch(ast.unparse(call.func)) is not None


def _imported(tree: ast.Module, name: str) -> dict[str, tuple[str, str]]:
    """Return the functions of this package that a module can call by their names, with the modules they are in."""
    module = name.removesuffix(".py").replace("/", ".")
    own = {node.name: (module, node.name) for node in tree.body if isinstance(node, ast.FunctionDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return own | {one.asname or one.name: (str(node.module), one.name) for node in imports for one in node.names}


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
