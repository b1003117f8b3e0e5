"""Pip settings for builds: files that are mounted into the installing step and are in no layer of the image.

Index addresses may hold passwords, so all files are secrets: an environment for `uv` and `pip`, and the certificates.
An index in a folder of this machine is kept apart: a builder mounts it if it can, or it is left out.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from prefect_launch.builds.dockerfile import CERTIFICATES, INDEX_SETTINGS, SECRETS
from prefect_launch.environments.pip_config import SYNONYMS, uv_environment
from prefect_launch.errors import AgentConfigError

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
        passwords: texts that no log may show.
    """

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    folders: tuple[str, ...] = ()
    passwords: tuple[str, ...] = field(default=(), repr=False)

    def masked(self, text: str) -> str:
        """Return a text without the passwords."""
        for password in self.passwords:
            text = text.replace(password, "***")
        return text


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
    return PipAccess(files, tuple(dict.fromkeys(mounted)), _passwords(variables))


def _passwords(variables: Mapping[str, str]) -> tuple[str, ...]:
    found = {password for value in variables.values() for password in _PASSWORD.findall(value)}
    return tuple(sorted({*found, *map(unquote, found)}, key=len, reverse=True))


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

    The pages of an index point to files beside it, so the folder above an index is the one.
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
