"""Contract tests of runners: derive a test class from `RunnerContract` and give it a `world` fixture.

`RemoteRunnerContract` is for runners of clusters, on a `RemoteWorld`. What a resource cannot do, its runner's class
attributes say (`separates_streams`, `keeps_log_bytes`, `returns_files`); how slow it is, those of the test class.

A world makes runners of one kind on one machine, and plans whose command does what one of the texts below says (they
are shell scripts, so a real machine runs them as they are; a fake knows them by heart). Needs pytest with `asyncio_mode
= auto`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import anyio
import pytest

from prefect_launch.core.output_limits import OUTPUTS_FILE
from prefect_launch.errors import LaunchError, UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, Runner, RunPlan, RunState
from prefect_launch.runners.log_streams import parts
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.spec.item_outputs import ItemOutput

SUCCEED = "exit 0"
FAIL = "exit 3"
#: A child, since the first process of a container cannot kill itself.
KILL_ITSELF = "sh -c 'kill -9 $$'; exit $?"
ARGS = 'for arg in "$@"; do printf "[%s]\\n" "$arg"; done'
ENV = 'printf "[%s]\\n" "$ODD"'
LOG = "printf 'one\\n'; printf 'two\\n' >&2; printf 'b\\377d, no newline'"
OUTPUTS = 'mkdir "$LAUNCH_OUTPUT_DIR/deep"; printf \'{"accuracy": 0.9}\' > "$LAUNCH_OUTPUT_DIR/outputs.json";' + (
    ' printf hello > "$LAUNCH_OUTPUT_DIR/deep/file.txt"'
)
BESIDE = "mkdir kept; printf kept > kept/file.txt; printf lost > lost.txt"
INPUT = 'cat "$MODEL"; echo changed > "$MODEL"'
SLEEP = "sleep 60"
SLEEP_SHORTLY = "sleep 1; echo awake; exit 4"
TWO_PARTS = "echo before; sleep 1; echo after"
IGNORE_TERM = "trap '' TERM; echo deaf; while true; do sleep 0.1; done"
MISSING = "no-such-program"

#: What the programs above write.
ODD = "a b  'c' \"d\" $HOME `x` \\ ünï 漢字 \n second line"
ODD_ARGS = ("a b", "it's", '"quoted"', "$HOME", "*", "ünï 漢字", "", "--flag=x y", "back\\slash")


class World(Protocol):
    """A machine that runs of one kind are made on."""

    def runner(self) -> Runner:
        """Return a new runner, as an agent that has just started makes one."""
        ...

    def plan(self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> RunPlan:
        """Return a new plan, with a folder and labels of its own, whose command runs this script."""
        ...


class RemoteWorld(World, Protocol):
    """A cluster that runs of one kind are made on."""

    def fill(self) -> None:
        """Let no further job start."""
        ...

    def free(self) -> None:
        """Let what waits start."""
        ...

    def lose_answers(self, count: int) -> None:
        """Do the work of the next calls, and lose their answers."""
        ...


def _claimed(plan: RunPlan, claim: str, **changes: Any) -> RunPlan:
    """Return a plan of the same attempt under a claim, with a folder of its own, as an agent lays it out."""
    run_dir = plan.run_dir.parent / f"{plan.run_dir.name}-{claim}"
    run_dir.mkdir()
    labels = {**plan.labels, Labels.CLAIM: claim}
    return plan.model_copy(update={"run_dir": run_dir, "labels": labels, **changes})


def _kept(runner: Runner, log: bytes) -> bytes:
    """Return what a job wrote as its runner keeps it."""
    return log if runner.keeps_log_bytes else log.decode("utf-8", "replace").encode()


async def _ignore(reason: str) -> None:
    """Hear why a run waits."""


async def run(runner: Runner, plan: RunPlan) -> ExitStatus:
    """Run a plan from its preparation to its end."""
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    return await runner.watch(handle, plan)


class RunnerContract:
    """The contract of `prefect_launch.runners.base.Runner`.

    Attributes:
        limit_seconds: what a run may take to start, or to end by itself.
        stop_margin_seconds: what a stop may take beyond its grace: the goal is one second on a quiet machine, tests
            share theirs.
        short_seconds: how long the short jobs sleep: longer than it takes to look at them twice.
        tells_end_of_stop: whether the resource tells by which signal a job ended that was stopped.
        tells_exit_code: whether the resource tells with which exit code a job failed.
    """

    limit_seconds: ClassVar[float] = 30.0
    stop_margin_seconds: ClassVar[float] = 3.0
    short_seconds: ClassVar[int] = 1
    tells_end_of_stop: ClassVar[bool] = True
    tells_exit_code: ClassVar[bool] = True

    async def test_job_that_exits_with_zero_succeeds(self, world: World) -> None:
        end = await run(world.runner(), world.plan(SUCCEED))
        assert (end.exit_code, end.succeeded, end.signal, end.error) == (0, True, None, None)
        assert end.duration_seconds is not None
        assert end.duration_seconds < self.limit_seconds

    async def test_exit_code_of_a_failing_job_is_told(self, world: World) -> None:
        end = await run(world.runner(), world.plan(FAIL))
        assert (end.exit_code, end.succeeded, end.stopped) == (self._code(3), False, False)

    async def test_signal_that_ended_a_job_is_named(self, world: World) -> None:
        end = await run(world.runner(), world.plan(KILL_ITSELF))
        told = (137, "SIGKILL") if self.tells_exit_code else (None, None)
        assert (end.exit_code, end.signal, end.oom_killed, end.succeeded) == (*told, False, False)
        assert "SIGKILL" in end.describe() or not self.tells_exit_code

    async def test_arguments_arrive_exactly(self, world: World) -> None:
        plan = world.plan(ARGS, args=ODD_ARGS)
        await run(world.runner(), plan)
        assert plan.log_path.read_text(encoding="utf-8") == "".join(f"[{arg}]\n" for arg in ODD_ARGS)

    async def test_environment_arrives_exactly(self, world: World) -> None:
        plan = world.plan(ENV, env={"ODD": ODD})
        await run(world.runner(), plan)
        assert plan.log_path.read_text(encoding="utf-8") == f"[{ODD}]\n"

    async def test_log_is_whole_with_bytes_that_are_no_text_and_no_final_newline(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(LOG)
        await run(runner, plan)
        log, odd = self._log(runner, plan), _kept(runner, b"b\xffd, no newline")
        assert sorted(log.split(b"\n")) == sorted([b"one", b"two", odd]) or log in (
            b"one\n" + odd + b"two\n",  # Two streams: an engine may hand them on in another order.
            b"one\n" + odd + b"two",
        )

    async def test_standard_error_is_told_from_standard_output_in_one_log(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(LOG)
        await run(runner, plan)
        found = parts(str(plan.log_path), 0, self._log(runner, plan))
        errors = b"".join(piece for is_error, piece in found if is_error)
        assert errors == (b"two\n" if runner.separates_streams else b"")
        if runner.separates_streams:
            odd = _kept(runner, b"b\xffd, no newline")
            assert b"".join(piece for is_error, piece in found if not is_error) == b"one\n" + odd

    async def test_outputs_are_collected(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(OUTPUTS)
        end = await run(runner, plan)
        assert end.succeeded, plan.log_path.read_text(encoding="utf-8")
        assert (plan.output_dir / OUTPUTS_FILE).read_text(encoding="utf-8") == '{"accuracy": 0.9}'
        file = plan.output_dir / "deep" / "file.txt"
        assert file.exists() is runner.returns_files
        if runner.returns_files:
            assert file.read_text(encoding="utf-8") == "hello"

    async def test_file_beside_the_code_is_kept_by_its_pattern_and_else_told(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(BESIDE).model_copy(update={"keep": ("kept/**",)})
        if plan.code_dir is None or not runner.keeps_code_changes:
            return
        end = await run(runner, plan)
        assert (plan.output_dir / "kept" / "file.txt").read_text(encoding="utf-8") == "kept"
        assert (end.code_changes.named, end.warnings) == (("lost.txt",), ())

    async def test_output_of_another_item_is_read_where_the_resource_shows_it(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(INPUT)
        wanted, shown_at = ItemOutput(item=plan.item_id, path="deep/model.pt"), runner.input_dir(plan.run_dir)
        if shown_at is None:
            return
        (plan.input_dir / wanted.place).parent.mkdir(parents=True)
        (plan.input_dir / wanted.place).write_text("weights\n")
        given = {"input_files": (wanted,), "env": {**plan.env, "MODEL": f"{shown_at}/{wanted.place}"}}
        end = await run(runner, plan.model_copy(update=given))
        assert end.succeeded
        assert plan.log_path.read_bytes() == b"weights\n"

    async def test_program_that_is_not_there_fails_as_in_a_shell(self, world: World) -> None:
        end = await run(world.runner(), world.plan(MISSING))
        assert (end.exit_code, end.succeeded) == (self._code(127), False)
        assert MISSING in end.describe()

    async def test_silent_job_is_stopped_within_its_grace(self, world: World) -> None:
        await self._stop_is_seen(world, SLEEP, grace_seconds=2.0)

    async def test_job_that_ignores_term_is_killed_after_its_grace(self, world: World) -> None:
        end = await self._stop_is_seen(world, IGNORE_TERM, grace_seconds=1.0, until=b"deaf\n")
        assert end.signal == ("SIGKILL" if self.tells_end_of_stop else None)

    async def test_stopping_what_has_ended_changes_nothing(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(FAIL)
        handle = await self._start(runner, plan)
        await runner.watch(handle, plan)
        await runner.stop(handle, 5.0)
        assert (await runner.watch(handle, plan)).exit_code == self._code(3)

    async def test_run_that_was_stopped_before_its_start_never_runs(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(SUCCEED)
        await runner.prepare(plan)
        handle = await runner.create(plan)
        await runner.stop(handle, 1.0)
        await runner.start(handle)
        end = await runner.watch(handle, plan)
        assert (end.succeeded, end.stopped) == (False, True)

    async def test_new_runner_finds_a_run_by_its_labels_and_watches_it(self, world: World) -> None:
        plan = world.plan(self._short(SLEEP_SHORTLY, world))
        first = world.runner()
        handle = await self._running(first, plan)
        await first.aclose()
        second = world.runner()
        [found] = await second.find({Labels.ITEM: plan.item_id})
        assert (found.handle, found.state) == (handle, RunState.RUNNING)
        assert found.run_dir in (None, plan.run_dir)
        assert found.labels.items() >= plan.labels.items()
        self._go_on(world)
        end = await second.watch(found.handle, plan)
        assert end.exit_code == self._code(4)
        assert plan.log_path.read_bytes() == b"awake\n"
        assert (await second.find({Labels.ITEM: plan.item_id}))[0].state is RunState.EXITED
        assert await second.find({Labels.ITEM: "another"}) == []

    async def test_watch_that_was_cut_off_goes_on_with_no_gap_and_no_repeat(self, world: World) -> None:
        plan = world.plan(self._short(SLEEP_SHORTLY, world))
        first = world.runner()
        handle = await self._start(first, plan)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(first.watch(handle, plan), 0.3)
        await first.aclose()
        self._go_on(world)
        assert (await world.runner().watch(handle, plan)).exit_code == self._code(4)
        assert plan.log_path.read_bytes() == b"awake\n"

    async def test_log_that_another_watch_had_begun_goes_on_where_that_was_cut_off(self, world: World) -> None:
        plan = world.plan(self._short(TWO_PARTS, world))
        first = world.runner()
        handle = await self._start(first, plan)
        watching: asyncio.Task[Any] = asyncio.create_task(first.watch(handle, plan))
        await self._until_logged(plan, b"before\n")
        watching.cancel()
        await asyncio.wait({watching})
        await first.aclose()
        self._go_on(world)
        assert (await world.runner().watch(handle, plan)).succeeded
        assert plan.log_path.read_bytes() == b"before\nafter\n"

    async def test_creating_twice_makes_one(self, world: World) -> None:
        plan = world.plan(SUCCEED)
        runner = world.runner()
        await runner.prepare(plan)
        assert await runner.create(plan) == await world.runner().create(plan)
        [found] = await runner.find({Labels.ITEM: plan.item_id})
        assert found.state is RunState.CREATED

    async def test_creating_again_what_has_run_does_not_run_it_again(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(LOG)
        handle = await self._start(runner, plan)
        await runner.watch(handle, plan)
        assert await self._start(world.runner(), plan) == handle
        await runner.watch(handle, plan)
        assert plan.log_path.read_bytes().count(b"one") == 1

    @pytest.mark.parametrize("started", [False, True])
    async def test_what_another_claim_made_of_the_same_attempt_is_stopped_and_removed(
        self, world: World, started: bool
    ) -> None:
        lost, runner = world.runner(), world.runner()
        old = _claimed(world.plan(SLEEP), "lost")
        await lost.prepare(old)
        late = await lost.create(old)
        if started:
            await lost.start(late)
        new = _claimed(old, "new", command=world.plan(self._short(SLEEP_SHORTLY, world)).command)
        handle = await self._start(runner, new)
        [found] = await runner.find({Labels.ITEM: old.item_id})
        assert (found.handle, found.labels[Labels.CLAIM]) == (handle, "new")
        self._go_on(world)
        assert (await runner.watch(handle, new)).exit_code == self._code(4)
        assert new.log_path.read_bytes() == b"awake\n"

    async def test_starting_twice_runs_once(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(LOG)
        handle = await self._start(runner, plan)
        await runner.start(handle)
        await runner.watch(handle, plan)
        await world.runner().start(handle)
        await runner.watch(handle, plan)
        assert plan.log_path.read_bytes().count(b"one") == 1

    async def test_run_that_ended_unseen_is_watched_to_its_end(self, world: World) -> None:
        plan = world.plan(FAIL)
        handle = await self._start(world.runner(), plan)
        await asyncio.sleep(1.0)
        assert (await world.runner().watch(handle, plan)).exit_code == self._code(3)

    async def test_removing_twice_removes_once(self, world: World) -> None:
        runner, plan = world.runner(), world.plan(SUCCEED)
        handle = await self._start(runner, plan)
        await runner.watch(handle, plan)
        await runner.remove(handle)
        await runner.remove(handle)
        assert await runner.find({Labels.ITEM: plan.item_id}) == []
        assert plan.log_path.exists()

    async def _start(self, runner: Runner, plan: RunPlan) -> str:
        await runner.prepare(plan)
        handle = await runner.create(plan)
        await runner.start(handle)
        return handle

    async def _running(self, runner: Runner, plan: RunPlan) -> str:
        handle = await self._start(runner, plan)
        await asyncio.wait_for(runner.wait_running(handle, _ignore), self.limit_seconds)
        return handle

    async def _until_logged(self, plan: RunPlan, text: bytes) -> None:
        due = time.monotonic() + self.limit_seconds
        while not (plan.log_path.exists() and plan.log_path.read_bytes().startswith(text)):
            assert time.monotonic() < due, f"{text!r} is not in the log"
            await asyncio.sleep(0.02)

    async def _stop_is_seen(self, world: World, script: str, grace_seconds: float, *, until: bytes = b"") -> ExitStatus:
        runner, plan = world.runner(), world.plan(script)
        # Where the grace is decided at the submission, it is this one.
        plan = plan.model_copy(update={"stop_seconds": grace_seconds})
        handle = await self._running(runner, plan)
        watching: asyncio.Task[Any] = asyncio.create_task(runner.watch(handle, plan))
        await self._until_logged(plan, until)
        begun = time.monotonic()
        await runner.stop(handle, grace_seconds)
        assert time.monotonic() - begun < grace_seconds + self.stop_margin_seconds
        end: ExitStatus = await asyncio.wait_for(watching, self.limit_seconds)
        assert (end.stopped, end.succeeded) == (True, False)
        return end

    def _code(self, code: int) -> int | None:
        """Return what is told of a failing job's exit code."""
        return code if self.tells_exit_code else None

    def _short(self, script: str, world: World) -> str:
        return script.replace("sleep 1;", self._pause(world))

    def _pause(self, world: World) -> str:
        """Return the command by which a job waits until `_go_on` is called; by default it sleeps for long enough."""
        return f"sleep {self.short_seconds};"

    def _go_on(self, world: World) -> None:
        """Let the jobs that wait continue; those that sleep do so by themselves."""

    @staticmethod
    def _log(runner: Runner, plan: RunPlan) -> bytes:
        log = plan.log_path.read_bytes()
        return log if runner.keeps_log_bytes else log.removesuffix(b"\n")


