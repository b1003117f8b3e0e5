"""Fields of a custom job as a queue may write them, in snake_case or in camelCase, each with its rule.

`spec` has those of a `CustomJob` of Google's Python client, and `run` the arguments of its `submit`, as users of W&B's
reference have them. What is read has the names of the REST API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from prefect_launch.core.masking import without_users
from prefect_launch.core.units import as_text, parse_duration
from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.runners import option_values as values
from prefect_launch.runners.remote.vertex.labels import is_own_key

PATH: Final = "resource_args.vertex"
Reader = Callable[[object], Any]
_SHOWN_CHARS: Final = 200
_UPPER: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")
_BUCKET: Final = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(/[^\r\n]*)?", re.ASCII)
_LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
_LABEL_VALUE: Final = re.compile(r"[\w-]{0,63}")
_MOST_SECONDS: Final = 365 * 86_400
_STRATEGIES: Final = ("STANDARD", "ON_DEMAND", "LOW_COST", "SPOT", "FLEX_START")


def text(value: object) -> str:
    """A text of one line that is not empty."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("it must be a text of one line")
    return value


def words(value: object) -> list[str]:
    """A list of texts."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("it must be a list of texts")
    return ["" if one == "" else as_text(one) for one in value]


def _value(value: object) -> str:
    """The value of a variable."""
    return "" if value == "" else as_text(value)


def bucket_path(value: object) -> str:
    """A bucket of Cloud Storage, or a folder in one."""
    found = str(value).rstrip("/") if isinstance(value, str) else ""
    match = _BUCKET.fullmatch(found)
    if match is None or ".." in (match[2] or "").split("/"):
        raise ValueError("it must be a bucket or a folder in one, such as gs://my-bucket/launch")
    return found


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping of labels to their values")
    for key, one in value.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"its key {key!r} must be at most 63 small letters, digits, '_' and '-', a letter first")
        if is_own_key(key):
            raise ValueError(f"its key {key!r} is prefect-launch's own: choose another")
        if not isinstance(one, str) or not _LABEL_VALUE.fullmatch(one) or one != one.lower():
            raise ValueError(f"its value {one!r} of {key!r} must be at most 63 small letters, digits, '_' and '-'")
    return dict(value)


def _seconds(value: object) -> str:
    found = parse_duration(value)
    if found is None or not 0 < found <= _MOST_SECONDS:
        raise ValueError("it must be a duration above 0, such as 3600 or '2h'")
    return f"{found:.9f}".rstrip("0").rstrip(".") + "s"


def _strategy(value: object) -> str:
    if value not in _STRATEGIES:
        raise ValueError(f"it must be one of {', '.join(_STRATEGIES)}")
    return str(value)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping, as the REST API takes it")
    return dict(value)


_count: Final = values.between(1, 10_000)

_MACHINE: Final[Mapping[str, Any]] = {
    "machine_type": text,
    "accelerator_type": text,
    "accelerator_count": values.between(0, 1_024),
    "gpu_partition_size": text,
    "tpu_topology": text,
    "reservation_affinity": {"reservation_affinity_type": text, "key": text, "values": words},
}
_CONTAINER: Final[Mapping[str, Any]] = {
    "image_uri": text,
    "command": words,
    "args": words,
    "env": [{"name": text, "value": _value}],
}
_POOL: Final[Mapping[str, Any]] = {
    "machine_spec": _MACHINE,
    "replica_count": _count,
    "container_spec": _CONTAINER,
    "disk_spec": {"boot_disk_type": text, "boot_disk_size_gb": values.between(1, 65_536)},
    "nfs_mounts": [{"server": text, "path": text, "mount_point": text}],
}
SPEC: Final[Mapping[str, Any]] = {
    "worker_pool_specs": [_POOL],
    "staging_bucket": bucket_path,
    "base_output_dir": bucket_path,
    "labels": _labels,
    "encryption_spec_key_name": text,
    "persistent_resource_id": text,
}
RUN: Final[Mapping[str, Any]] = {
    "service_account": text,
    "network": text,
    "reserved_ip_ranges": words,
    "timeout": _seconds,
    "restart_job_on_worker_restart": values.boolean,
    "disable_retries": values.boolean,
    "scheduling_strategy": _strategy,
    "max_wait_duration": _seconds,
    "enable_web_access": values.boolean,
    "enable_dashboard_access": values.boolean,
    "tensorboard": text,
    "experiment": text,
    "experiment_run": text,
    "persistent_resource_id": text,
    "psc_interface_config": _mapping,
}
#: What is the agent's, each with where it is said.
OF_AGENT: Final = {
    "project": "it is the agent's: clouds.gcp.project in the agent's config",
    "location": "it is the agent's: clouds.gcp.region in the agent's config",
    "credentials": "who the agent is stands in clouds.gcp of the agent's config",
}
#: What users of the reference may have, each with what to do instead.
_REFUSED: Final = {
    **{name: f"{where}. Leave it out" for name, where in OF_AGENT.items()},
    "display_name": "a job's name is that of its run, by which an agent finds it again. Leave it out, or set labels",
    "python_package_spec": "jobs run in containers. Give a container_spec",
    "sync": "an agent never waits in a call. Leave it out",
    "create_request_timeout": "the agent asks again by itself. Leave it out",
}


def read_fields(value: object, fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a mapping with the REST API's names, when every field is known and has a good value.

    Args:
        value: as it was written.
        fields: by their names in snake_case: a reader, a mapping of more fields, or a list of one of them.
        path: of the value, for messages.

    Raises:
        SpecError: naming the field, its value and the rule.
        NotFoundError: for a field that is not known.
    """
    if not isinstance(value, Mapping):
        raise refusal(path, value, "it must be a mapping of fields")
    found: dict[str, Any] = {}
    for written, one in value.items():
        name = snake_case(written)
        if name not in fields:
            if name in _REFUSED:
                raise refusal(f"{path}.{written}", one, _REFUSED[name])
            raise unknown_name("field", written, fields, where=f" in {path}")
        if camel_case(name) in found:
            raise refusal(f"{path}.{written}", one, "it is given twice, in two spellings. Keep one of them")
        found[camel_case(name)] = _read(one, fields[name], f"{path}.{written}")
    return found


def _read(value: object, field: Any, path: str) -> Any:
    if isinstance(field, Mapping):
        return read_fields(value, field, path)
    if isinstance(field, list):
        if not isinstance(value, (list, tuple)):
            raise refusal(path, value, "it must be a list")
        return [read_fields(one, field[0], f"{path}[{index}]") for index, one in enumerate(value)]
    try:
        return field(value)
    except (ValueError, SpecError) as error:
        raise refusal(path, value, str(error).rstrip(".")) from None


def refusal(path: str, value: object, rule: str) -> SpecError:
    """Return the error of a field: where it stands, its value, and the rule."""
    shown = without_users(repr(value))
    shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"
    return SpecError(f"{path} is {shown}: {rule}.")


def snake_case(name: object) -> str:
    """Return a field's name in snake_case, however it is written."""
    return _UPPER.sub(r"_\1", str(name)).replace("-", "_").lower()


def camel_case(name: str) -> str:
    """Return a field's name as the REST API has it."""
    first, *others = name.split("_")
    return first + "".join(one.capitalize() for one in others)
