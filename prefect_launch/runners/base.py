"""Runner contract: the plan of a run, its labels and folder, its exit status, and the interface of every resource.

A runner knows nothing of queues, agents or the Prefect server. It gets a `RunPlan`, a frozen value with all that there
is to know about one attempt at one item, and it must keep these promises:

- `create` makes the run under a name derived from the item's id and the attempt, with the plan's labels, and does not
  start it. Called again it returns what exists, unless an older claim made that: then it stops and removes it first.
- What runs outlives the agent. `find` returns it by its labels, after any crash.
- The job's whole output is in `plan.log_path` once `watch` has returned, and grows there while the job runs.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.core.code_changes import CodeChanges
from prefect_launch.core.masking import Mask
from prefect_launch.core.metrics import MAX_METRICS
from prefect_launch.core.output_limits import DEFAULT_OUTPUT_LIMITS, LeftOut, OutputLimits
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError, SpecError, SubmitterError, nearest_name, unknown_name
from prefect_launch.jobs.model import SourceKind
from prefect_launch.registries.base import Registry
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.option_values import Amount, Quantity, visible_gpus
from prefect_launch.runners.usage import Usage
from prefect_launch.spec.code_options import BuildRequest
from prefect_launch.spec.item_outputs import ItemOutput
from prefect_launch.spec.metric_pattern import MetricPattern
from prefect_launch.spec.option_names import normalise_option, normalise_options

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

_SIGNALS: Final = frozenset(int(one) for one in signal.Signals)


def signal_of(exit_code: int | None) -> str | None:
    """Return the name of the signal that an exit code stands for, as in a shell: 137 is "SIGKILL"."""
    number = (exit_code or 0) - 128
    return signal.Signals(number).name if number in _SIGNALS else None


# --- the folder of an attempt ---

#: A run's plan, in its folder.
PLAN_FILE: Final = "plan.json"
#: What a job of an earlier claim gets between TERM and KILL, as `docker stop` gives it.
TAKEOVER_SECONDS: Final = 10.0
#: The newest claim of the item, next to the folders of its attempts. The supervisor, standard library alone, has a
#: copy.
CLAIM_FILE: Final = "claim"
#: How many characters of a claim's token are in the name of a run's folder.
CLAIM_CHARS: Final = 8


def note_claim(run_dir: Path, claim: str) -> None:
    """Write the claim that an attempt is planned under to the claim file, atomically."""
    part = run_dir / f"claim.{uuid4().hex}.part"
    part.write_text(claim, encoding="utf-8")
    part.replace(run_dir.parent / CLAIM_FILE)


# --- environment variables ---

#: Who sets one of these means a W&B server.
_ONLINE: Final = frozenset({"WANDB_API_KEY", "WANDB_BASE_URL"})


def with_default_variables(given: Mapping[str, str], output_dir: str) -> dict[str, str]:
    """Add the variables that a job has unless its queue, its submitter or the plan of its run says otherwise.

    Args:
        given: what they say.
        output_dir: where the job leaves its outputs, as the job sees it.
    """
    wandb = {"WANDB_DIR": output_dir}
    if not _ONLINE & given.keys():
        # Its summary is in what it prints at its end: 10 metrics by default.
        wandb |= {"WANDB_MODE": "offline", "WANDB_MAX_END_OF_RUN_SUMMARY_METRICS": str(MAX_METRICS)}
    # A log that is to be followed live must not wait in a buffer.
    return {"PYTHONUNBUFFERED": "1", **wandb, **given}


# --- the plan ---

#: In a run's folder: its own copy of the job's code.
CODE_FOLDER: Final = "code"
#: In a run's folder: what its inputs name of the outputs of other items.
INPUT_DIR: Final = "inputs"
#: In a run's folder: the whole output of its job.
LOG_FILE: Final = "job.log"


class Phase(str, Enum):
    """Where an item was when it failed, as its state message says it."""

    AGENT = "agent"
    BUILD = "build"
    RUN = "run"


class Labels:
    """The keys of the labels that mark what an agent made; the truth about running work is in them."""

    ITEM = "prefect-launch.item"
    ATTEMPT = "prefect-launch.attempt"
    RUN_ID = "prefect-launch.run-id"
    QUEUE = "prefect-launch.queue"
    AGENT = "prefect-launch.agent"
    CLAIM = "prefect-launch.claim"
    DEVICES = "prefect-launch.devices"
    #: The name that somebody wanted for what was made, whose own name comes from its item.
    WANTED_NAME = "prefect-launch.wanted-name"


def run_name(item_id: object, attempt: object = "") -> str:
    """Return the name of an attempt's process or container; without an attempt, how those of its item begin."""
    return f"launch-{item_id}-{attempt}"