class ExecContract:
    """The contract of `Runner.exec_plan`, on a real machine: it gives a command to execute."""

    async def test_command_runs_in_a_run_with_its_environment_and_folder_and_gives_its_exit_code(
        self, world: World
    ) -> None:
        runner, plan = world.runner(), world.plan(SLEEP, env={"ODD": ODD})
        await runner.prepare(plan)
        handle = await runner.create(plan)
        await runner.start(handle)
        await runner.wait_running(handle, _ignore)
        where = "" if plan.code_dir is None else '; printf "%s" "$PWD"'
        command = ["sh", "-c", f'cat; printf "%s" "$ODD"{where}; exit 7']
        inside = await world.runner().exec_plan(handle, command, has_terminal=False)
        done = await anyio.run_process(
            inside.argv, input=b"piped ", env=inside.env, cwd=inside.cwd, stderr=None, check=False
        )
        folder = "" if plan.code_dir is None else plan.code_dir.resolve()
        assert (done.returncode, done.stdout.decode()) == (7, f"piped {ODD}{folder}")
        await runner.stop(handle, 1.0)
        await runner.watch(handle, plan)
        with pytest.raises(LaunchError, match="ended"):
            await runner.exec_plan(handle, command, has_terminal=False)
        await runner.remove(handle)


