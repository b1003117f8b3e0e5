"""A Slurm cluster of the tests' own: Debian's programs on the loopback, two nodes on this machine, gone afterwards.

It has a munged, a controller and a daemon for each node, each on ports and in folders of its own; a cluster that this
machine already has is not touched. The nodes have four CPUs each, whatever the machine has, and two GPUs that are none.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import ChildProcess

START_SECONDS = 120.0
NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
#: What a node says it has.
CPUS, MEMORY_MB, GPUS = 4, 8000, 2
DEVICES = ("/dev/null", "/dev/zero")


class SlurmMissingError(RuntimeError):
    """No Slurm on this machine; `scripts/setup-test-machine.sh` installs it."""


class SlurmCluster:
    """A cluster in a temporary folder, started on construction.

    Attributes:
        config: path of its slurm.conf, as `SLURM_CONF` says it.
        folder: where all of it is.
    """

    def __init__(self) -> None:
        missing = [program for program in PROGRAMS if _program(program) is None]
        if missing:
            raise SlurmMissingError(f"no {', '.join(missing)} here: run scripts/setup-test-machine.sh")
        self.folder = Path(tempfile.mkdtemp(prefix="launch-test-slurm-"))
        self.folder.chmod(0o711)  # munged wants its socket where every user may reach it.
        self.config = self.folder / "slurm.conf"
        self._daemons: dict[str, ChildProcess] = {}
        self._write_files()
        try:
            self._start_all()
        except BaseException:
            self._end_daemons()
            raise

    # --- what a test does to it ---

    def command(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run a command of Slurm; return what it printed."""
        environment = {**os.environ, "SLURM_CONF": str(self.config)}
        done = subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start_controller(self) -> None:
        """Start the controller; it goes on from its saved state."""
        self._start("slurmctld", _found("slurmctld"), "-D", "-f", str(self.config))
        self._daemons["slurmctld"].wait_until(self._controller_answers, START_SECONDS)

    def kill_controller(self) -> None:
        """End the controller at once, as a crash would, once it has saved what it knows: it may take 5 s for that."""
        since = time.time()
        # A change, after which it saves all of its jobs.
        self.command("scancel", self.command("sbatch", "--parsable", "--hold", "--mem=1", "--wrap=true"))
        saved = self.folder / "state" / "job_state"
        self.until(lambda: saved.exists() and saved.stat().st_mtime > since, "saved state")
        self._daemons["slurmctld"].kill()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(f"slurmd-{node}", _found("slurmd"), "-D", "-N", node, "-f", str(self.config))

    def set_nodes(self, state: str) -> None:
        """Set the state of all nodes, such as "drain" or "resume"."""
        self.command("scontrol", "update", f"nodename={','.join(NODES)}", f"state={state}", "reason=test")

    def revive(self) -> None:
        """Cancel all jobs, and have all nodes idle again."""
        self.command("scancel", f"--user={getpass.getuser()}", check=False)
        self.until(lambda: not self.command("squeue", "--noheader", check=False), "no job")
        self.until(self._are_idle_again, "idle nodes")

    def until(self, look: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not look():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {seconds:g} s: {self.command('sinfo', '-N', '-l', check=False)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End all jobs and daemons, and remove the folder."""
        self.command("scancel", f"--user={getpass.getuser()}", check=False)
        try:
            self.until(lambda: not self.command("squeue", "--noheader", check=False), "empty queue", 30.0)
        finally:
            self._end_daemons()

    # --- inside ---

    def _start_all(self) -> None:
        self._start("munged", *self._munge())
        self._daemons["munged"].wait_until((self.folder / "munge.socket").exists, START_SECONDS)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self._daemons["slurmctld"].wait_until(self._nodes_are_idle, START_SECONDS)

    def _end_daemons(self) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, *command: str) -> None:
        environment = {**os.environ, "SLURM_CONF": str(self.config)}
        self._daemons[name] = ChildProcess(command, self.folder / f"{name}.out", environment=environment)

    def _controller_answers(self) -> bool:
        return "is UP" in self.command("scontrol", "ping", check=False)

    def _nodes_are_idle(self) -> bool:
        states = self.command("sinfo", "--noheader", "-N", "-p", "main", "-o", "%T", check=False).split()
        return states == ["idle"] * len(NODES)

    def _are_idle_again(self) -> bool:
        # A controller that was killed drains nodes by itself, also a moment later.
        if self._nodes_are_idle():
            return True
        for node in NODES:
            self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return False

    def _munge(self) -> list[str]:
        at = self.folder
        return [
            *(_found("munged"), "--foreground", f"--key-file={at}/munge.key", f"--socket={at}/munge.socket"),
            *(f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed"),
        ]

    def _write_files(self) -> None:
        at, user = self.folder, getpass.getuser()
        key = at / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        (at / "state").mkdir()
        nodes = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} CPUs={CPUS}"
            f" RealMemory={MEMORY_MB} Gres=gpu:{GPUS}"
            for node in NODES
        ]
        lines = [
            "ClusterName=tests",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={free_port()}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            f"AuthInfo=socket={at}/munge.socket",
            "CredType=cred/munge",
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",  # The loopback only.
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SlurmdParameters=config_overrides",  # More CPUs than the machine has.
            "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1",
            "GresTypes=gpu",
            "ReturnToService=2",
            f"StateSaveLocation={at}/state",
            f"SlurmdSpoolDir={at}/spool.%n",
            f"SlurmctldPidFile={at}/slurmctld.pid",
            f"SlurmdPidFile={at}/slurmd.%n.pid",
            f"SlurmctldLogFile={at}/slurmctld.log",
            f"SlurmdLogFile={at}/slurmd.%n.log",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/linux",
            "KillWait=3",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=CANCEL",
            "MinJobAge=300",
            "SlurmctldTimeout=10",
            "SlurmdTimeout=60",
            *nodes,
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
            "PartitionName=short Nodes=ALL MaxTime=5 State=UP",
            "PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP",  # Its jobs preempt others.
        ]
        self.config.write_text("\n".join(lines) + "\n")
        gres = [f"NodeName={node} Name=gpu File={device} Count=1" for node in NODES for device in DEVICES]
        (at / "gres.conf").write_text("\n".join(gres) + "\n")


def lossy_programs(folder: Path, lost: Path) -> Path:
    """Make programs that do what Slurm's do, and lose the answer once for each file in a folder, which they remove.

    Args:
        folder: for the programs; it goes to the front of the PATH.
        lost: with the files.
    """
    folder.mkdir()
    words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    for name in ("sbatch", "squeue", "scontrol"):
        path = folder / name
        path.write_text(
            f'#!/bin/sh\n{_found(name)} "$@"\ncode=$?\n'
            f'for one in {lost}/*; do rm "$one" 2>/dev/null && {{ echo "{words}" >&2; exit 1; }}; done\nexit $code\n'
        )
        path.chmod(0o755)
    return folder


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _found(name: str) -> str:
    found = _program(name)
    assert found is not None
    return found
