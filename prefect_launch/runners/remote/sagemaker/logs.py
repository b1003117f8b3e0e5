"""Log of a training job in CloudWatch: one stream of each host, followed by the token behind the last event.

A token lasts 24 hours. Beside it stands the time of the last event, and how many of that time were read, so that an
agent that was away for longer reads on by the time.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from prefect_launch.clouds.aws import aws_errors
from prefect_launch.runners.remote.jobs import LogPart
from prefect_launch.runners.remote.sagemaker.jobs import AwsClients, error_code

GROUP: Final = "/aws/sagemaker/TrainingJobs"
#: So many streams a page.
_PAGE: Final = 50


class _Place(BaseModel):
    """Up to where a stream was read.

    Attributes:
        token: behind the last event that was read; None: nothing was read.
        at: the time of that event, in milliseconds.
        seen: how many events of that time were read.
    """

    model_config = ConfigDict(frozen=True)

    token: str | None = None
    at: int = 0
    seen: int = 0

    def behind(self, events: list[Mapping[str, Any]], token: str) -> _Place:
        """Return the place behind some events."""
        if not events:
            return self.model_copy(update={"token": token})
        at = max(self.at, *(int(one["timestamp"]) for one in events))
        seen = sum(one["timestamp"] == at for one in events) + (self.seen if at == self.at else 0)
        return _Place(token=token, at=at, seen=seen)


async def check_logs(clients: AwsClients) -> None:
    """Check that logs of training jobs can be read.

    Raises:
        LaunchError: when they cannot.
    """
    client = await clients.get("logs")
    streams = partial(client.describe_log_streams, logStreamNamePrefix="launch-", limit=1)
    events = partial(client.get_log_events, logStreamName="launch-/algo-1")  # Of no job.
    for right, call in (("logs:DescribeLogStreams", streams), ("logs:GetLogEvents", events)):
        with aws_errors(f"logs of training jobs ({right})"):
            try:
                await call(logGroupName=GROUP)
            except Exception as error:
                if error_code(error) != "ResourceNotFoundException":
                    raise


class JobLog:
    """The log of one training job.

    Args:
        clients: of AWS.
        name: of the job.
        hosts: how many instances it runs on.
        after: the position of the last part that was kept; None: the whole log.
    """

    def __init__(self, clients: AwsClients, name: str, hosts: int, after: str | None) -> None:
        self._clients = clients
        self._name = name
        self._hosts = hosts
        self._places = {stream: _Place(**one) for stream, one in json.loads(after or "{}").items()}

    @property
    def position(self) -> str:
        """Up to where it was read."""
        return json.dumps({stream: place.model_dump(exclude_defaults=True) for stream, place in self._places.items()})

    async def read(self) -> AsyncIterator[LogPart]:
        """Yield what the streams hold by now, each part from one stream."""
        if len(self._places) < self._hosts:
            for stream in await self._streams():
                self._places.setdefault(stream, _Place())
        for stream in sorted(self._places):
            async for part in self._read(stream):
                yield part

    async def _streams(self) -> list[str]:
        client = await self._clients.get("logs")
        found: list[str] = []
        token: dict[str, str] = {}
        with aws_errors("the log streams of a training job (logs:DescribeLogStreams)"):
            while True:
                try:
                    page = await client.describe_log_streams(
                        logGroupName=GROUP, logStreamNamePrefix=f"{self._name}/", limit=_PAGE, **token
                    )
                except Exception as error:
                    if error_code(error) == "ResourceNotFoundException":
                        return []  # No job of the account has written a log yet.
                    raise
                found += [one["logStreamName"] for one in page["logStreams"]]
                if not page.get("nextToken"):
                    return found
                token = {"nextToken": page["nextToken"]}

    async def _read(self, stream: str) -> AsyncIterator[LogPart]:
        while True:
            place = self._places[stream]
            events, token = await self._events(stream, place)
            self._places[stream] = place.behind(events, token)
            if events:
                yield LogPart(b"".join(self._line(stream, one) for one in events), self.position)
            if token == place.token:
                return

    async def _events(self, stream: str, place: _Place) -> tuple[list[Mapping[str, Any]], str]:
        client = await self._clients.get("logs")
        given = {"logGroupName": GROUP, "logStreamName": stream, "startFromHead": True}
        with aws_errors("the log of a training job (logs:GetLogEvents)"):
            try:
                page = await client.get_log_events(**given, **({"nextToken": place.token} if place.token else {}))
                return page["events"], page["nextForwardToken"]
            except Exception as error:
                if place.token is None or error_code(error) != "InvalidParameterException":
                    raise
            page = await client.get_log_events(**given, startTime=place.at)
        events, seen = [], place.seen
        for one in page["events"]:
            if one["timestamp"] == place.at and seen:
                seen -= 1
            else:
                events.append(one)
        return events, page["nextForwardToken"]

    def _line(self, stream: str, event: Mapping[str, Any]) -> bytes:
        # The stream's name is "JOB/algo-1-1700000000".
        host = f"{'-'.join(stream.rpartition('/')[2].split('-')[:2])}: " if self._hosts > 1 else ""
        return f"{host}{event['message']}\n".encode("utf-8", "replace")
