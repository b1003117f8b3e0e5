"""Pip configuration for uv: package indexes, find-links and certificates of this machine's pip, as uv's variables.

uv does not read pip's configuration, and a machine behind a mirror is often set up for pip alone. Values are handed to
uv by environment variables, since an index's address may hold a password. What is set for uv itself wins.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: pip's option, uv's variable, and the separator of several values there.
_OPTIONS = (
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", " "),
    ("no-index", "UV_NO_INDEX", " "),
)
#: Other names of the same variables in uv.
SYNONYMS = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
#: How uv and pip report a fault of the network or the disk rather than of the requirements; for Python's `re` and for
#: `grep -E` alike, whatever the case.
MACHINE_FAULT_PATTERN: Final = (
    "failed to fetch|error sending request|dns error|connection (refused|reset)|timed out|invalid peer certificate"
    "|no space left|permission denied|HTTP status (server error|client error [(]40[137])|establish a new connection"
)
#: The warning about an environment that has only the dependencies of a project.
PROJECT_LEFT_OUT: Final = (
    "The project itself is not installed, only what it depends on: its build backend cannot build it. Correct"
    " pyproject.toml, or write package = false under [tool.uv] there when the code is run where it lies."
)


def uv_environment(environ: Mapping[str, str] | None = None, files: list[Path] | None = None) -> dict[str, str]:
    """Return the environment for a `uv pip` command on this machine.

    Args:
        environ: the environment to start from; the process's own by default.
        files: pip's configuration files, weakest first; this machine's by default.

    Returns:
        `environ`, with uv's variables set from pip's where they are not set already. Python downloads are off.
    """
    environ = dict(os.environ if environ is None else environ)
    options = _pip_options(environ, _pip_files(environ) if files is None else files)
    for option, variable, separator in _OPTIONS:
        if options.get(option) and not (environ.get(variable) or environ.get(SYNONYMS.get(variable, variable))):
            environ[variable] = separator.join(options[option])
            if option == "extra-index-url":
                # pip treats all indexes alike, so uv does, too.
                environ.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    if "SSL_CERT_FILE" in environ:
        environ.setdefault("UV_SYSTEM_CERTS", "true")
        environ.setdefault("UV_NATIVE_TLS", "true")  # What versions of uv before 0.9 call it.
    environ["UV_PYTHON_DOWNLOADS"] = "never"
    return environ


def _pip_options(environ: Mapping[str, str], files: list[Path]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        parser.read(file, encoding="utf-8")
        for section in ("global", "install"):
            if parser.has_section(section):
                options.update({key: value.split() for key, value in parser.items(section)})
    for option, _, _ in _OPTIONS:
        value = environ.get(f"PIP_{option.upper().replace('-', '_')}")
        if value:
            options[option] = value.split()
    return options


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    if environ.get("PIP_CONFIG_FILE") == os.devnull:
        return []
    home = Path(environ.get("HOME", "/"))
    machine = [
        Path(folder) / "pip/pip.conf" for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder
    ]
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    files = [*reversed(machine), Path("/etc/pip.conf"), home / ".pip/pip.conf", user, Path(sys.prefix) / "pip.conf"]
    named = environ.get("PIP_CONFIG_FILE")
    return [file for file in [*files, *([Path(named)] if named else [])] if file.is_file()]
