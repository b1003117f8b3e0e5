"""What a Prefect server refuses in what it is sent: templates, template variables and parameters, in its own words.

The JSON schemas are checked by the functions that the server itself uses (`prefect.utilities.schema_tools`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from prefect.utilities.schema_tools.validation import ValidationError, is_valid_schema, validate
from prefect.utilities.templating import find_placeholders

from prefect_launch.errors import QueueError, SpecError

#: The server's limit for the parameters of a run.
_MAX_PARAMETER_BYTES: Final = 524_288
_KNOWN_SCHEMAS: Final = 32
_POOL_NAME = re.compile(r"[^/%&><]+\Z")
_ARTIFACT_KEY = re.compile(r"[a-z0-9-]+\Z")
_KEYS = "The `base_job_template` must contain both a `job_configuration` key and a `variables` key."
_UNDECLARED = (
    "The variables specified in the job configuration template must be present as properties in the variables schema."
    " Your job configuration uses the following undeclared variable(s): "
)


def refused(reason: str) -> SpecError:
    """Make the error of `prefect_launch.server.http` for what the server refuses."""
    return SpecError(f"The Prefect server refuses this: {reason}")


def queue_refused(name: str, reason: str) -> QueueError:
    """Make the error of `prefect_launch.server.pools` for a queue that the server refuses."""
    return QueueError(f"The Prefect server refuses the queue {name!r}: {reason}")


def check_pool_name(name: str) -> None:
    """Raise `QueueError` for a name that a work pool cannot have."""
    if not name:
        raise queue_refused(name, "body.name: Value error, name cannot be an empty string")
    if not _POOL_NAME.match(name):
        raise queue_refused(name, "body.name: String should match pattern '^[^/%&><]+$'")
    if name.lower().startswith("prefect"):
        raise queue_refused(name, "Work pools starting with 'Prefect' are reserved for internal use.")


def check_pool_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Raise `QueueError` for fields that a work pool cannot have."""
    for field in fields.keys() - {"is_paused", "concurrency_limit", "base_job_template", "description"}:
        raise queue_refused(name, f"body.{field}: Extra inputs are not permitted")
    limit = fields.get("concurrency_limit")
    if limit is not None and limit < 0:
        raise queue_refused(name, "body.concurrency_limit: Input should be greater than or equal to 0")
    if "base_job_template" in fields:
        _check_placeholders(name, fields["base_job_template"])


def check_template_defaults(name: str, template: Mapping[str, Any]) -> None:
    """Raise `QueueError` for a schema of variables that is none, or a default outside it. (A change is not checked
    so.)"""
    schema = dict(template.get("variables") or {})
    if not schema:
        return
    try:
        is_valid_schema(schema, preprocess=False)
    except ValueError as error:
        raise queue_refused(name, str(error)) from error
    try:
        validate(_defaults(schema), schema, raise_on_error=True, ignore_required=True, allow_none_with_default=True)
    except ValidationError as error:
        text = f"Validation failed for work pool's job variable defaults: {error}"
        raise queue_refused(name, text) from error


def check_parameter_schema(parameters: Mapping[str, Any], schema: Mapping[str, Any], *, enforce: bool) -> None:
    """Raise `SpecError` for a deployment whose schema is none, or whose own parameters break it."""
    fault = _schema_fault(json.dumps(dict(parameters)), json.dumps(dict(schema)), enforce)
    if fault is not None:
        raise refused(f"body: Value error, {fault}")


@lru_cache(maxsize=_KNOWN_SCHEMAS)
def _schema_fault(parameters: str, schema: str, enforce: bool) -> str | None:
    """Remembered: the deployments of all queues have one schema, and to check it takes 40 ms."""
    try:
        is_valid_schema(json.loads(schema), preprocess=False)
        if enforce:
            validate(json.loads(parameters), json.loads(schema), raise_on_error=True, ignore_required=True)
    except ValueError as error:
        text = str(error).removeprefix("Invalid schema: ")
        return f"The provided schema is not a valid json schema. Schema error: {text}"
    except ValidationError as error:
        return str(error)
    return None


def check_size(parameters: Mapping[str, Any]) -> None:
    """Raise `SpecError` for parameters of a run beyond the server's limit."""
    size = len(json.dumps(parameters, separators=(",", ":")).encode())
    if size > _MAX_PARAMETER_BYTES:
        raise refused(
            "body.parameters: Value error, Flow run parameters must be less than"
            f" {_MAX_PARAMETER_BYTES:,} bytes when serialized (got {size:,} bytes)."
        )


def parameter_fault(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the parameters of a run under the schema of its deployment."""
    try:
        validate(dict(parameters), dict(schema), raise_on_error=True)
    except ValidationError as error:
        return str(error)
    return None


def variable_fault(template: Mapping[str, Any], variables: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the template variables of a run under the template of its work pool."""
    schema = dict(template.get("variables") or {})
    if not schema:
        return None
    try:
        is_valid_schema(schema, preprocess=False)
        given = {**_defaults(schema), **variables}
        validate(given, schema, raise_on_error=True, allow_none_with_default=True)
    except (ValidationError, ValueError) as error:
        return str(error)
    return None


def check_artifact_key(key: str) -> None:
    """Raise `SpecError` for a key that an artifact cannot have."""
    if not _ARTIFACT_KEY.match(key):
        text = "Artifact key must only contain lowercase letters, numbers, and dashes."
        raise refused(f"body.key: Value error, {text}")


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    return {name: each["default"] for name, each in properties.items() if "default" in each}


def _check_placeholders(name: str, template: Mapping[str, Any]) -> None:
    if not template:
        return
    if not template.get("job_configuration") or not template.get("variables"):
        raise queue_refused(name, f"body.base_job_template: Value error, {_KEYS}")
    used = {found.name for found in find_placeholders(template["job_configuration"])}
    unknown = used - set(template["variables"].get("properties") or {})
    if unknown:
        raise queue_refused(name, f"body.base_job_template: Value error, {_UNDECLARED}{' ,'.join(sorted(unknown))}.")
