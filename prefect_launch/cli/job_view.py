"""Views of a job: fields for programs, and the rows of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job, JobSummary

_RULES = (
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "format",
)

#: Uncommitted files that are shown; `--json` has more.
_SHOWN_CHANGES = 5


def source(job: Job) -> str:
    """Return where a job's code or image comes from."""
    source = job.document.source.model_dump(mode="json", exclude_none=True)
    git = source.get("git")
    return f"{git['remote']} at {git['commit'][:12]}" if git else str(source.get("image") or "its own code archive")


def work_tree(job: Job) -> str | None:
    """Return the commit of a folder of code, and its uncommitted files."""
    git = job.metadata.get("git")
    if not git:
        return None
    commit = f"{git['remote'] or 'a repository without a remote'} at {git['commit'][:12]}"
    if not git.get("dirty"):
        return commit
    changed = [str(line).strip() for line in git.get("changed", ())]
    count = git.get("changed_count", len(changed))
    shown = ", ".join(changed[:_SHOWN_CHANGES])
    return f"{commit}, {count} not committed: {shown}{', …' if count > _SHOWN_CHANGES else ''}"


def input_rows(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Return a row of each input: its name, type, default and rule."""
    from prefect_launch.jobs.schema import inputs_in_order

    required = set(schema.get("required") or ())
    for name, each in inputs_in_order(schema).items():
        if each.get("properties"):
            yield from input_rows(each, f"{prefix}{name}.")
            continue
        rules = [f"{word} {each[word]}" for word in _RULES if word in each]
        shown = "required" if name in required and "default" not in each else _text(each.get("default"))
        yield f"{prefix}{name}", each.get("type", "any"), shown, ", ".join(rules) or each.get("description", "")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def retries_of(job: Job) -> dict[str, Any] | None:
    """Return a job's own retry rule, as it was written."""
    rule = job.document.retries
    return None if rule is None else rule.model_dump(mode="json", exclude_unset=True)


def job_fields(job: Job, aliases: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a job, for programs."""
    return {
        "job": job.reference,
        "entity": job.entity,
        "project": job.project,
        "name": job.name,
        "version": job.version,
        "aliases": list(aliases),
        "kind": job.kind.name.lower(),
        "source": job.document.source.model_dump(mode="json", exclude_none=True),
        "entry_point": list(job.entry_point),
        "runtime": job.runtime,
        "description": job.description,
        "schema": job.schema,
        "retries": retries_of(job),
        "metadata": job.metadata,
        "digest": job.digest,
        "created": job.created_at,
    }


def summary_fields(job: JobSummary) -> dict[str, Any]:
    """Return the fields of a job in a list, for programs."""
    return {
        "job": job.path,
        "entity": job.entity,
        "project": job.project,
        "name": job.name,
        "kind": job.kind.name.lower(),
        "latest_version": job.latest_version,
        "versions": job.version_count,
        "aliases": list(job.aliases),
        "description": job.description,
        "updated": job.updated_at,
    }
