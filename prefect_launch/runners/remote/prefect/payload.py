"""What a child flow run is handed: its plan and code as inputs of the flow run; and the outputs that it hands back.

Inputs are the server's own store of texts by key, one for each flow run: whatever worker starts the run can read them,
and no folder is shared. Code is cut into chunks below a key made of its content, and the plan comes last, so a run that
has a plan is whole. Secrets are named in it; their values are read where the job runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import posixpath
import re
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio

from prefect_launch.core.filesystem import make_folders
from prefect_launch.core.output_limits import LeftOut, OutputLimits, Selection
from prefect_launch.core.units import format_size
from prefect_launch.errors import InfrastructureError, SpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE, OUTPUTS_FILE
from prefect_launch.inputs.vendoring import vendored_files
from prefect_launch.runners.base import RunPlan, with_default_variables
from prefect_launch.runners.remote.code import merge_overrides, write_tar
from prefect_launch.runners.remote.prefect.command import PLAN_KEY, plan_text
from prefect_launch.runners.remote.prefect.wrapper import CODE_KEY, OUTPUTS_KEY

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

#: Packed; the server's database holds it until the job has started.
MAX_CODE_BYTES: Final = 8 * 1024**2
#: Of all the files that a job leaves; the server's database holds them until the agent has fetched them.
MAX_OUTPUT_BYTES: Final = 8 * 1024**2
_CHUNK_BYTES: Final = 384 * 1024
#: What a job gets between TERM and KILL when its flow run is cancelled by somebody else.
_GRACE_SECONDS: Final = 30.0
#: How long a wrapper must hear from the server that its flow run is not there, before it ends its job.
GONE_SECONDS: Final = 60.0
_WANDB_DIR: Final = "WANDB_DIR"


async def put_payload(server: Server, child: UUID, plan: RunPlan, look_seconds: float) -> None:
    """Hand a child flow run what its wrapper needs; doing it again changes nothing.

    Args:
        server: the Prefect server.
        child: id of the flow run.
        plan: of the run.
        look_seconds: how often the wrapper looks first whether it is to end.

    Raises:
        SpecError: when the code is too large, or the environment holds a secret's value.
        ItemGoneError: when the flow run is gone.
    """
    made = wrapper_plan(plan, look_seconds)
    if plan.code_dir is not None:
        packed = await anyio.to_thread.run_sync(pack_code, plan)
        key = f"{CODE_KEY}-{hashlib.sha256(packed).hexdigest()[:12]}"
        starts = range(0, len(packed), _CHUNK_BYTES)
        for number, start in enumerate(starts):
            text = base64.b64encode(packed[start : start + _CHUNK_BYTES]).decode()
            await server.put_input(child, f"{key}-{number}", text)
        made |= {"code": len(starts), "code_key": key}
    await server.put_input(child, PLAN_KEY, plan_text(made))


def wrapper_plan(plan: RunPlan, look_seconds: float) -> dict[str, Any]:
    """Return the wrapper's input, without the code.

    Raises:
        SpecError: when the environment holds a secret's value.
    """
    given = plan.options.get("env", {})
    of_plan = dict(plan.env)
    for name, value in plan.env.items():
        if plan.mask.text(value) != value:
            if name not in given:
                raise SpecError(
                    f"The variable {name} holds a secret of the agent's, which must not go to the Prefect server with"
                    " an item for another work pool. Keep it in a Secret block, and have the queue's owner name that:"
                    f" env={{{name}: {{{{ prefect.blocks.secret.NAME }}}}}}."
                )
            del of_plan[name]
    parts = {name: secret_parts(text, plan.secret_marks) for name, text in given.items() if name not in of_plan}
    plain = {name: "".join(part["text"] for part in found) for name, found in parts.items() if _is_plain(found)}
    env = with_default_variables({**plain, **of_plan}, "")
    if not env.get(_WANDB_DIR):
        env.pop(_WANDB_DIR, None)  # The wrapper knows the folder.
    env.pop(OUTPUT_DIR_VARIABLE, None)
    folder = (
        posixpath.normpath(posixpath.join(plan.build_context or "", plan.working_dir or "")) if plan.code_dir else ""
    )
    return {
        "command": [*plan.command, *plan.args],
        "env": env,
        "secret_env": {name: found for name, found in parts.items() if not _is_plain(found)},
        "code": 0,
        "working_dir": folder if plan.code_dir else plan.working_dir,
        "grace_seconds": _GRACE_SECONDS if plan.stop_seconds is None else plan.stop_seconds,
        "look_seconds": look_seconds,
        "gone_seconds": GONE_SECONDS,
        "output_variable": OUTPUT_DIR_VARIABLE,
        "results_file": OUTPUTS_FILE,
        "output_bytes": min(MAX_OUTPUT_BYTES, plan.output_limits.max_bytes or MAX_OUTPUT_BYTES),
    }


def secret_parts(text: str, marks: Mapping[str, str]) -> list[dict[str, str]]:
    """Cut a text at the stand-ins for secrets: parts with `text`, and parts with the name of a `secret`."""
    if not marks:
        return [{"text": text}]
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    return [{"secret": marks[piece]} if piece in marks else {"text": piece} for piece in pieces if piece] or [
        {"text": ""}
    ]


def _is_plain(parts: list[dict[str, str]]) -> bool:
    return all("text" in part for part in parts)


def pack_code(plan: RunPlan) -> bytes:
    """Pack a job's code, with the run's values merged into its config files, and the library for its inputs.

    Raises:
        SpecError: when it is too large.
    """
    assert plan.code_dir is not None
    merge_overrides(plan)
    library = {f".{name}": text.encode() for name, text in vendored_files().items() if not name.endswith(".pth")}
    packed = io.BytesIO()
    write_tar(plan.code_dir, packed, extra=library)
    if packed.tell() > MAX_CODE_BYTES:
        raise SpecError(
            f"The job's code packs to {format_size(packed.tell())}, and over the Prefect server an item for another"
            f" work pool takes at most {format_size(MAX_CODE_BYTES)}. Put the code into an image, or leave data out of"
            " it (.launchignore)."
        )
    return packed.getvalue()


# --- outputs ---


async def fetch_outputs(
    server: Server, child: UUID, end: Mapping[str, Any], target: Path, limits: OutputLimits
) -> LeftOut:
    """Copy what a job has left to a folder; return what is not kept.

    Args:
        server: the Prefect server.
        child: id of the flow run.
        end: what its wrapper has said of the end.
        target: the folder.
        limits: of what is kept.

    Raises:
        InfrastructureError: when they are not on the server any more, or are no archive.
    """
    selection = Selection(limits)
    for name, why in end.get("left_out") or ():
        selection.leave_out(str(name), str(why))
    texts = [text async for text in _chunks(server, child, int(end.get("outputs") or 0))]
    if texts:
        packed = base64.b64decode("".join(texts))
        await anyio.to_thread.run_sync(_unpack, packed, target, selection)
    return selection.left_out


async def _chunks(server: Server, child: UUID, count: int) -> AsyncIterator[str]:
    for number in range(count):
        text = await server.read_input(child, f"{OUTPUTS_KEY}-{number}")
        if text is None:
            raise InfrastructureError("they are not on the Prefect server any more")
        yield text


def _unpack(packed: bytes, target: Path, selection: Selection) -> None:
    root = target.resolve()
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
            for member in tar:
                path = (root / member.name).resolve()
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or root not in path.parents:
                    selection.leave_out(member.name, "it is no regular file of the outputs folder")
                elif selection.takes(member.name, member.size):
                    make_folders(path.parent)
                    path.write_bytes(content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InfrastructureError(f"they cannot be unpacked: {error}") from error


async def delete_payload(server: Server, child: UUID, end: Mapping[str, Any]) -> None:
    """Delete what the server still holds for an ended run: outputs, code that nobody has fetched, and its plan."""
    for number in range(int(end.get("outputs") or 0)):
        await server.delete_input(child, f"{OUTPUTS_KEY}-{number}")
    text = await server.read_input(child, PLAN_KEY)
    plan = json.loads(text) if text is not None else {}
    for number in range(plan.get("code", 0)):
        await server.delete_input(child, f"{plan['code_key']}-{number}")
    await server.delete_input(child, PLAN_KEY)  # The last: it says what else there is.
