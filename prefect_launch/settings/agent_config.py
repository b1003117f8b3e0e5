"""Agent configuration, from defaults, the file, the environment and the call, in this order.

The keys of the reference's `launch-config.yaml` are accepted, so that a file can be taken over as it is; what of it is
not done here is refused, with the next step.
"""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.clouds.accounts import Clouds
from prefect_launch.clouds.settings import CloudSettings
from prefect_launch.core.names import ENTITY_VARIABLES, check_name, safe_name
from prefect_launch.core.output_limits import DEFAULT_OUTPUT_LIMITS, OutputLimits, with_default_limits
from prefect_launch.core.units import parse_duration, parse_size
from prefect_launch.core.validation import first_error
from prefect_launch.errors import AgentConfigError, SpecError, unknown_name
from prefect_launch.policy.template import check_named_macros
from prefect_launch.registries.base import parse_reference
from prefect_launch.registries.keychain import Keychain, RegistrySettings, read_registries
from prefect_launch.runners import option_values as values
from prefect_launch.runners.base import CLAIM_CHARS
from prefect_launch.runners.option_values import read_gpus
from prefect_launch.settings.reference_keys import translated
from prefect_launch.sources.remote import GitSettings, machine_git_settings


class WandbServer(BaseModel):
    """A W&B server that jobs may report to, when the agent's operator configured one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = Field(default=None, description="The address of a W&B server that jobs may report to.")
    api_key: SecretStr | None = Field(default=None, description="The key that jobs get for it.")


class MachineSettings(BaseModel):
    """Settings of a machine's operator for the runs on it."""

    model_config = ConfigDict(frozen=True)

    home: Path = Field(description="The folder of prefect-launch on this machine.")
    secure_mode: bool = False
    macros: dict[str, str] = Field(default_factory=dict)
    wandb: WandbServer = WandbServer()
    git: GitSettings = GitSettings()
    outputs: OutputLimits = DEFAULT_OUTPUT_LIMITS

    def run_dir(self, item_id: str, attempt: int, claim: str = "") -> Path:
        """Return the folder of one attempt at one item.

        The same attempt under another claim has a folder of its own: of two agents that share this home, one may have
        been taken for lost before it ran the item, and must find nothing of the other's in its hands.
        """
        return self.home / "runs" / item_id / (f"{attempt}-{claim[:CLAIM_CHARS]}" if claim else str(attempt))

    def run_dirs(self, item_id: str, attempt: int) -> list[Path]:
        """Return the folders that there are of one attempt, under whichever claims, the last planned first."""
        folder = self.home / "runs" / item_id
        found = [path for pattern in (str(attempt), f"{attempt}-*") for path in folder.glob(pattern)]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


AUTO: Final = "auto"

NONE: Final = "none"


DEFAULT_CONFIG_FILE: Final = Path("~/.config/prefect-launch/agent.yaml")
#: The fallback when the server's events do not reach the agent.
DEFAULT_POLL_SECONDS: Final = 10.0
#: Names the folder of prefect-launch on a machine.
HOME_VARIABLE: Final = "PREFECT_LAUNCH_HOME"
#: Variables that win over the config file, by setting; the first that is set counts.
VARIABLES: Final = {
    "entity": ENTITY_VARIABLES,
    "max_jobs": ("LAUNCH_MAX_JOBS", "WANDB_LAUNCH_MAX_JOBS"),
    "name": ("LAUNCH_AGENT_NAME",),
    "start_timeout": ("WANDB_LAUNCH_START_TIMEOUT",),
    "home": (HOME_VARIABLE,),
}
#: As at the reference, a limit of zero or less is none.
_NO_TIME: Final = re.compile(r"-\d+(\.\d+)?|0+(\.0+)?")
_MAXIMUM: Final = re.compile(r"-1(\.0+)?|\d+(\.\d+)?")


def default_home() -> Path:
    """Return the folder of what agents keep on this machine: `PREFECT_LAUNCH_HOME`, or `launch` in Prefect's own.

    Jobs are in Prefect's own in either case: a submitter finds them without knowing where an agent keeps its runs.
    """
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named).expanduser().absolute()
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value()) / "launch"


