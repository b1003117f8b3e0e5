"""The programs of the tests' Kubernetes: etcd from Debian, the others built by `scripts/kubernetes/build.sh`."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_BUILD = Path(__file__).parents[2] / "scripts" / "kubernetes" / "build.sh"


class KubernetesMissingError(RuntimeError):
    """No cluster is named, and none can be started here."""


@dataclass(frozen=True)
class Programs:
    """Where the programs are."""

    etcd: str
    folder: Path

    @classmethod
    def find(cls, *, build: bool) -> Programs:
        """Find them; waits for a build that runs.

        Args:
            build: Build them when they are not there.

        Raises:
            KubernetesMissingError: They are not there; the message says what to do.
        """
        etcd = shutil.which("etcd")
        if os.geteuid() or not etcd:
            raise KubernetesMissingError(
                "a Kubernetes of the tests' own needs root and etcd: run scripts/setup-test-machine.sh as root,"
                " or set PREFECT_LAUNCH_TEST_KUBECONFIG"
            )
        built = subprocess.run([_BUILD, *([] if build else ["--wait"])], capture_output=True, text=True, check=False)
        if built.returncode:
            raise KubernetesMissingError(built.stderr.strip())
        where = subprocess.run([_BUILD, "--where"], capture_output=True, text=True, check=True).stdout.strip()
        return cls(etcd, Path(where))

    def path(self, name: str) -> str:
        """Path of one of them."""
        return str(self.folder / name)