class RemoteRunnerContract(RunnerContract):
    """The contract of `prefect_launch.runners.remote.base.RemoteRunner`: what it promises besides.

    Attributes:
        starts_at_once: whether a run that nothing keeps from starting is never seen to wait.
    """

    starts_at_once: ClassVar[bool] = True

    async def test_run_that_the_cluster_cannot_start_yet_waits_there_with_its_reason(self, world: RemoteWorld) -> None:
        world.fill()
        runner, plan, reasons = world.runner(), world.plan(LOG), asyncio.Queue[str]()
        handle = await self._start(runner, plan)
        waiting: asyncio.Task[None] = asyncio.create_task(runner.wait_running(handle, reasons.put))
        reason = ""
        while not reason:  # A system may need a moment to know why.
            reason = await asyncio.wait_for(reasons.get(), self.limit_seconds)
        [found] = await world.runner().find({Labels.ITEM: plan.item_id})
        assert (found.handle, found.state) == (handle, RunState.SUBMITTED)
        assert not waiting.done()
        world.free()
        await asyncio.wait_for(waiting, self.limit_seconds)
        assert (await runner.watch(handle, plan)).succeeded

    async def test_run_that_runs_at_once_does_not_wait(self, world: RemoteWorld) -> None:
        runner, plan, reasons = world.runner(), world.plan(self._short(SLEEP_SHORTLY, world)), asyncio.Queue[str]()
        handle = await self._start(runner, plan)
        await asyncio.wait_for(runner.wait_running(handle, reasons.put), self.limit_seconds)
        assert reasons.empty() or not self.starts_at_once
        await runner.stop(handle, 1.0)

    async def test_run_that_waits_in_the_cluster_is_stopped_and_never_runs(self, world: RemoteWorld) -> None:
        world.fill()
        runner, plan = world.runner(), world.plan(LOG)
        handle = await self._start(runner, plan)
        await runner.stop(handle, 1.0)
        world.free()
        end = await runner.watch(handle, plan)
        assert (end.stopped, end.succeeded) == (True, False)
        assert plan.log_path.read_bytes() == b""

    async def test_submission_whose_answer_was_lost_is_made_once(self, world: RemoteWorld) -> None:
        runner, plan = world.runner(), world.plan(LOG)
        await runner.prepare(plan)
        handle = None
        world.lose_answers(1)
        while handle is None:
            try:
                handle = await runner.create(plan)
                await runner.start(handle)
            except UnreachableError:
                handle = None
        assert (await runner.watch(handle, plan)).succeeded
        assert len(await runner.find({Labels.ITEM: plan.item_id})) == 1
        assert plan.log_path.read_bytes().count(b"one") == 1

    async def test_watch_goes_on_when_answers_are_lost(self, world: RemoteWorld) -> None:
        runner, plan = world.runner(), world.plan(self._short(TWO_PARTS, world))
        handle = await self._start(runner, plan)
        world.lose_answers(5)
        watching: asyncio.Task[Any] = asyncio.create_task(runner.watch(handle, plan))
        await self._until_logged(plan, b"before\n")
        self._go_on(world)
        end = await watching
        assert (end.exit_code, end.log_complete) == (0, True)
        assert plan.log_path.read_bytes() == b"before\nafter\n"

    async def test_stop_that_a_new_runner_asks_for_is_told_as_a_stop(self, world: RemoteWorld) -> None:
        plan = world.plan(SLEEP)
        handle = await self._start(world.runner(), plan)
        await world.runner().stop(handle, 1.0)
        assert (await world.runner().watch(handle, plan)).stopped

    async def test_run_of_a_new_claim_is_not_taken_for_stopped_as_that_of_the_old_one_was(
        self, world: RemoteWorld
    ) -> None:
        old = _claimed(world.plan(SLEEP), "old")
        handle = await self._start(world.runner(), old)
        runner = self._remote(world.runner())
        await runner.stop(handle, 1.0)
        await runner.delete(RunHandle.parse(handle).job)  # By hand, so that the runner does not hear of it.
        new = _claimed(old, "new", command=world.plan(self._short(SLEEP_SHORTLY, world)).command)
        self._go_on(world)
        end = await run(world.runner(), new)
        assert (end.exit_code, end.stopped) == (self._code(4), False)

    async def test_late_calls_of_an_older_claim_leave_the_run_of_the_newer_one_alone(self, world: RemoteWorld) -> None:
        lost, runner = world.runner(), world.runner()
        old = _claimed(world.plan(SLEEP), "lost")
        late = await self._start(lost, old)
        new = _claimed(old, "new", command=world.plan(self._short(TWO_PARTS, world)).command)
        handle = await self._start(runner, new)
        await lost.stop(late, 0.0)
        await lost.remove(late)
        await lost.start(late)
        [found] = await runner.find({Labels.ITEM: old.item_id})
        assert (found.handle, found.labels[Labels.CLAIM]) == (handle, "new")
        assert (await lost.watch(late, old)).exit_code != 0  # An engine may still know that it was killed.
        self._go_on(world)
        end = await runner.watch(handle, new)
        assert (end.exit_code, end.stopped) == (0, False)
        assert new.log_path.read_bytes() == b"before\nafter\n"

    async def test_job_that_polls_do_not_show_yet_is_stopped(self, world: RemoteWorld) -> None:
        runner, plan = self._remote(world.runner()), world.plan(SLEEP)
        handle = await self._start(runner, plan)
        await runner.stop(handle, 0.0)
        await asyncio.sleep(runner.lag_seconds)  # By then each poll shows what runs.
        assert [one.state for one in await runner.find({Labels.ITEM: plan.item_id})] in ([], [RunState.EXITED])

    @staticmethod
    def _remote(runner: Runner) -> RemoteRunner:
        assert isinstance(runner, RemoteRunner)
        return runner
