"""Script of a Slurm job: a few lines of POSIX shell that run the job once, and write down how it ended.

Slurm may start a job twice: after its controller lost its state, or when somebody requeues it. So the script takes a
lock in the run's folder first, and a second start ends there. It writes its own end, whole or not at all, so that the
end is known when the controller has forgotten it. A stop reaches it as TERM with a file beside it that says the grace;
then it ends the process group of the job. Tasks that srun has started are on nodes of their own: Slurm signals them,
since srun itself would kill them at once. The environment comes from a file that only its owner may read, and which it
removes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

#: The folder of these files, in a run's folder.
FOLDER: Final = "slurm"
SCRIPT: Final = "job.sh"
ENVIRONMENT: Final = "environment"
LOCK: Final = "lock"
STARTED: Final = "started"
STOP: Final = "stop"
EXIT: Final = "exit.json"
NO_PROGRAM: Final = "no-program"
#: The exit code of the first task that failed.
FAILED: Final = "failed"
STDOUT: Final = "stdout"
STDERR: Final = "stderr"

#: The script's own exit codes: the node does not see the run's folder; the job was started before.
FOLDER_MISSING: Final = 71
SECOND_START: Final = 75

_SCRIPT: Final = """\
#!/bin/sh
# A job of prefect-launch. It runs once, however often Slurm starts this.
cd {folder} 2>/dev/null && [ -f {environment} ] || {{ [ -d {lock} ] && exit {second_start}; exit {folder_missing}; }}
mkdir {lock} 2>/dev/null || exit {second_start}
exec >>{stdout} 2>>{stderr} </dev/null

now() {{ date +%s.%N; }}
finish() {{
    printf '{{"exit_code": %s, "stopped": %s, "started_at": "%s", "ended_at": "%s"}}\\n' \\
        "$1" "$is_stopped" "$begun" "$(now)" > {exit}.part && mv -f {exit}.part {exit}
    exit "${{2:-$1}}"
}}
on_term() {{
    [ -f {stop} ] || return 0  # Slurm itself ends the job, and tells its processes.
    is_stopped=true
    [ -n "$job" ] || return 0
    if [ -z "$killer" ]; then
        setsid sh -c 'sleep "$1"; {kill}kill -s KILL -- "-$2"' - "$(cat {stop})" "$job" >/dev/null 2>&1 &
        killer=$!
    fi
    {term}
}}
is_stopped=false job='' killer='' begun=$(now)
trap on_term TERM
for name in HUP USR1 USR2; do
    # What sbatch --signal asks for reaches the script alone.
    trap "[ -z \"\\$job\" ] || kill -s $name -- \"-\\$job\" 2>/dev/null" "$name"
done
printf '%s %s\\n' "$(hostname)" "$$" > {started}.part && mv -f {started}.part {started}
if [ -f {stop} ]; then is_stopped=true; rm -f {environment}; finish null 143; fi
{before}
(
    . ./{environment}
    rm -f {environment}
    cd {cwd} || exit 126
    if ! command -v {program} >/dev/null 2>&1; then
        echo {program} > {here}/{no_program}
        echo {program}: not found >&2
        exit 127
    fi
    exec setsid {command}
) &
job=$!
[ "$is_stopped" = false ] || on_term  # It was told before the shell knew the job.
while :; do
    wait "$job"
    code=$?
    kill -0 "$job" 2>/dev/null && continue  # A signal has cut the waiting short,
    wait "$job"  # perhaps just as the job ended; 127: its end was waited for before.
    again=$?
    [ "$again" = 127 ] || code=$again
    break
