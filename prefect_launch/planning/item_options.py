"""An item's resource options: what its submitter asks for, checked, and put together with the queue's.

The queue checks with these rules before an item is made, and the agent before it runs one: an item that was made in the
UI comes straight to the agent.

For the host folders that an item binds, the agent knows which part the queue's owner wrote, and which the submitter. In
`/data/{{team}}:/d` the owner wrote `/data/`. A job can leave a link in a folder that it may write to. So the agent
checks the rest of the path on the host before it makes the container.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefect_launch.core.names import short_id
from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.policy.limits import (
    TIMEOUT,
    check_fixed,
    check_limits,
    check_unlimited,
    fixed_options,
    time_limit,
    with_limits,
)
from prefect_launch.policy.submitter_options import (
    check_filled_values,
    check_submitter_args,
    check_submitter_secrets,
    check_variables_name_no_secret,
    locked_options,
    merge_resource_args,
)
from prefect_launch.policy.template import (
    PLACEHOLDER_OR_MACRO,
    SUBMITTED,
    QueueConfig,
    check_variables,
    fill_macros,
    fill_text,
    is_whole,
    macro_values,
)
from prefect_launch.runners.base import HostFolder
from prefect_launch.runners.option_values import mounts, texts, volumes
from prefect_launch.runners.registry import runner_class
from prefect_launch.server.secrets import SECRET_PREFIX, fill_secrets
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.option_names import normalise_option, normalise_options

_ENV: Final = "env"


def check_resource(config: QueueConfig, spec: LaunchSpec, queue: str) -> None:
    """Refuse a spec for another resource than its queue's.

    Raises:
        SpecError: naming both.
        NotFoundError: for a resource that does not exist.
    """
    if spec.resource and spec.resource != config.resource:
        runner_class(spec.resource)
        raise SpecError(
            f"Queue {queue!r} runs its items on {config.resource!r}, but the spec asks for {spec.resource!r}."
            " Leave resource out, or choose a queue of that resource."
        )


def submitted_options(config: QueueConfig, spec: LaunchSpec, queue: str | None) -> dict[str, Any]:
    """Return the options of a spec under their normal names, when its submitter may set them, and so its variables.

    Without a queue, the run is of a caller at their own machine.

    Raises:
        SubmitterError: naming what is refused, and the next step.
    """
    resource = config.resource
    runner = runner_class(resource)
    for other in set(spec.resource_args) - {resource}:
        where = "this item runs" if queue is None else f"queue {queue!r} runs its items"
        raise SpecError(
            f"resource_args are for {other!r}, but {where} on {resource!r}."
            f" Put the resource's options below its name: {{{resource!r}: {{…}}}}."
        )
    if queue is not None:
        check_resource(config, spec, queue)
        check_variables(queue, config, spec.template_variables)
        check_variables_name_no_secret(spec.template_variables)
    fixed = {} if queue is None else fixed_options(config, runner)
    options = check_submitter_args(
        spec.resource_args.get(resource, {}),
        runner,
        extra_allowed=config.submitter_options,
        locked=locked_options(config.resource_args),
        fixed=fixed,
    )
    # Who runs something of no queue has their own access to the server.
    allowed = None if queue is None else config.submitter_secrets
    check_submitter_secrets(options, resource=resource, allowed=allowed)
    if queue is not None:
        check_fixed(options, config, runner)
    options = runner.check_options(options)
    if queue is not None:
        runner.check_submitter_options(options)
        check_unlimited(options, config, runner.quantities)
        _check_overrides(spec, fixed)
        time_limit(spec.timeout, config)
    return options


def _check_overrides(spec: LaunchSpec, fixed: Mapping[str, str]) -> None:
    """Refuse what would take the place of an option that the queue fixes."""
    given = {"working_dir": spec.overrides.working_dir, "entry_point": spec.overrides.entry_point}
    for name, options in {"working_dir": ("workdir",), "entry_point": ("entrypoint", "command")}.items():
        option = next((option for option in options if option in fixed), None)
        if option and given[name] is not None:
            raise UnsafeSpecError(
                f"overrides.{name} would take the place of the option {option!r}, which {fixed[option]} and cannot be"
                " given. Leave it out; the queue's owner can let submitters set it"
                f" ('prefect-launch queue edit … --allow {option}')."
            )


def item_macros(
    spec: LaunchSpec,
    *,
    item_id: str,
    image: str | None,
    queue: str | None,
    attempt: int = 1,
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the values of all macros for one attempt at an item; `named` are those of the agent's config."""
    return macro_values(
        named,
        run_id=spec.run_id or short_id(item_id),
        item_id=item_id,
        attempt=attempt,
        project_name=spec.project,
        entity_name=spec.entity,
        run_name=spec.name,
        image_uri=image,
        author=spec.author,
        queue_name=queue,
    )


