"""Options of `local-container` under the names of `docker run`, and the container configuration made of a run's plan.

One table has all options: the option, where its value goes in the Docker Engine API, and how it is read. Any submitter
may set the reference's list; the rest is for the queue's owner, who may allow it to submitters too. `restart` is
refused to everybody: the agent restarts jobs. `rm` and `detach` are accepted and ignored: the agent always does both. A
`name` is kept as a label, since a container's own name must come from its item.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

from prefect_launch.core.units import parse_size
from prefect_launch.errors import NotFoundError, QueueError, SpecError, UnsafeSpecError, nearest_name
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners import option_values as values
from prefect_launch.runners.base import HostFolder, Labels, RunPlan, with_default_variables
from prefect_launch.runners.docker.engine import Image
from prefect_launch.runners.docker.files import CODE_DIR, OUTPUT_DIR
from prefect_launch.spec.option_names import normalise_options, read_env

_HOST = "HostConfig"
_Reader = Callable[[object], Any]

#: Options of submitters: where in the API's configuration, and the value's reader.
_SUBMITTER: dict[str, tuple[tuple[str, ...], _Reader]] = {
    "command": (("Cmd",), values.words),
    "cpu-period": ((_HOST, "CpuPeriod"), values.between(1_000, 1_000_000, 0)),
    "cpu-quota": ((_HOST, "CpuQuota"), values.between(1_000, 2**63 - 1, 0, -1)),
    "cpu-shares": ((_HOST, "CpuShares"), values.between(2, 262_144, 0)),
    "cpus": ((_HOST, "NanoCpus"), values.nano_cpus),
    "cpuset-cpus": ((_HOST, "CpusetCpus"), values.cpu_list),
    "cpuset-mems": ((_HOST, "CpusetMems"), values.cpu_list),
    "env": (("Env",), read_env),
    "gpus": ((_HOST, "DeviceRequests"), values.device_requests),
    "memory": ((_HOST, "Memory"), values.memory),
    "memory-reservation": ((_HOST, "MemoryReservation"), values.memory),
    "memory-swap": ((_HOST, "MemorySwap"), values.size_or_unlimited),
    "name": (("Labels", Labels.WANTED_NAME), values.container_name),
    "pids-limit": ((_HOST, "PidsLimit"), values.between(1, 4_194_304, 0, -1)),
    "platform": (("platform",), values.platform),
    "shm-size": ((_HOST, "ShmSize"), parse_size),
    "ulimit": ((_HOST, "Ulimits"), values.ulimits),
    "workdir": (("WorkingDir",), values.path),
}
_OWNER: dict[str, tuple[tuple[str, ...], _Reader]] = {
    "add-host": ((_HOST, "ExtraHosts"), values.hosts),
    "cap-add": ((_HOST, "CapAdd"), values.capabilities),
    "cap-drop": ((_HOST, "CapDrop"), values.capabilities),
    "device": ((_HOST, "Devices"), values.devices),
    "dns": ((_HOST, "Dns"), values.addresses),
    "entrypoint": (("Entrypoint",), values.words),
    "hostname": (("Hostname",), values.hostname),
    "init": ((_HOST, "Init"), values.boolean),
    "ipc": ((_HOST, "IpcMode"), values.ipc),
    "label": (("Labels",), values.pairs),
    "mount": ((_HOST, "Mounts"), values.mounts),
    "network": ((_HOST, "NetworkMode"), values.network),
    "privileged": ((_HOST, "Privileged"), values.boolean),
    "read-only": ((_HOST, "ReadonlyRootfs"), values.boolean),
    "runtime": ((_HOST, "Runtime"), values.runtime),
    "security-opt": ((_HOST, "SecurityOpt"), values.security_options),
    "tmpfs": ((_HOST, "Tmpfs"), values.tmpfs),
    "user": (("User",), values.user),
    "volume": ((_HOST, "Mounts"), values.volumes),
}
_TABLE = {**_SUBMITTER, **_OWNER}
_IGNORED = frozenset({"rm", "detach", "d"})

#: The reference's allow-list, as it is written there.
SUBMITTER_OPTIONS = frozenset({*_SUBMITTER, "cpu", "e", "m", "w"})
OPTIONS = SUBMITTER_OPTIONS | frozenset({*_OWNER, *_IGNORED, "h", "l", "net", "u", "v"})


def check_container_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their normal names, when every one is known and has a good value. The values stay as
    written.

    Raises:
        NotFoundError: for an option that is not known.
        SpecError: for a value of the wrong type or form, or an option that nobody may set.
    """
    checked: dict[str, Any] = {}
    for name, value in normalise_options(options).items():
        if name in _IGNORED:
            continue
        _read(name, value)
        checked[name] = value
    return checked


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, as the engine would.

    Args:
        options: as `check_container_options` returns them; all that a run has.

    Raises:
        SpecError: naming both.
    """
    read = {name: _read(name, value) for name, value in options.items()}
    most, swap, kept = (read.get(name, 0) for name in ("memory", "memory-swap", "memory-reservation"))
    if swap > 0 and not most:
        raise _unfit("memory-swap", "memory", "is all memory and swap together, and needs the option")
    if 0 < swap < most:
        raise _unfit("memory-swap", "memory", "must not be below")
    if most and kept > most:
        raise _unfit("memory-reservation", "memory", "must not be above")
    for other in ("cpu-period", "cpu-quota"):
        if read.get("cpus") and read.get(other):
            raise _unfit(other, "cpus", "says the same as")
    targets = [mount["Target"].rstrip("/") for name in ("mount", "volume") for mount in read.get(name, ())]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise SpecError(f"Two mounts of local-container have the target {twice!r}. Keep one of them.")


def _unfit(name: str, other: str, rule: str) -> SpecError:
    return SpecError(f"The option {name!r} of local-container {rule} {other!r}. Correct one of them.")


def apply_options(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a container's configuration with options put in; what the configuration says already wins.

    Args:
        config: of the Engine API's "create a container"; `Env` and `Labels` as mappings. It is not changed.
        options: as written; `platform` becomes a key of that name, which the API takes apart.

    Raises:
        LaunchError: as `check_container_options` does.
    """
    made = deepcopy(dict(config))
    for name, value in check_container_options(options).items():
        *folders, last = _TABLE[name][0]
        place = made
        for folder in folders:
            place = place.setdefault(folder, {})
        read = _read(name, value)
        if isinstance(place.get(last), dict):
            place[last] = {**read, **place[last]}
        elif last == "Mounts":  # Of `volume` and of `mount`.
            place[last] = [*place.get(last, ()), *read]
        else:
            place.setdefault(last, read)
    return made


