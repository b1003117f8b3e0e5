"""Pip settings of this machine: as uv's variables for environments here, and as files for the builds of images.

uv does not read pip's configuration, and a machine behind a mirror is often set up for pip alone. Values are handed to
uv by environment variables, since an index's address may hold a password. What is set for uv itself wins.

The installing step of an image gets files that are mounted into it and are in no layer. Index addresses may hold
passwords, so all files are secrets: an environment for `uv` and `pip`, and the certificates. An index in a folder of
this machine is kept apart: a builder mounts it if it can, or it is left out.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from prefect_launch.core.masking import Mask
from prefect_launch.errors import AgentConfigError

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
#: The folder in which the installing step of an image finds its secrets and tools.
SECRETS: Final = "/run/launch"
#: The files of secrets: variables of a package index, and the certificates of this machine.
INDEX_SETTINGS: Final = "index.env"
CERTIFICATES: Final = "ca.pem"
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


# Pip settings for builds: files that are mounted into the installing step and are in no layer of the image.

#: uv's variable, pip's variable, and the separator of several values in uv's.
_PLACES: Final = (
    ("UV_DEFAULT_INDEX", "PIP_INDEX_URL", " "),
    ("UV_INDEX", "PIP_EXTRA_INDEX_URL", " "),
    ("UV_FIND_LINKS", "PIP_FIND_LINKS", ","),
)
_AS_THEY_ARE: Final = (("UV_INSECURE_HOST", "PIP_TRUSTED_HOST"), ("UV_NO_INDEX", "PIP_NO_INDEX"))
_UV_ONLY: Final = ("UV_INDEX_STRATEGY", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS")
_PASSWORD: Final = re.compile(r"://[^:@/\s]*:([^@/\s]+)@")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True)
class PipAccess:
    """What an installing step gets.

    Attributes:
        files: the secrets, by name.
        folders: folders of this machine that hold packages; each is mounted at the same path.
        mask: hides the passwords in logs.
    """

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    folders: tuple[str, ...] = ()
    mask: Mask = field(default_factory=Mask, compare=False)


def read_pip_access(setting: str, *, folders: bool, environ: Mapping[str, str] | None = None) -> PipAccess:
    """Read the settings of this machine's pip.

    Args:
        setting: `auto`, `none`, or the path of a pip.conf that is read instead of the machine's.
        folders: whether folders of this machine can be mounted; if not, they are left out.
        environ: the environment; the process's own by default.

    Raises:
        AgentConfigError: when the file that is named is not there.
    """
    if setting == "none":
        return PipAccess()
    settings = _settings_of(setting, dict(os.environ if environ is None else environ))
    variables: dict[str, str] = {name: settings[name] for name in (*_UV_ONLY, *_PROXIES) if settings.get(name)}
    for uv_name, pip_name in _AS_THEY_ARE:
        if settings.get(uv_name):
            variables[uv_name] = variables[pip_name] = settings[uv_name]
    mounted: list[str] = []
    # With no-index, uv still uses an index that is named; pip, whose settings these are, does not.
    for uv_name, pip_name, separator in _PLACES[2:] if settings.get("UV_NO_INDEX") else _PLACES:
        places = [place for place in _value(settings, uv_name).replace(",", " ").split() if place]
        local = {place: folder for place in places if (folder := _folder_of(place)) is not None}
        kept = [place for place in places if place not in local or (folders and Path(local[place]).is_dir())]
        mounted += [local[place] for place in kept if place in local]
        if kept:
            variables[uv_name], variables[pip_name] = separator.join(kept), " ".join(kept)
    files = _certificates(settings)
    if files:
        variables |= dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), f"{SECRETS}/{CERTIFICATES}")
    if variables:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())]
        files[INDEX_SETTINGS] = "".join(lines).encode()
    return PipAccess(files, tuple(dict.fromkeys(mounted)), _mask(variables))


def _mask(variables: Mapping[str, str]) -> Mask:
    found = [password for value in variables.values() for password in _PASSWORD.findall(value)]
    return Mask([*found, *map(unquote, found)])


def _settings_of(setting: str, environ: dict[str, str]) -> dict[str, str]:
    if setting == "auto":
        return uv_environment(environ)
    file = Path(setting).expanduser()
    if not file.is_file():
        raise AgentConfigError(f"builder.pip_config: there is no file {setting!r}. Name a pip.conf, 'auto' or 'none'.")
    own = {name: value for name, value in environ.items() if not name.startswith(("PIP_", "UV_"))}
    return uv_environment(own, [file])


def _value(settings: Mapping[str, str], name: str) -> str:
    return settings.get(name) or settings.get(SYNONYMS.get(name, name)) or ""


def _folder_of(place: str) -> str | None:
    """Return the folder of this machine that must be mounted for an index, if it is on this machine.

    The pages of an index point to files next to it, so this is the folder above the index.
    """
    parts = urlsplit(place)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        return str(path.parent if path.name == "simple" else path)
    return place if place.startswith("/") else None


def _certificates(settings: Mapping[str, str]) -> dict[str, bytes]:
    file = settings.get("SSL_CERT_FILE")
    if not file:
        return {}
    try:
        return {CERTIFICATES: Path(file).read_bytes()}
    except OSError as error:
        raise AgentConfigError(
            f"The certificates of this machine's pip, {file!r}, cannot be read: {error}. Correct pip's 'cert'."
        ) from error