class AgentConfig(BaseModel):
    """How one agent works.

    `max_jobs` and `max_schedulers` take a whole number, as text too; -1 is "no limit".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default_factory=lambda: safe_name(socket.gethostname(), fallback="agent"),
        description="Its name, one on each server; by default the host's.",
    )
    queues: tuple[str, ...] = Field(default=(), description="The queues whose items it runs.")
    entity: str | None = Field(default=None, description="Whose a job is that an item names without its entity.")
    max_jobs: float = Field(default=1, description="How many jobs it runs at a time; -1: no limit.")
    max_schedulers: float = Field(
        default=1, description="How many sweeps it schedules at a time, in addition to the jobs; -1: no limit."
    )
    secure_mode: bool = Field(default=False, description="Locks all but the job, its inputs and names.")
    verbosity: int = Field(default=0, ge=0, description="1 and more: its log has more lines.")
    stopped_run_timeout: float = Field(
        default=60, ge=0, description="Grace between TERM and KILL when a run is stopped, s."
    )
    start_timeout: float | None = Field(
        default=None, description="How long a run may wait where it was submitted, s or 30min; 0: no limit."
    )
    poll_seconds: float = Field(
        default=DEFAULT_POLL_SECONDS, gt=0, description="How often it asks for items, besides at the server's events."
    )
    home: Path = Field(
        default_factory=default_home, description="The folder of its environments and runs; default: ~/.prefect/launch."
    )
    gpus: str | tuple[str, ...] = Field(
        default=AUTO, description="The GPUs that it gives out: auto (all), none, or a list of indexes or UUIDs."
    )
    cpus: str | float = Field(default=AUTO, description="The CPUs that it gives out: auto (all), none, or a number.")
    memory: str | float = Field(
        default=AUTO, description="The memory that it gives out: auto (the machine's), none, or a size."
    )
    device_patience_seconds: float = Field(
        default=30, ge=0, description="How long an item that waits for devices lets smaller ones pass."
    )
    keep_runs: int | None = Field(
        default=10 * 1024**3, ge=0, description="What the folders of past runs may take, a size; none: no limit."
    )
    keep_environments: int | None = Field(
        default=20 * 1024**3, ge=0, description="What the environments of processes may take, a size; none: no limit."
    )
    keep_images: int | None = Field(
        default=50 * 1024**3, ge=0, description="What built images may take on the engine, a size; none: no limit."
    )
    keep_git: int | None = Field(
        default=10 * 1024**3, ge=0, description="What the copies of git remotes may take, a size; none: no limit."
    )
    outputs: Annotated[OutputLimits, BeforeValidator(with_default_limits)] = Field(
        default=DEFAULT_OUTPUT_LIMITS, description="How much is kept of the outputs of one run; a queue may have less."
    )
    macros: Annotated[dict[str, str], AfterValidator(check_named_macros)] = Field(
        default_factory=dict,
        description="More macros for queues and submitters, by name: ${NAME} is the value.",
    )
    wandb: WandbServer = WandbServer()
    git: GitSettings = Field(default_factory=machine_git_settings)
    registries: Annotated[dict[str, RegistrySettings], BeforeValidator(read_registries)] = Field(
        default_factory=dict,
        description="By a registry's address: credentials (a DockerRegistryCredentials block) and insecure (no TLS).",
    )
    builder: BuilderSettings = BuilderSettings()
    clouds: CloudSettings = CloudSettings()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        read = translated({key: value for key, value in data.items() if value is not None})
        single = read.pop("queue", None)
        if single is not None:
            if not isinstance(single, str):
                raise AgentConfigError(
                    f"The agent's 'queue' must be a queue's name, not {single!r}. Use 'queues' for a list."
                )
            read["queues"] = [*read.get("queues", ()), single]
        for key in read:
            if key not in cls.model_fields:
                raise AgentConfigError(str(unknown_name("agent setting", key, cls.model_fields)))
        return read

    @field_validator("queues", mode="before")
    @classmethod
    def _validate_queues(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise AgentConfigError(f"The agent's 'queues' must be a list of queue names, not {value!r}.")
        return tuple(dict.fromkeys(check_name("queue", name) for name in value))

    @field_validator("name")
    @classmethod
    def _validate_name(cls, value: str) -> str:
        return check_name("agent", value, max_chars=63)

    @field_validator("entity")
    @classmethod
    def _validate_entity(cls, value: str | None) -> str | None:
        return None if value is None else check_name("entity", value)

    @field_validator("max_jobs", "max_schedulers", mode="before")
    @classmethod
    def _read_maximum(cls, value: Any, info: Any) -> float:
        text = str(value)
        if value == math.inf:
            return math.inf
        if isinstance(value, bool) or not _MAXIMUM.fullmatch(text):
            raise AgentConfigError(
                f"The agent's {info.field_name!r} must be a whole number, or -1 for no limit; got {value!r}."
            )
        whole = int(float(text))
        return math.inf if whole == -1 else float(whole)

    @field_validator("start_timeout", mode="before")
    @classmethod
    def _read_start_timeout(cls, value: Any) -> float | None:
        if not isinstance(value, bool) and _NO_TIME.fullmatch(str(value)):
            return None
        try:
            return parse_duration(value)
        except SpecError as error:
            raise AgentConfigError(f"The agent's 'start_timeout' (WANDB_LAUNCH_START_TIMEOUT): {error}") from None

    @field_validator("gpus", mode="before")
    @classmethod
    def _read_gpus(cls, value: Any) -> str | tuple[str, ...]:
        if (word := _word(value)) in (AUTO, NONE):
            return word
        listed = value.split(",") if isinstance(value, str) else value
        try:
            if isinstance(listed, (list, tuple)):
                return read_gpus(list(listed)).ids or NONE
        except ValueError:
            pass
        raise AgentConfigError(
            f"The agent's 'gpus' must be auto, none, or a list of indexes or UUIDs such as [0, 1]; got {value!r}."
        )

    @field_validator("cpus", "memory", mode="before")
    @classmethod
    def _read_amount(cls, value: Any, info: Any) -> str | float:
        if (word := _word(value)) in (AUTO, NONE):
            return word
        try:
            return parse_size(value) if info.field_name == "memory" else values.nano_cpus(value) / 1e9
        except ValueError as error:
            raise AgentConfigError(
                f"The agent's {info.field_name!r} must be auto, none or an amount; got {value!r}: {error}."
            ) from None

    @field_validator("keep_runs", "keep_environments", "keep_images", "keep_git", mode="before")
    @classmethod
    def _read_limit(cls, value: Any, info: Any) -> int | None:
        if value is None or _word(value) == NONE:
            return None
        try:
            return parse_size(value)
        except ValueError as error:
            raise AgentConfigError(
                f"The agent's {info.field_name!r} must be none or a size; got {value!r}: {error}."
            ) from None

    def keychain(self, clouds: Clouds | None = None) -> Keychain:
        """Return who to be at which registry: `registries`, and `builder.credentials` for that of the destination.

        Args:
            clouds: the accounts to share; default: new ones, of `clouds`.
        """
        clouds = clouds or Clouds(self.clouds)
        if not self.builder.destination or not self.builder.credentials:
            return Keychain(self.registries, clouds)
        host = parse_reference(self.builder.destination).host
        known = self.registries.get(host, RegistrySettings())
        known = known.model_copy(update={"credentials": self.builder.credentials})
        return Keychain({**self.registries, host: known}, clouds)

    @property
    def machine(self) -> MachineSettings:
        """What the planning of runs needs of it."""
        return MachineSettings(
            home=self.home,
            secure_mode=self.secure_mode,
            macros=self.macros,
            wandb=self.wandb,
            git=self.git,
            outputs=self.outputs,
        )


def _word(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def parse_agent_config(data: Mapping[str, Any]) -> AgentConfig:
    """Make an agent's configuration of plain data.

    Raises:
        AgentConfigError: naming the setting, its value and the rule.
    """
    try:
        return AgentConfig.model_validate(data)
    except ValidationError as error:
        first = first_error(error)
        where = ".".join(str(part) for part in first["loc"])
        raise AgentConfigError(
            f"Agent config error in field {where} (value: {first['input']!r}): {first['msg']}."
        ) from None


def resolve_agent_config(file: Path | str | None = None, **given: Any) -> AgentConfig:
    """Bring together the config file, the environment and what a call gives.

    Args:
        file: a YAML file; by default `~/.config/prefect-launch/agent.yaml`, if it exists.
        **given: settings that win over both; `None` is "not given".

    Raises:
        AgentConfigError: when the file is missing, is no YAML mapping, or a setting is wrong.
    """
    settings = dict(_read_file(file))
    for key, names in VARIABLES.items():
        value = next((os.environ[name] for name in names if os.environ.get(name)), None)
        if value is not None:
            settings[key] = value
    settings.update({key: value for key, value in given.items() if value is not None})
    return parse_agent_config(settings)


def _read_file(file: Path | str | None) -> Mapping[str, Any]:
    path = Path(file or DEFAULT_CONFIG_FILE).expanduser()
    if not path.is_file():
        if file is None:
            return {}
        raise AgentConfigError(f"Could not find the agent's config file {str(path)!r}. Give the path of a YAML file.")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AgentConfigError(f"The agent's config file {str(path)!r} is no YAML: {error}") from None
    except OSError as error:
        raise AgentConfigError(f"The agent's config file {str(path)!r} cannot be read: {error.strerror}.") from None
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise AgentConfigError(f"The agent's config file {str(path)!r} must hold a mapping of settings, not {found!r}.")
    return found