def merged_options(
    config: QueueConfig,
    spec: LaunchSpec,
    queue: str | None,
    *,
    macros: Mapping[str, str],
    secrets: Mapping[str, str],
) -> dict[str, Any]:
    """Return the queue's options, filled in, with the submitter's over them.

    Variables, secrets and macros are filled into what the queue's owner wrote, in one pass; of what a submitter wrote,
    only the secrets in `env`.

    Args:
        config: of the queue.
        spec: what is asked for.
        queue: its name; `None` for a run of no queue.
        macros: their values; those that are not among them stay as they are written.
        secrets: what the Secret blocks hold, by name; likewise.

    Raises:
        SpecError: for an invalid value, or options that exclude each other, as far as they are filled in.
        SubmitterError: as `submitted_options`, and for a value that changes a path or a bind which it is filled into.
    """
    submitted = submitted_options(config, spec, queue)
    if queue is None:
        submitted = fill_macros(submitted, macros)
    runner = runner_class(config.resource)
    check_filled_values(
        config,
        spec.template_variables,
        macros,
        rule_of=runner.fill_rule,
        check_allowed=runner.check_submitter_options,
    )
    of_queue = config.fill(spec.template_variables, secrets, macros)
    asked = merge_resource_args(of_queue, fill_secrets(submitted, secrets))
    merged = with_limits(asked, config, runner.quantities, runner.amounts(asked))
    waiting = _waiting(config, macros, secrets) - submitted.keys()
    whole = runner.check_options({name: value for name, value in merged.items() if name not in waiting})
    if queue is not None:
        # Count all values that are known: one that is still to be filled in does not hide the others.
        filled = merged.keys() - asked.keys()
        check_limits(whole, config, runner.quantities, runner.amounts(merged), filled)
    if not waiting:
        runner.check_together(whole)
    if image := macros.get("image_uri"):
        runner.check_image(image, merged)
    return merged


def filled_by_limits(options: Mapping[str, Any], config: QueueConfig, spec: LaunchSpec) -> dict[str, Any]:
    """Return those of a run's options that nobody asked for: `merged_options` has put in the queue's limits."""
    asked = {*config.resource_args, *spec.resource_args.get(config.resource, {})}
    known = {normalise_option(name) for name in asked}
    return {name: value for name, value in options.items() if name not in known}


def limits_for(config: QueueConfig, spec: LaunchSpec, queue: str) -> dict[str, Any]:
    """Return the limits of its queue that hold for what an item does not ask for.

    Raises:
        SubmitterError: as `merged_options`.
    """
    given = filled_by_limits(merged_options(config, spec, queue, macros={}, secrets={}), config, spec)
    timeout = config.limits.get(TIMEOUT) if spec.timeout is None else None
    return given if timeout is None else {**given, TIMEOUT: timeout}


def _waiting(config: QueueConfig, macros: Mapping[str, str], secrets: Mapping[str, str]) -> set[str]:
    """Return the queue's options in which a macro or a secret is filled in later: what their value is, is not known.

    What a variable's value looks like does not matter: nothing is ever filled into one. Nor is `env` waited for, whose
    values may be any texts.
    """
    blank = dict.fromkeys(config.template_variables, "")
    filled = config.fill(blank, secrets, macros)
    return {name for name, value in filled.items() if name != _ENV and not is_whole(value)}


# Host folders whose paths a submitter has a part in: where the queue's owner ended, and the submitter began.

#: Options that bind folders of the host, and their readers.
_BINDS: Final = {"volume": volumes, "mount": mounts}


def host_folders(
    config: QueueConfig, values: Mapping[str, Any], macros: Mapping[str, str], secrets: Mapping[str, str]
) -> tuple[HostFolder, ...]:
    """Return the host folders that an item's binds name with a variable, or a macro of its submitter's choice."""
    held = {f"{SECRET_PREFIX}{name}": value for name, value in secrets.items()}
    defaults = {name: rule["default"] for name, rule in config.template_variables.items() if "default" in rule}
    of_others = {name: value for name, value in macros.items() if name not in SUBMITTED}
    found = []
    for option, value in normalise_options(config.resource_args).items():
        for text in texts(value) if option in _BINDS else ():
            named = list(_chosen(fill_text(text, held, of_others)))
            if not named:
                continue
            source = _source(option, fill_text(text, {**defaults, **values, **held}, macros))
            owners = _owners_part(option, fill_text(text, held, of_others))
            if source is not None and owners is not None:
                bounded = all(config.template_variables.get(name, {}).keys() & {"enum", "pattern"} for name in named)
                found.append(HostFolder(path=source, below=owners, is_bounded=bounded))
    return tuple(found)


def _chosen(text: str) -> Iterator[str]:
    """Yield what a submitter's values stand for in a text: variables by name, macros as they are written."""
    for match in re.finditer(PLACEHOLDER_OR_MACRO, text):
        if match[1] or match[2] in SUBMITTED:
            yield match[1] or match[0]


def _source(option: str, text: str) -> str | None:
    """Return the folder of the host that a text binds; None when it binds none, or is refused elsewhere."""
    try:
        mount = _BINDS[option](text)[0]
    except ValueError:
        return None
    return str(mount["Source"]) if mount["Type"] == "bind" else None


def _owners_part(option: str, text: str) -> str | None:
    """Return the folder that the owner wrote before the first variable; None when the host's path has no variable."""
    source = _source(option, text)
    if source is None:  # A variable says what is bound, from the first character on.
        return "/"
    first = re.search(PLACEHOLDER_OR_MACRO, source)
    return None if first is None else posixpath.dirname(source[: first.start()])