def _read(name: str, value: object) -> Any:
    if name.startswith("restart"):
        raise SpecError(f"The option {name!r} of local-container cannot be set: a retry is a new item. Leave it out.")
    if name not in _TABLE:
        raise _unsupported(name)
    if isinstance(value, Mapping) and name not in ("env", "label"):
        raise SpecError(f"Invalid docker argument {name!r}: mapping values are not supported. Give text or a number.")
    try:
        return _TABLE[name][1](value)
    except ValueError as error:
        raise SpecError(f"Invalid resource_args.local-container option {name!r}: {value!r}: {error}.") from None


def _unsupported(name: str) -> NotFoundError:
    known = ", ".join(sorted(SUBMITTER_OPTIONS))
    near = nearest_name(name, _TABLE)
    hint = f" Did you mean {near!r}?" if near else ""
    return NotFoundError(
        f"Unsupported resource_args.local-container option {name!r}.{hint} Supported options are: {known};"
        f" and for the queue's owner: {', '.join(sorted(_OWNER))}."
    )


# --- the configuration of a container ---

#: Where a run's folder is, on the machine of the agent that made the container.
RUN_DIR_LABEL = "prefect-launch.run-dir"

#: A chatty job may write 2 GiB while no agent copies its log; beyond that its oldest lines are lost.
_LOG_CONFIG = {"Type": "local", "Config": {"max-size": "1g", "max-file": "2", "compress": "false"}}
#: Stands for a working directory that is not known; no path of an image has this name.
_OWN_DIR = "\0"
#: In which CPUs are counted, in microseconds: that of the engine.
_CPU_PERIOD = 100_000
_ROOT = ("", "0", "root", "0:0", "root:root")