class HostFolder(BaseModel):
    """A folder of the host that a bind names, in part by what a submitter chose."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="As the container's options have it.")
    below: str = Field(description="What the queue's owner wrote of it: below that, no part may be a symbolic link.")
    is_bounded: bool = Field(description="Whether the owner says by a pattern or an enum which values there may be.")


class RunPlan(BaseModel):
    """One attempt at one item, as its runner sees it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    item_id: str = Field(description="Id of the flow run that is the queue item (a UUID).")
    attempt: int = Field(default=1, ge=1)
    run_id: str = Field(description="The launch run id: the caller's `run_id`, or one derived from the item's.")
    run_dir: Path = Field(description="This attempt's own folder on the agent's machine; it exists.")
    command: tuple[str, ...] = Field(default=(), description="Entry point; empty: the image's own.")
    args: tuple[str, ...] = Field(default=(), description="Arguments after the entry point.")
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    image: str | None = None
    resolved_image: str | None = Field(default=None, description="`image`, as its tag meant it then; it comes first.")
    build_request: BuildRequest | None = Field(
        default=None, description="What its image is built as, before the runner gets the plan with the image in it."
    )
    code_dir: Path | None = Field(default=None, description="The job's unpacked code, this attempt's own copy.")
    built_code_dir: Path | None = Field(
        default=None, description="The folder of the code that its image was built of, on the agent's machine."
    )
    build_context: str | None = Field(
        default=None,
        description="The folder of the code that it is run in, with the requirements there, where no image is built of"
        " it; None: the code's top.",
    )
    working_dir: str | None = Field(
        default=None, description="Relative to the build context, or to the image's working directory."
    )
    python_version: str | None = Field(default=None, description='The job\'s Python, such as "3.11".')
    metric: MetricPattern | None = Field(default=None, description="A metric that is read from its log.")
    timeout: float | None = Field(default=None, description="Its time limit, in seconds from its start.")
    stop_seconds: float | None = Field(
        default=None,
        description="What it gets between TERM and KILL when it is stopped; None: what its agent gives.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="resource_args of this resource, merged and checked."
    )
    from_limits: dict[str, Any] = Field(
        default_factory=dict,
        description="Those of the options that nobody asked for: the queue's limits. The run gets at most so much, and"
        " nothing is kept free for it.",
    )
    host_folders: tuple[HostFolder, ...] = Field(
        default=(), description="Those of the binds in its options whose paths a submitter has a part in."
    )
    labels: dict[str, str] = Field(default_factory=dict)
    output_limits: OutputLimits = Field(default=DEFAULT_OUTPUT_LIMITS, description="How much is kept of its outputs.")
    input_files: tuple[ItemOutput, ...] = Field(
        default=(), description="Outputs of other items that are in its input folder before it starts."
    )
    keep: tuple[str, ...] = Field(
        default=(), description="Patterns of files that go from its code folder to its outputs when they have changed."
    )
    secrets: tuple[str, ...] = Field(
        default=(), description="Names of the Secret blocks whose values are in its options."
    )
    secret_marks: dict[str, str] = Field(
        default_factory=dict,
        description="Where its resource takes no values of secrets: the texts that stand for them in its options, each"
        " with the name of its Secret block. Nobody can guess one.",
    )
    is_agent_program: bool = Field(
        default=False,
        description="Whether it is a program of prefect-launch's own, such as a sweep's scheduler: it runs in the"
        " agent's Python, with the agent's environment, which is kept in no file.",
    )
    mask: Mask = Field(
        default_factory=Mask, exclude=True, repr=False, description="Hides its secrets in logs and messages."
    )
    file_overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Values merged into the code's config files before the start, by relative path.",
    )

    @property
    def name(self) -> str:
        """The name of what is created: the same for the same attempt, on any agent."""
        return run_name(self.item_id, self.attempt)

    @property
    def limits_note(self) -> str:
        """Whence the amounts are that nobody asked for, in words; empty where there is none."""
        given = ", ".join(f"{name} {value}" for name, value in self.from_limits.items())
        return f"from the queue's limits, not the item: {given}" if given else ""

    @property
    def project_dir(self) -> Path | None:
        """The folder of the job's code that it is run in."""
        return None if self.code_dir is None else self.code_dir / (self.build_context or "")

    @property
    def log_path(self) -> Path:
        """The file that holds the job's whole output, both streams as they came."""
        return self.run_dir / LOG_FILE

    @property
    def output_dir(self) -> Path:
        """Where what the job left in `$LAUNCH_OUTPUT_DIR` is found once it has ended."""
        return self.run_dir / "outputs"

    @property
    def input_dir(self) -> Path:
        """Where the outputs of other items are that are inputs of the job, on the agent's machine."""
        return self.run_dir / INPUT_DIR


