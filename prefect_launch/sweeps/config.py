"""Sweep configuration: one frozen model of W&B's sweep file, with the keys that prefect-launch adds.

Every shape of W&B's own schema is read, and the `launch` and `scheduler` blocks of its launch sweeps; what has no
effect here is reported as a warning. Our own keys are `args`, `sampler`, `seed`, `retries`, `max_failures`, `timeout`,
`prior_runs` and `metric.pattern`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from prefect_launch.core.units import parse_duration
from prefect_launch.core.validation import check_server_json
from prefect_launch.errors import SpecError
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.metric_pattern import check_pattern
from prefect_launch.spec.scheduling import Cause, Retries, parse_retries
from prefect_launch.sweeps.command import ArgsStyle, check_command, trial_arguments, trial_command
from prefect_launch.sweeps.distributions import Number, Whole
from prefect_launch.sweeps.messages import check_block, first_refusal, invalid
from prefect_launch.sweeps.parameters import Parameter, parse_parameters
from prefect_launch.sweeps.search_space import number_of_points

#: Each worker is an item on the server at a time; more than this is a mistake.
MAX_WORKERS: Final = 1_000
#: W&B Launch's own number.
DEFAULT_WORKERS: Final = 8
MAX_TRIALS: Final = 1_000_000
#: A trial that the machine or the resource lost comes back by itself.
DEFAULT_TRIAL_RETRIES: Final = Retries(max=3, on=(Cause.CRASHED, Cause.PREEMPTED))


def _text(value: object) -> object:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be text, and not empty")
    return value


Text = Annotated[str, BeforeValidator(_text)]


class _Block(BaseModel):
    """A mapping of the configuration with keys of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        return data if isinstance(data, cls) else check_block(data, cls.model_fields, cls.path)


class Metric(_Block):
    """What a trial is judged by."""

    path = "metric"

    name: Text
    goal: Literal["minimize", "maximize"] = "minimize"
    target: Number | None = Field(default=None, description="The sweep ends once a trial reaches it.")
    impute: Literal["latest", "best", "worst"] = Field(
        default="worst", description="The value that `bayes` takes for a trial that failed."
    )
    impute_while_running: Literal["latest", "best", "worst", "false"] = "false"
    pattern: Text | None = Field(
        default=None, description="Regular expression that finds the metric in the log; its one group is the number."
    )

    @field_validator("impute_while_running", mode="before")
    @classmethod
    def _read_false(cls, value: Any) -> Any:
        return "false" if value is False else value

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        return None if value is None else check_pattern(value)

    def score(self, value: float) -> float:
        """Return a value so that less is better."""
        return -value if self.goal == "maximize" else value

    def reaches_target(self, value: float | None) -> bool:
        """Whether a value is the target or better; no value, and no finite one, is not."""
        if self.target is None or value is None or not math.isfinite(value):
            return False
        return self.score(value) <= self.score(self.target)


class EarlyTerminate(_Block):
    """When a running trial is stopped for being worse than the others: Hyperband's bands."""

    path = "early_terminate"

    type: Literal["hyperband"]
    min_iter: Annotated[Whole, Field(ge=1)] | None = None
    max_iter: Annotated[Whole, Field(ge=1)] | None = None
    s: Annotated[Number, Field(ge=1, le=100)] | None = None
    eta: Annotated[Number, Field(gt=1)] = 3
    strict: bool = True

    @model_validator(mode="after")
    def _check_bands(self) -> EarlyTerminate:
        if self.min_iter is None and (self.max_iter is None or self.s is None):
            raise SpecError(
                "The sweep configuration's early_terminate needs min_iter, or max_iter and s: at which steps trials are"
                " compared."
            )
        if self.max_iter is not None and self.max_iter / self.eta < 1:
            raise SpecError(
                f"The sweep configuration's early_terminate has no step to compare trials at: max_iter {self.max_iter}"
                f" is below eta {self.eta}. Raise max_iter, or lower eta."
            )
        return self


class Controller(_Block):
    """Who runs the sweep at W&B; here it is always the scheduler."""

    path = "controller"

    type: Literal["local", "cloud"] = "cloud"


class SchedulerOptions(_Block):
    """The `scheduler` block: of W&B's schema, and of its launch sweeps."""

    path = "scheduler"

    num_workers: Annotated[Whole, Field(ge=1, le=MAX_WORKERS)] = DEFAULT_WORKERS
    job: Any = None
    docker_image: Any = None
    resource: Any = None
    resource_args: Any = None
    template_variables: Any = None
    settings: Any = None
    engine: Literal["wandb", "optuna", "ax"] | None = None
    source: Any = None
    optimizer: Any = None
    search_space: Any = None

    @field_validator("num_workers", mode="before")
    @classmethod
    def _read_digits(cls, value: Any) -> Any:
        # As W&B does; any other text becomes 8 there.
        found = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= MAX_WORKERS:
            raise ValueError(f"it must be a whole number from 1 to {MAX_WORKERS:,}")
        return found

    @property
    def unread(self) -> list[str]:
        """The keys that are given and have no effect here."""
        return sorted(key for key in self.model_fields_set if key != "num_workers" and getattr(self, key) != "wandb")