def container_config(plan: RunPlan, image: Image) -> dict[str, Any]:
    """Return the body of the Docker Engine API's "create a container", and `platform` as a key of its own.

    What the plan says wins over options. A run as root gets an unnamed volume for its outputs, which costs nothing;
    another user gets the folder above as the volume, and a folder in it that it can write to. So does a run that gets
    outputs of other items, which are in that volume too.
    """
    options = dict(plan.options)
    env = with_default_variables({**options.get("env", {}), **plan.env}, OUTPUT_DIR)
    made = apply_options(
        {
            "Image": plan.image,
            "Labels": {**plan.labels, RUN_DIR_LABEL: str(plan.run_dir)},
            "Env": {**plan.env, OUTPUT_DIR_VARIABLE: OUTPUT_DIR},
            "HostConfig": {"LogConfig": _LOG_CONFIG},
            **({"Entrypoint": list(plan.command)} if plan.command else {}),
        },
        {**options, "env": env},
    )
    if "cpus" in plan.from_limits:
        # The engine refuses more CPUs than its machine has, but not the same as a quota.
        nano = made["HostConfig"].pop("NanoCpus")
        made["HostConfig"] |= {"CpuPeriod": _CPU_PERIOD, "CpuQuota": nano * _CPU_PERIOD // 10**9}
    made["Env"] = [f"{name}={value}" for name, value in made["Env"].items()]
    home = image.working_dir if plan.code_dir is None else posixpath.join(CODE_DIR, plan.build_context or "")
    base = posixpath.join("/", home, made.get("WorkingDir", ""))
    made["WorkingDir"] = posixpath.normpath(posixpath.join(base, plan.working_dir or ""))
    if plan.command:
        made["Cmd"] = list(plan.args)
    elif plan.args or "Cmd" in made:
        made["Cmd"] = [*made.get("Cmd", []), *plan.args]
    is_root = made.get("User", image.user) in _ROOT
    made["Volumes"] = {OUTPUT_DIR if is_root and not plan.input_files else posixpath.dirname(OUTPUT_DIR): {}}
    return made


def preview_config(plan: RunPlan) -> dict[str, Any]:
    """Return the same where the image cannot be looked at: its own user and working directory are not known."""
    config = container_config(plan, Image(id="", working_dir=_OWN_DIR))
    own = posixpath.join("/", _OWN_DIR)
    if str(config["WorkingDir"]).startswith(own):
        config["WorkingDir"] = f"the image's own{config['WorkingDir'].removeprefix(own)}"
    return config


def resolve_binds(host_config: Mapping[str, Any], folders: Iterable[HostFolder], *, is_local: bool) -> dict[str, Any]:
    """Return a `HostConfig` whose binds name the real paths of these folders. Blocks: call it in a thread.

    A job with a writable bind can leave a symbolic link in it, which the engine would follow as root, to any folder of
    the host. So a link below what the queue's owner wrote is refused.

    Args:
        host_config: of the Engine API's "create a container"; it is not changed.
        folders: of the host, that its binds name.
        is_local: whether the engine sees this machine's folders. Of another one, nothing can be looked at.

    Raises:
        UnsafeSpecError: when a part of a path is a link which the queue's owner did not write, or cannot be looked at
            though the owner has set no pattern and no enum.
        QueueError: when a folder is not there.
    """
    real = {}
    for folder in folders:
        if is_local:
            real[folder.path] = _real_path(folder)
        elif not folder.is_bounded:
            raise UnsafeSpecError(
                f"The folder {folder.path!r} is named by the item, and the Docker Engine is on another host, where no"
                " agent can see whether it is a link to another folder. The queue's owner can say by a pattern or an"
                " enum of the template variables which values there may be."
            )
    mounts = [
        {**mount, "Source": real.get(mount["Source"], mount["Source"])} if mount["Type"] == "bind" else mount
        for mount in host_config.get("Mounts", ())
    ]
    return {**host_config, **({"Mounts": mounts} if mounts else {})}


def _real_path(folder: HostFolder) -> str:
    below = os.path.realpath(folder.below)
    expected = os.path.normpath(os.path.join(below, os.path.relpath(folder.path, folder.below)))
    found = os.path.realpath(folder.path)
    if found != expected:
        raise UnsafeSpecError(
            f"The folder {folder.path!r} is not bound into the container: below {folder.below!r}, which the queue's"
            " owner wrote, a part of its path is a symbolic link, and a job may have made it. Name another folder; the"
            " queue's owner can bind the link's own folder by the queue's config."
        )
    if not os.path.lexists(found):
        raise QueueError(
            f"The queue's config mounts {folder.path!r}, which is not on the machine of the Docker Engine, or this"
            " agent cannot look at it. Make it there, or correct the queue's volume or mount: no folder of the host is"
            " made for it. An agent in a container needs the folder under the same path."
        )
    return found