#: Why a run that was stopped has no exit code, as `ExitStatus.error`. Programs of the standard library alone have
#: copies.
NEVER_STARTED: Final = "it had not started"


class ExitStatus(BaseModel):
    """How a job's process ended."""

    model_config = ConfigDict(frozen=True)

    exit_code: int | None = Field(description="As a shell gives it: 128 + the signal's number when a signal ended it.")
    signal: str | None = Field(default=None, description='Name of the signal that ended it, such as "SIGKILL".')
    oom_killed: bool = False
    stopped: bool = Field(default=False, description="Ended because `stop` was asked.")
    ended_by_others: bool = Field(
        default=False, description="Somebody ended it in its resource, which does not say whether that was `stop`."
    )
    preempted: bool = Field(default=False, description="Ended because the resource took its machine away.")
    timed_out: bool = Field(default=False, description="Ended because it reached a time limit of its resource's own.")
    error: str | None = Field(
        default=None,
        description="Why it never started, was lost, evicted or removed, in words: the machine's fault then, and"
        " retried as lost, unless the exit code is 126 or 127 (a program that cannot be run), it has timed out, or that"
        " is its own doing.",
    )
    is_own_doing: bool = Field(
        default=False, description="What `error` says is the job's own doing, such as a limit of its own that it broke."
    )
    started_at: datetime | None = None
    ended_at: datetime | None = None
    peak_memory_bytes: int | None = Field(default=None, description="Largest resident memory seen, where it is known.")
    cpu_seconds: float | None = Field(default=None, description="CPU time of all its processes, where it is known.")
    log_complete: bool = Field(default=True, description="False: what is left of its log is still with the run.")
    warnings: tuple[str, ...] = Field(default=(), description="What could not be kept, in words.")
    left_out: LeftOut = Field(default=LeftOut(), description="What its resource has not handed over of its outputs.")
    code_changes: CodeChanges = Field(
        default=CodeChanges(), description="What it has written into its code folder, as far as that is not kept."
    )

    @property
    def succeeded(self) -> bool:
        """Exit code 0, and not because its resource ended it: a job may save its work and end in order then."""
        return self.exit_code == 0 and self.error is None and not (self.oom_killed or self.preempted or self.timed_out)

    @property
    def duration_seconds(self) -> float | None:
        """Wall time between start and end, in seconds."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.started_at).total_seconds())

    def describe(self) -> str:
        """Say in words how it ended, such as ``"exit code 3"`` or ``"killed by SIGKILL: out of memory"``."""
        if self.error:
            return self.error
        if self.oom_killed:
            return f"out of memory: killed by the kernel (exit code {self.exit_code})"
        if self.preempted or self.timed_out:
            why = "preempted: its machine was taken away" if self.preempted else "reached its resource's time limit"
            return why if self.exit_code is None else f"{why}; it ended {self.manner()}"
        if self.exit_code is None:
            return "its exit code is not known"
        return f"ended {self.manner()}" if self.signal else f"exit code {self.exit_code}"

    def manner(self) -> str:
        """Say in words in which manner its program ended, such as ``"with exit code 3"``."""
        if not self.signal:
            return f"with exit code {self.exit_code}"
        foreign = ", which this agent did not send" if self.signal == "SIGKILL" and not self.stopped else ""
        return f"by signal {self.signal} (exit code {self.exit_code}){foreign}"


def nothing() -> None:
    """Do nothing."""


class RunState(str, Enum):
    """Where a created run is, from the machine's own view.

    `SUBMITTED`: a cluster has accepted it and has not started it yet.
    """

    CREATED = "created"
    SUBMITTED = "submitted"
    RUNNING = "running"
    EXITED = "exited"


class Finding(BaseModel):
    """One thing that a runner has looked at, for `prefect-launch agent check`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description='What was looked at, in a word or three, such as "right to create jobs".')
    is_ok: bool = Field(description="Whether runs can do with it as it is.")
    detail: str = Field(default="", description="What was seen; of what is missing: that, and the next step.")