class LaunchOptions(_Block):
    """The `launch` block: where trials are queued, and the launch config of each."""

    path = "launch"

    model_config = ConfigDict(frozen=True, extra="allow")

    queue: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        return check_block(data, {"queue", *LaunchSpec.model_fields} - _PER_TRIAL, cls.path)

    @property
    def config(self) -> dict[str, Any]:
        """The launch config that every trial has."""
        return dict(self.model_extra or {})


#: What the sweep sets itself in each trial's launch config.
_PER_TRIAL: Final = {"run_id", "sweep_id", "name"}


class SweepConfig(_Block):
    """What a sweep tries, how, and until when."""

    path = ""

    method: Literal["bayes", "random", "grid", "custom"]
    parameters: tuple[Parameter, ...]
    metric: Metric | None = None
    metrics: tuple[Metric, ...] | None = None
    early_terminate: EarlyTerminate | None = None
    run_cap: Annotated[Whole, Field(ge=1, le=MAX_TRIALS)] | None = Field(
        default=None, description="The most trials that are queued; a retry is no new one."
    )
    program: Text | None = None
    command: tuple[str, ...] | None = None
    job: Text | None = None
    image_uri: Text | None = None
    name: Text | None = None
    description: str | None = None
    project: Text | None = None
    entity: Text | None = None
    controller: Controller = Controller()
    scheduler: SchedulerOptions = SchedulerOptions()
    launch: LaunchOptions = LaunchOptions()
    apiVersion: Any = None
    kind: Literal["sweep"] | None = None
    # Our own.
    args: ArgsStyle | None = Field(default=None, description="How trials get their parameters as arguments, too.")
    sampler: Text | None = Field(default=None, description="With `method: custom`, the name of an installed sampler.")
    seed: Whole = Field(default=0, description="Another seed gives other random points.")
    retries: Retries = Field(default=DEFAULT_TRIAL_RETRIES, description="When a trial runs again by itself.")
    max_failures: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="The sweep fails at so many failed trials. Default: when the first 5 all fail."
    )
    timeout: float | None = Field(default=None, description="Time limit of the whole sweep, seconds or '2h'.")

    prior_runs: tuple[UUID, ...] = Field(
        default=(), description="Ids of earlier sweeps, and of other items, that the sampler learns from."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        # `entity:` with nothing behind it is no entity.
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, Mapping) else data

    @field_validator("parameters", mode="before")
    @classmethod
    def _parse_parameters(cls, value: Any) -> Any:
        return parse_parameters(value)

    @field_validator("metrics", mode="before")
    @classmethod
    def _check_metrics(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) < 2:
            raise ValueError("it must be a list of at least two metrics. For one, write 'metric'")
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _read_command(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError("it must be a list of words, such as ['${env}', python, '${program}', '${args}']")
        for word in value:
            if isinstance(word, bool) or not isinstance(word, (str, int, float)):
                raise ValueError(f"each word must be text, and {word!r} is not. Put it in quotes")
        return [str(word) for word in value]

    @field_validator("retries", mode="before")
    @classmethod
    def _read_retries(cls, value: Any) -> Any:
        return parse_retries(value)

    @field_validator("timeout", mode="before")
    @classmethod
    def _read_timeout(cls, value: Any) -> Any:
        return parse_duration(value)

    @model_validator(mode="after")
    def _check_together(self) -> SweepConfig:
        self._check_metric()
        self._check_sampler()
        if self.job is not None and self.image_uri is not None:
            raise SpecError("The sweep configuration has both job and image_uri. Keep the one that trials run.")
        if self.args is not None and self.command is not None:
            raise invalid("args", self.args, "the command has ${args} for this. Remove one of them")
        if self.command is not None:
            check_command(self.command, self.program)
        if self.method == "grid":
            self._check_grid()
        return self

    def _check_metric(self) -> None:
        if self.metrics is not None and (self.metric is not None or self.method != "custom"):
            raise SpecError("The sweep configuration's metrics (several) need 'method: custom', and no 'metric'.")
        if self.objective is None and (self.method == "bayes" or self.early_terminate):
            who = "method bayes" if self.method == "bayes" else "early_terminate"
            raise SpecError(
                f"The sweep configuration has no metric, which {who} needs. Add one, such as"
                " metric: {name: val_loss, goal: minimize}."
            )

    def _check_sampler(self) -> None:
        if (self.method == "custom") != (self.sampler is not None):
            raise SpecError(
                f"The sweep configuration has method {self.method} and sampler {self.sampler!r}: 'method: custom' and"
                " 'sampler', the name of an installed sampler, go together."
            )

    def _check_grid(self) -> None:
        for path, distribution in self.parameters:
            if distribution.grid_points is None:
                raise invalid(
                    ".".join(("parameters", *path)),
                    distribution.name,
                    "a grid has no range of the reals and no probabilities. Use 'values', 'min' and 'max' that are both"
                    " whole numbers, 'q_uniform', or another method",
                )

    @property
    def objective(self) -> Metric | None:
        """The metric that trials are compared by: `metric`, or the first one of `metrics`."""
        return self.metric or (self.metrics[0] if self.metrics else None)

    def without_prior_runs(self) -> SweepConfig:
        """Return the configuration without prior runs, to check one that has begun: they may be deleted since."""
        return self.model_copy(update={"prior_runs": ()})

    def trial_overrides(self, params: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the overrides of a trial: its parameters, as inputs and as its command has them, over the sweep's own.

        Args:
            params: the trial's parameters; they are its inputs in any case.
            variables: the environment variables that the command may name with `${envvar:NAME}`.

        Returns:
            `run_config`; with a `command`, it as `entry_point`; else, with `args`, the parameters as `args`; and what
            the `overrides` of `launch` have besides.

        Raises:
            SpecError: for a variable that the command may not name, and for own overrides that are no mapping.
        """
        own = self.launch.config.get("overrides") or {}
        if not isinstance(own, Mapping):
            raise SpecError(f"The sweep configuration's launch.overrides must be a mapping, not {own!r}.")
        overrides = {**own, "run_config": {**(own.get("run_config") or {}), **params}}
        if self.command is not None:
            overrides["entry_point"] = trial_command(self.command, self.program, params, variables or {})
        elif self.args is not None:
            overrides["args"] = [*(own.get("args") or ()), *trial_arguments(params, self.args)]
        return overrides

    @property
    def _ends(self) -> bool:
        if (
            self.method == "grid"
            or self.run_cap
            or self.timeout
            or (self.objective and self.objective.target is not None)
        ):
            return True
        # One point after the other, until all were tried; a random sweep draws them again.
        return self.method != "random" and number_of_points(self.parameters) is not None

    @property
    def names_job(self) -> bool:
        """Whether it says what its trials run."""
        return bool(self.job or self.image_uri or any(self.launch.config.get(name) for name in SOURCES))

    @property
    def warnings(self) -> list[str]:
        """What of the configuration has no effect here, or may surprise; one sentence each."""
        found = [
            f"scheduler.{key} has no effect: the scheduler is prefect-launch's own." for key in self.scheduler.unread
        ]
        for path, distribution in self.parameters:
            if distribution.name in _EXPONENTS:
                found.append(
                    f"parameters.{'.'.join(path)}: min and max of {distribution.name} are exponents of e;"
                    f" {distribution.name}_values takes the values themselves."
                )
        if self.objective and self.objective.impute_while_running != "false":
            found.append("metric.impute_while_running has no effect: a running trial counts as a bad one.")
        if not self._ends:
            found.append(f"method {self.method} has no end here: set run_cap, timeout or metric.target.")
        return found


#: Keys of a launch config that say what runs.
SOURCES: Final = ("job", "docker", "image_uri", "uri")
_EXPONENTS: Final = {"log_uniform", "inv_log_uniform", "q_log_uniform"}


def parse_sweep(data: object) -> SweepConfig:
    """Read a sweep configuration from plain data.

    Args:
        data: a mapping of W&B's keys and ours; or one with the key `sweep` alone, which holds it.

    Raises:
        SpecError: names the path, the value, the rule and the next step.
        NotFoundError: for an unknown key; names the nearest right one.
    """
    content = data
    if isinstance(content, Mapping) and isinstance(content.get("sweep"), Mapping):
        beside = ", ".join(str(key) for key in content if key != "sweep")
        if beside:
            raise SpecError(
                f"The sweep configuration is under the key 'sweep', and there are other keys next to it: {beside}. Move"
                " them under it, or all of 'sweep' to the top."
            )
        content = content["sweep"]
    if not isinstance(content, Mapping):
        raise invalid("content", content, "it must be a mapping with 'method' and 'parameters'")
    check_server_json(content, "The sweep configuration")
    _check_method(content)
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        raise first_refusal(error) from None


def _check_method(content: Mapping[str, Any]) -> None:
    if content.get("method") is None and isinstance(content.get("scheduler"), Mapping):
        raise SpecError(
            "The sweep configuration has no method. A program of your own as scheduler (scheduler.job) is not run here:"
            " set method to bayes, random or grid, or to custom with an installed sampler."
        )
