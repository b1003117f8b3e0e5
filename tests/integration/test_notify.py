"""Notifications on a real server: its automation calls a webhook of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from typer.testing import CliRunner

from prefect_launch.cli.main import app
from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, until


@contextmanager
def webhook() -> Iterator[tuple[str, list[str]]]:
    """Receive the texts that are sent to an address."""
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def notify(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["notify", *arguments])
    assert result.exit_code == 0, result.exception
    return str(json.loads(result.stdout)["id"])


def test_server_tells_of_items_that_fail_and_of_those_that_wait_for_too_long(site: Site) -> None:
    with webhook() as (url, received):
        block = CustomWebhookNotificationBlock(
            name=site.name, url=url, json_data={"text": "{{subject}} | {{body}}"}, allow_private_urls=True
        )
        block.save(site.name, overwrite=True)
        given = ["--block", f"custom-webhook/{site.name}", "-q", site.name, "--json"]
        made = notify("--on", "failed,stuck", "--stuck-after", "10s", *given)
        assert notify("--on", "failed,stuck", "--stuck-after", "10s", *given) == made

        site.job("exit 3")
        (stuck,) = site.add()
        until(lambda: bool(received), seconds=DEADLINE_SECONDS)
        with running(site.agent()):
            until(lambda: len(received) > 1, seconds=DEADLINE_SECONDS)

    waits, failed = received
    assert waits.startswith(f"{stuck.name}: Queued | {stuck.name} of the queue {site.name} is Queued")
    assert failed.startswith(
        f"{stuck.name}: Failed | {stuck.name} of the queue {site.name} is Failed: [run] The job ended"
    )
    assert failed.endswith(stuck.url)