class Found(BaseModel):
    """A run that exists, found by its labels."""

    model_config = ConfigDict(frozen=True)

    handle: str
    state: RunState
    labels: dict[str, str]
    run_dir: Path | None = Field(default=None, description="Where its log and outputs are, when the runner knows.")
    name: str | None = Field(default=None, description="Its name on the machine, where names are unique.")
    is_complete: bool = Field(default=True, description="Whether all is in it; what is not whole was never started.")


class ExecPlan(BaseModel):
    """How a command gets inside a run: what is executed on this machine for it, with the caller's terminal."""

    model_config = ConfigDict(frozen=True)

    argv: tuple[str, ...]
    env: dict[str, str] | None = Field(default=None, repr=False, description="The whole; None: the caller's own.")
    cwd: Path | None = Field(default=None, description="None: the caller's own.")


class Runner(ABC):
    """One kind of resource. Instances belong to one agent (or one `launch` call); there is no state shared between two.

    A handle is a short text that names what was created (a container id, a supervisor's folder); it is recorded on the
    flow run as `infrastructure_pid`.
    """

    #: The resource's name, as in queues and specs: "local-process".
    name: ClassVar[str]
    #: Says in messages that a run was stopped and removed.
    removed_message: ClassVar[str] = "run removed"
    #: Why `exec_plan` is not given, where it is not, and the next step.
    no_exec: ClassVar[str] = "its runner has no way into a run. Log in to the run's machine."
    #: Which sources it can run.
    sources: ClassVar[frozenset[SourceKind]]
    #: The options (normalised: lower case, dashes) that any submitter may set in `resource_args`.
    submitter_options: ClassVar[frozenset[str]]
    #: All options it understands; a queue's owner may set them, and may allow them to submitters.
    options: ClassVar[frozenset[str]]
    #: What nobody can set, though users of other systems may write it: each with where it is said, as a clause.
    unread_options: ClassVar[Mapping[str, str]] = {}
    #: How much its options ask for, so that a queue can limit them.
    quantities: ClassVar[Mapping[str, Quantity]] = {}
    #: Whether code runs in an image, which is built when its job names none.
    needs_image: ClassVar[bool] = False
    #: Whether no run goes without options that only a queue's owner may set: it can be reached through a queue alone.
    needs_queue: ClassVar[bool] = False
    #: Whether its plans hold the values of secrets. False: stand-ins for them (`RunPlan.secret_marks`), since what runs
    #: reads the values itself.
    takes_secret_values: ClassVar[bool] = True
    #: Whether its runs are on this very machine: an agent gives out its devices to them, and `launch` follows them to
    #: their ends when its caller does not wait.
    uses_this_machine: ClassVar[bool] = False

    #: Whether the two streams of its logs can be distinguished.
    separates_streams: ClassVar[bool] = True
    #: Whether its logs arrive byte for byte. Otherwise they are text: an invalid byte is shown as U+FFFD, and the last
    #: line may get an end.
    keeps_log_bytes: ClassVar[bool] = True
    #: Whether all that a job leaves in `$LAUNCH_OUTPUT_DIR` comes back by itself; else `outputs.json` alone does.
    returns_files: ClassVar[bool] = True
    #: The longest value of a variable that it takes, in bytes: a longer config is cut into chunks. None: as on Linux.
    variable_bytes: ClassVar[int | None] = None
    #: Whether it tells what a run uses of CPU and memory.
    tells_usage: ClassVar[bool] = False
    #: Whether it sees what a job has changed in its code folder, and keeps what the plan says of that.
    keeps_code_changes: ClassVar[bool] = False
    #: How many of an agent's runs may wait in the resource's own queue without taking one of the agent's slots.
    max_submitted: ClassVar[int] = 0

    #: What a run gets between TERM and KILL whose plan does not say it, in seconds, for a resource that must know it
    #: when the run starts; set by who made the runner.
    stop_seconds: float = TAKEOVER_SECONDS
    #: The name of the agent that it works for; set by who made the runner. None: a direct `launch`.
    agent: str | None = None
    #: Who knows the credentials for images; set by who made the runner. None: as the machine itself is logged in.
    registry: Registry | None = None
    #: Returns the environment of the agent's own programs, at their start; set by who made the runner.
    agent_environment: Callable[[], Mapping[str, str]] | None = None

    def __init__(self, home: Path) -> None:
        """Make a runner; nothing is connected or made before it is asked for.

        Args:
            home: the folder of the agent on this machine, where a runner keeps what its runs share (environments, a
                register).
        """
        self.home = home
        #: Who the runner is in the clouds: the operator's choice alone, never an option's; set by who made the runner.
        self.clouds = Clouds()

    def check(self, plan: RunPlan) -> None:  # noqa: B027 - most resources have nothing more to check
        """Refuse a plan that this resource cannot run, before anything is made.

        Raises:
            SpecError: with the value seen, the rule and the next step.
        """

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with normalised names, when every one is known; a resource also checks their values.

        Raises:
            SpecError: for a value of the wrong type.
            SubmitterError: as `unknown_option` returns it.
        """
        checked = normalise_options(options)
        for name in checked:
            if name not in cls.options:
                raise cls.unknown_option(name, where=f" in resource_args.{cls.name}")
        return checked

    @classmethod
    def unknown_option(cls, name: str, *, where: str, known: Collection[str] | None = None) -> SubmitterError:
        """Return the error for an option that this resource does not have; of what nobody can set, it says why.

        Args:
            name: of the option, as it is written.
            where: it stands, such as `" in resource_args.slurm"`.
            known: the options to list; by default all.
        """
        option = normalise_option(name)
        if option in cls.unread_options:
            return SpecError(
                f"The option {option!r} of {cls.name} is not read: {cls.unread_options[option]}. Leave it out."
            )
        near = nearest_name(option, cls.options)
        listed = [one for one in (cls.options if known is None else known) if normalise_option(one) == one]
        return unknown_name("option", name, listed, where=where, near=near)

    @classmethod  # noqa: B027 - for most resources the option's name decides who may set it
    def check_submitter_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse a value that only the queue's owner may give, in an option that submitters may set.

        Args:
            options: the submitter's own, as `check_options` returns them, before they are merged with the queue's.

        Raises:
            UnsafeSpecError: naming the option and the value.
        """

    @classmethod  # noqa: B027 - most resources have no such rule
    def check_together(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that do not go together.

        Args:
            options: all that a run has, as `check_options` returns them.

        Raises:
            SpecError: naming them.
        """

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        """Return how freely a submitter's value may stand at a place of a queue's options.

        Args:
            option: under its normal name.
            keys: that lead to the place in the option's value.
            text: that the queue's owner wrote there, with the placeholder.
        """
        return FillRule.ANY

    @classmethod
    def set_inside(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """Return the options (or `env.NAME`) that are set inside of others, such as a manifest, each with its place.

        Args:
            options: of a queue, as its owner wrote them, under their normal names; values may hold template variables.
        """
        return {}

    @classmethod
    def amounts(cls, options: Mapping[str, Any]) -> dict[str, Amount]:
        """Return how much a run asks for in all, by the name of the quantity, where its options alone do not say it.

        Args:
            options: all that it has; perhaps not all filled in yet.
        """
        return {}

    @classmethod
    def input_dir(cls, run_dir: Path) -> str | None:
        """Return where a job sees the outputs of other items that are its inputs; None where it can be given none.

        Args:
            run_dir: the folder of its run on the agent's machine.
        """
        return None

    @classmethod
    def own_image(cls, options: Mapping[str, Any]) -> str | None:
        """Return the image that the options name for a job that names none: its code is carried onto that image.

        Args:
            options: all that a run has, as `check_options` returns them.
        """
        return None

    @classmethod  # noqa: B027 - most resources take any image
    def check_image(cls, image: str, options: Mapping[str, Any]) -> None:
        """Refuse an item's image that the resource cannot get.

        Args:
            image: that the item names.
            options: all that a run has; perhaps not all filled in yet.

        Raises:
            SpecError: with the next step.
        """

    @classmethod
    def check_base_image(cls, image: str, options: Mapping[str, Any]) -> None:
        """Refuse an image that a job's code is to run in, as `check_image` does; by default the same ones.

        Raises:
            SpecError: with the next step.
        """
        cls.check_image(image, options)

    @classmethod  # noqa: B027 - the options of most name nothing there
    async def check_on_server(cls, options: Mapping[str, Any], server: Server) -> None:
        """Check what options name on the Prefect server: a queue's when it is written, an item's when it is queued.

        Args:
            options: of the queue, with the submitter's over them; values may hold what is filled in later.
            server: the Prefect server.

        Raises:
            LaunchError: naming what is not there.
        """

    @classmethod
    def preview(cls, plan: RunPlan) -> dict[str, Any]:
        """Return what `create` would make, without looking at the machine; variables and their values as `env`."""
        env = {**plan.options.get("env", {}), **plan.env}
        return {"command": [*plan.command, *plan.args], "env": env, "labels": plan.labels}

    @classmethod
    def check_source(cls, kind: SourceKind) -> None:
        """Refuse a source that this resource cannot run.

        Raises:
            SpecError: naming the resource, the source and what it can run.
        """
        if kind not in cls.sources:
            can = ", ".join(sorted(source.name.lower() for source in cls.sources))
            raise SpecError(
                f"A job of kind {kind.name.lower()!r} cannot run on the resource {cls.name!r}, which runs: {can}."
                " Choose another queue or another kind of job."
            )

    def give_gpus(self, plan: RunPlan, ids: tuple[str, ...]) -> RunPlan:
        """Return the plan of a run that sees these GPUs of the machine and no others.

        Args:
            plan: of the run.
            ids: indexes in the order of the PCI bus; none: it is to see no GPU.
        """
        return plan.model_copy(update={"env": {**plan.env, **visible_gpus(ids)}})

    async def ping(self) -> None:  # noqa: B027 - what runs on the agent's own machine is always there
        """Check that the machine, engine or cluster can be reached; cheap.

        Raises:
            UnreachableError: when it cannot.
        """

    def place_of(self, options: Mapping[str, Any]) -> str:
        """Return the place that a queue's runs go to, of the several that a resource may have; empty: its own.

        Args:
            options: of the queue, or of a run.
        """
        return ""

    async def ping_place(self, place: str) -> None:
        """Check that a place can be reached, as `ping` does.

        Args:
            place: as `place_of` gives it.
        """
        await self.ping()

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        """Look at what a run needs here, for `prefect-launch agent check`; nothing is made, and no run is started.

        A resource looks at each thing that keeps its first job from running: whether it can be reached and its version,
        the agent's rights there, whether what the queue names exists (a namespace, a partition), shared folders, tools.

        Args:
            options: of the queue, as its owner wrote them; values may hold template variables.

        Returns:
            What was found, also what is well; by default, whether `ping` gets an answer. A failure is a finding too.
        """
        try:
            await self.ping()
        except LaunchError as error:
            return [Finding(name="reachable", is_ok=False, detail=str(error))]
        return [Finding(name="reachable", is_ok=True)]

    async def missing(self, plan: RunPlan) -> ItemState | None:
        """Say what `prepare` is needed for, as the state that shows it; `None` when nothing is missing."""
        return None

    @abstractmethod
    async def prepare(self, plan: RunPlan) -> None:
        """Prepare what the start needs and runs can share: pull the image, make the environment.

        Raises:
            InfrastructureError: when the machine or a registry fails.
            SubmitterError: when what the job asks for cannot be had (its requirements do not resolve).
        """

    @abstractmethod
    async def create(self, plan: RunPlan) -> str:
        """Make the process or container, not started, and return its handle."""

    @abstractmethod
    async def start(self, handle: str) -> None:
        """Start what was created. Starting what already ran, or was stopped, does nothing.

        A command that cannot be run (no such program) is no error here: `watch` gives 127 or 126, as a shell does.

        Raises:
            InfrastructureError: when the machine fails to start it.
        """

    async def wait_running(self, handle: str, on_wait: Callable[[str], Awaitable[None]]) -> None:  # noqa: B027
        """Wait until what was started runs, or has ended; by default it runs at once.

        Args:
            handle: of what was started.
            on_wait: is awaited with the reason when the run waits in the resource's own queue, and again whenever the
                reason changes; an empty text where the resource gives none.
        """

    async def watch_parts(self, handle: str, on_wait: Callable[[str], Awaitable[None]]) -> None:  # noqa: B027
        """Tell why parts of what runs wait, such as one of several pods, until it has ended; by default it has none.

        Args:
            handle: of what was started.
            on_wait: is awaited with each reason.
        """

    @abstractmethod
    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        """Wait until it has ended, its log file is whole and its outputs are in `plan.output_dir`.

        Args:
            handle: of what was started.
            plan: what it was made from.
            ended: is called once it has ended, before its outputs are fetched: it needs no more of the machine.
        """

    @abstractmethod
    async def stop(self, handle: str, grace_seconds: float) -> None:
        """Stop the whole process group or container: TERM, then KILL after the grace. Returns once it has ended."""

    @abstractmethod
    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        """List what exists with all these labels, running or not: on this machine, or in the cluster."""

    async def seek(self, where: str | RunPlan) -> None:  # noqa: B027 - most resources have one place
        """Find runs also where this one is, from now on: a new home does not know where others have made theirs.

        Args:
            where: the handle of a run, as an item has it (one of another resource does no harm), or a plan.
        """

    async def find_beside(self, item_id: str) -> list[Found]:
        """List what has not ended of an item, also under agents of other homes; none where `find` sees these too."""
        return []

    async def display_name(self, handle: str) -> str:
        """Return what people call a run that was started, in the resource's own tools; by default its handle."""
        return handle

    async def why_gone(self, handle: str) -> str:
        """Say why a run that was started and has not been followed to its end is not there any more."""
        return "somebody has removed it from its machine"

    async def exec_plan(self, handle: str, command: Sequence[str], *, has_terminal: bool) -> ExecPlan:
        """Return what runs a command inside a run that runs: in its environment, and in its working folder.

        The caller may be any process on the machine of the run's agent; of a resource that does not use this machine,
        on any that reaches it.

        Args:
            handle: of the run.
            command: a program and its arguments.
            has_terminal: whether the command gets a terminal; else it reads and writes pipes.

        Raises:
            SpecError: on a resource that has no way into its runs.
            LaunchError: when the run does not run, or nobody can look.
        """
        raise SpecError(f"No command can be run inside a run on the resource {self.name}: {self.no_exec}")

    async def usage(self, handle: str) -> Usage | None:
        """Return what a run uses now; None when it does not run, and where that is not told. Cheap."""
        return None

    async def image_of(self, handle: str) -> str | None:
        """Return the image that a run was created from, by its digest; `None` where there are no images."""
        return None

    @abstractmethod
    async def remove(self, handle: str) -> None:
        """Remove what was created, once its log and outputs are safe. Removing what is gone does nothing."""

    async def aclose(self) -> None:  # noqa: B027 - most resources hold nothing
        """Close connections and threads; the runs continue."""