done
[ ! -f {failed} ] || code=$(cat {failed})
kill -s KILL -- "-$job" 2>/dev/null  # What it left running.
[ -z "$killer" ] || kill -s KILL -- "-$killer" 2>/dev/null
finish "$code"
"""

#: The command gets TERM with all of its processes; it may not have a process group of its own yet.
_TERM: Final = 'kill -s TERM -- "-$job" 2>/dev/null || kill -s TERM "$job" 2>/dev/null'
#: The same for tasks, which are on their nodes under the job's first srun; before it starts any, there is srun alone.
_TERM_TASKS: Final = f"""\
if timeout 15 squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i 2>/dev/null | grep -q '[.]0$'; then
        timeout 15 scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null && return 0
    fi
    {_TERM}"""
#: srun says how its tasks ended, so it gets a moment more than they.
_KILL_TASKS: Final = 'timeout 15 scancel --signal=KILL "$SLURM_JOB_ID.0"; sleep 2; '

#: Each task of a job of several nodes runs this.
TASK: Final = "task.sh"
_TASK: Final = """\
#!/bin/sh
# One task of a job of prefect-launch on several nodes.
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" NODE_RANK="$SLURM_NODEID"
export WORLD_SIZE="$SLURM_NTASKS" NNODES="$SLURM_NNODES"
trap : TERM  # The command gets it too, and is waited for.
if [ -f {stop} ]; then (set -C; echo 143 > {failed}) 2>/dev/null; exit 0; fi
{command}
code=$?
# The first task that fails says how the job ended: srun ends the others, and would tell their ends.
[ "$code" = 0 ] || (set -C; echo "$code" > {failed}) 2>/dev/null
[ ! -f {stop} ] || exit 0  # Each task has the whole grace, also when another has ended with a code.
exit "$code"
"""
_MASTER: Final = """\
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT"""


#: Runs a command in the environment and the folder of a job's process on this node, by the variable that marks it. The
#: environment is read from the kernel, since its file is gone, and never stands on a command line.
_INSIDE: Final = r"""
mark=$1
shift
found=$(LC_ALL=C grep -lzxF -e "$mark" /proc/[0-9]*/environ 2>/dev/null | head -n 1)
[ -n "$found" ] || { echo "No process of the job is on the node $(hostname): it has ended." >&2; exit 1; }
eval "$(LC_ALL=C sed -zn "/^\(UID\|EUID\|PPID\|BASHOPTS\|SHELLOPTS\|BASH_VERSINFO\)=/d
s/'/'\\\\''/g
s/^\([A-Za-z_][A-Za-z0-9_]*\)=\(.*\)/export \1='\2'/p" "$found" | tr '\0' '\n')"
cd "$(readlink "${found%environ}cwd")" || exit 1
exec "$@"
"""


def inside_script(variable: str, command: Sequence[str]) -> list[str]:
    """Return what runs a command on a job's node as the job itself would run it.

    Args:
        variable: `NAME=value` that every process of the job has in its environment, and nothing else.
        command: a program and its arguments.
    """
    return ["sh", "-c", _INSIDE, "sh", variable, *command]


def job_script(folder: Path, cwd: Path, command: Sequence[str], *, srun: Sequence[str] = ()) -> str:
    """Return the script of a job.

    Args:
        folder: of its files; absolute.
        cwd: the folder that the job runs in.
        command: the job's program and arguments.
        srun: srun with its options, which starts `task_script` on each node; empty: the command is run itself.
    """
    run = [*srun, "sh", str(folder / TASK)] if srun else list(command)
    has_tasks = run[0] == "srun"
    return _SCRIPT.format(
        folder=shlex.quote(str(folder)),
        here=shlex.quote(str(folder)),
        cwd=shlex.quote(str(cwd)),
        program=shlex.quote(command[0]),
        command=shlex.join(run),
        before=_MASTER if srun else "",
        term=_TERM_TASKS if has_tasks else _TERM,
        kill=_KILL_TASKS if has_tasks else "",
        environment=ENVIRONMENT,
        lock=LOCK,
        stdout=STDOUT,
        stderr=STDERR,
        exit=EXIT,
        stop=STOP,
        started=STARTED,
        no_program=NO_PROGRAM,
        failed=FAILED,
        folder_missing=FOLDER_MISSING,
        second_start=SECOND_START,
    )


def task_script(folder: Path, command: Sequence[str]) -> str:
    """Return what each task of a job on several nodes runs.

    Args:
        folder: of the job's files; absolute.
        command: the job's program and arguments.
    """
    return _TASK.format(
        command=shlex.join(command), failed=shlex.quote(str(folder / FAILED)), stop=shlex.quote(str(folder / STOP))
    )


def environment_file(variables: Mapping[str, str]) -> str:
    """Return variables as a shell reads them.

    Args:
        variables: whose names a shell can have (`variables.check_names`).
    """
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
