"""What a job or a submitter wrote gives no orders to the terminal of who looks at it."""

from __future__ import annotations

import json
import logging
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import TextIO
from uuid import UUID

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.cli.main import run
from prefect_launch.client.api import Api, use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.terminal import guarded_terminal, line, printable, sanitize_log_lines
from prefect_launch.queues.session import Session
from prefect_launch.server.values import ItemDraft, LogRecord, State
from prefect_launch.testing import InMemoryApi

#: What each does to a terminal that obeys it, and what is left of it.
ORDERS = {
    "title": ("a\x1b]0;owned\x07b", "ab"),
    "clipboard": ("a\x1b]52;c;cm0gLXJm\x1b\\b", "ab"),
    "link": ("\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "click"),
    "cursor": ("a\x1b[2J\x1b[1;1Hb\x1b[?25l\x1b[6n", "ab"),
    "c1": ("a\x9b2Jb\x9d0;owned\x9cc\x85", "abc\ufffd"),
    "dcs": ('a\x1bP$q"p\x1b\\b', "ab"),
    "apc": ("a\x1b_payload\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\b", "ab"),
    "reset": ("a\x1bc\x1b(0\x1b7b", "ab"),
    "unfinished": ("a\x1b]0;never ends", "a0;never ends"),
    "alone": ("a\x1b", "a\u241b"),
    "nested": ("\x1b\x1b[0m[2J", "\u241b[2J"),
    "bell and back": ("rm -rf /\x08\x08\x07\x7f\0", "rm -rf /\u2408\u2408\u2407\u2421\u2400"),
    "overwritten": ("curl evil|sh\rall is well", "curl evil|sh\u240dall is well"),
}


@pytest.mark.parametrize(("written", "shown"), ORDERS.values(), ids=list(ORDERS))
def test_order_to_a_terminal_is_left_out_or_shown(written: str, shown: str) -> None:
    assert printable(written) == shown
    assert printable(written, colours=True).replace("\x1b[0m", "") == shown


def test_ordinary_text_stays_as_it_is() -> None:
    text = "line one\tof two\nline [bold]two[/bold] ä漢🙂 \\x1b[31m\r\n"
    assert printable(text) == text


def test_colours_of_a_line_end_with_it() -> None:
    assert line("\x1b[1;31mred\x1b[2K") == "\x1b[1;31mred\x1b[0m"
    assert printable("\x1b[1;31mred\x1b[38;5;8mgrey") == "redgrey"
    assert line("plain") == "plain"


def test_megabytes_of_unfinished_sequences_take_no_longer_than_text() -> None:
    began = time.process_time()
    for start in ("\x1b]", "\x9d", "\x1b[", "\x90", "\x1bP0", "\x1b "):
        printable(start * 200_000)
    assert time.process_time() - began < 10.0  # 0.6 s when nothing else runs


@pytest.fixture
def screen() -> Iterator[Callable[[Callable[[], object]], str]]:
    """Runs something with a terminal as its standard output and error, and returns what the terminal was sent."""
    master, slave = pty.openpty()

    def show(work: Callable[[], object]) -> str:
        # Line by line, so that the terminal's small buffer is read before it is full.
        sent: list[str] = []

        class Terminal:
            encoding, errors = "utf-8", "strict"

            def write(self, text: str) -> int:
                sent.append(text)
                return len(text)

            def flush(self) -> None: ...

            def isatty(self) -> bool:
                return True

            def fileno(self) -> int:
                return slave

        terminal: TextIO = Terminal()  # type: ignore[assignment]
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = terminal, terminal
        try:
            work()
        finally:
            sys.stdout, sys.stderr = streams
        return "".join(sent)

    yield show
    os.close(master)
    os.close(slave)


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    api.create_run_queue("gpu", "local-container")
    with use_api(api):
        yield api


def hostile(api: InMemoryApi) -> QueuedRun:
    """An item that failed, in whose name, log, message, inputs and outputs are orders to a terminal."""
    (plain,) = launch_add_many([{"docker": {"docker_image": "busybox:1"}}], "gpu", api=api)
    orders = "".join(written for written, _ in ORDERS.values())

    async def make(session: Session) -> UUID:
        like = await session.server.read_item(UUID(plain.id))
        assert like is not None
        assert like.deployment_id is not None
        parameters = {"docker": {"docker_image": "b:1"}, "overrides": {"run_config": {"x": orders.replace("\0", "")}}}
        item = await session.server.create_item(
            like.deployment_id, ItemDraft(name=f"evil{orders}", parameters=parameters, idempotency_key="evil")
        )
        assert item is not None
        now = datetime.now(timezone.utc)
        records = [LogRecord(name="job", message=f"\x1b[32mgreen {orders}", timestamp=now)]
        await session.server.write_logs(item.id, records)
        for state in (ItemState.CLAIMED, ItemState.RUNNING):
            await session.server.propose(item.id, State.of(state))
        await session.server.propose(item.id, State(type=StateType.FAILED, name="Failed", message=f"why {orders}"))
        return item.id

    return api.queued_run(api.call(make))


@pytest.mark.parametrize("command", [["item", "logs"], ["item", "logs", "-f"], ["item", "show"], ["item", "list"]])
def test_command_line_sends_a_terminal_no_order_of_anybody_else(
    api: InMemoryApi, screen: Callable[[Callable[[], object]], str], command: list[str]
) -> None:
    item = hostile(api)
    sent = screen(lambda: run([*command, *([] if command[-1] == "list" else [item.id])]))
    assert printable(sent, colours=True) == sent
    assert "\x1b]" not in sent
    assert "evil" in sent or "green" in sent


def test_json_on_a_terminal_is_the_same_json_and_gives_no_order(
    api: InMemoryApi, screen: Callable[[Callable[[], object]], str]
) -> None:
    item = hostile(api)
    sent = screen(lambda: run(["item", "logs", item.id, "--json"]))
    assert not [char for char in sent if (ord(char) < 32 and char != "\n") or 0x7F <= ord(char) < 0xA0]
    assert json.loads(sent)[0]["message"] == item.logs()[0].message


def test_log_that_goes_to_a_pipe_stays_byte_for_byte(api: InMemoryApi, capsys: pytest.CaptureFixture[str]) -> None:
    item = hostile(api)
    run(["item", "logs", item.id])
    assert capsys.readouterr().out == f"{item.logs()[0].message}\n"


def test_error_of_a_run_that_failed_quotes_its_log_without_orders(api: InMemoryApi) -> None:
    with pytest.raises(Exception, match="green") as caught:
        hostile(api).wait_until_finished()
    quoted = str(caught.value).partition("\n")[2]
    assert printable(quoted) == quoted


def test_traceback_on_a_terminal_gives_no_order(screen: Callable[[Callable[[], object]], str]) -> None:
    def work() -> None:
        with guarded_terminal():
            sys.stderr.write("\x1b]0;owned\x07hello\n")
            sys.stdout.writelines(["a\x1b[2J", "b\n"])

    assert screen(work) == "hello\nab\n"


def test_log_lines_of_child_loggers_give_no_order(caplog: pytest.LogCaptureFixture) -> None:
    sanitize_log_lines()
    logger = logging.getLogger("prefect_launch.queues.claim")
    logger.warning("%s claimed %s", "1a2b", "evil\x1b]0;owned\x07")
    logger.warning("100%")
    assert caplog.messages == ["1a2b claimed evil", "100%"]


def test_agent_made_in_python_sanitizes_its_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    LaunchAgent(Api(), {"queues": ["q"]})
    logging.getLogger("prefect_launch.agent.loop").warning("evil\x1b[2J")
    assert caplog.messages == ["evil"]
