"""The command `docker buildx` where the plugin is not to be had: answered by the BuildKit of the engine itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# What the plugin would refuse, or do elsewhere than on the engine, is refused here too.
STAND_IN = """#!/bin/sh
if [ "$1 $2" = "buildx version" ]; then echo "github.com/docker/buildx stand-in"; exit 0; fi
[ "$1 $2 $3" = "buildx build --load" ] || exec {program} "$@"
[ "$BUILDX_BUILDER" = default ] || {{ echo "ERROR: no such builder: $BUILDX_BUILDER"; exit 1; }}
shift 3
exec {program} build "$@"
"""


def with_buildx(folder: Path) -> str:
    """Return a PATH on which there is `docker buildx`; this machine's own when it has one.

    Args:
        folder: Where a stand-in is put.
    """
    path = os.environ.get("PATH", os.defpath)
    programs = [found for place in path.split(":") if (found := shutil.which("docker", path=place))]
    if any(
        subprocess.run([one, "buildx", "version"], capture_output=True, check=False).returncode == 0 for one in programs
    ):
        return path
    folder.mkdir()
    stand_in = folder / "docker"
    stand_in.write_text(STAND_IN.format(program=programs[-1]))
    stand_in.chmod(0o755)
    return f"{folder}:{path}"
