"""AWS on the loopback as a SageMaker agent needs it: training jobs with a life, their logs, their outputs.

It speaks the wire formats of SageMaker, CloudWatch Logs, STS and S3 to AWS's own client (`AWS_ENDPOINT_URL`). A job's
command runs here, as a process, with `/opt/ml` in a folder of its own; its lines become log events, and its outputs an
archive in S3. A test fills the account, loses answers, throttles, or changes a job by hand. What SageMaker's own limits
refuse is refused.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT: Final = "123456789012"
REGION: Final = "eu-west-1"
BUCKET: Final = "launch-outputs"
IMAGE: Final = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/train:1"
ROLE: Final = f"arn:aws:iam::{ACCOUNT}:role/sagemaker"
#: Of a queue: what every job must have.
QUEUE: Final[dict[str, Any]] = {
    "RoleArn": ROLE,
    "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/launch"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
}
_NAME: Final = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_TAG: Final = re.compile(r"[\w\s.:/=+@-]{0,256}")
_ENDED: Final = ("Completed", "Failed", "Stopped")
_NO_CAPACITY: Final = "Insufficient capacity error from EC2 while launching instances, retrying"


class AwsError(Exception):
    """What AWS answers instead of a result.

    Args:
        code: of the error.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Job:
    """A training job."""

    request: dict[str, Any]
    folder: Path
    status: str = "InProgress"
    secondary: str = "Starting"
    created: float = field(default_factory=time.time)
    modified: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    reason: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    #: Of each stream: the time of each event in milliseconds, when it may be read, and its text.
    streams: dict[str, list[tuple[int, float, str]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    @property
    def arn(self) -> str:
        return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{self.name}"

    def move(self, secondary: str, message: str = "", status: str | None = None) -> None:
        """Bring it to another secondary status."""
        self.secondary, self.status = secondary, status or self.status
        self.modified = max(time.time(), self.modified + 0.001)
        if secondary in ("Training",) and self.started is None:
            self.started = self.modified
        if self.status in _ENDED:
            self.ended = self.modified
        self.steps.append({"Status": secondary, "StartTime": self.modified, "StatusMessage": message or secondary})

    def write(self, stream: str, text: str, lag: float = 0.0) -> None:
        """Add an event to the log of a host, such as `algo-1`."""
        name = f"{self.name}/{stream}-{int(self.created)}"
        self.streams.setdefault(name, []).append((int(time.time() * 1000), time.time() + lag, text))

    def summary(self) -> dict[str, Any]:
        """Return what a list shows."""
        return {
            "TrainingJobName": self.name,
            "TrainingJobArn": self.arn,
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
            **({"TrainingEndTime": self.ended} if self.ended else {}),
        }

    def description(self) -> dict[str, Any]:
        """Return what a description shows."""
        own = {key: value for key, value in self.request.items() if key != "Tags"}
        return {
            **own,
            **self.summary(),
            "SecondaryStatusTransitions": self.steps,
            **({"TrainingStartTime": self.started} if self.started else {}),
            **({"FailureReason": self.reason} if self.reason else {}),
        }


class FakeAws:
    """The account.

    Args:
        folder: of the jobs.
        grace_seconds: what a job gets between TERM and KILL; SageMaker's is 120.

    Attributes:
        jobs: all that were made, by name.
        objects: what is in S3, by `bucket/key`.
        calls: how often each call was made.
        is_full: whether no job starts.
        lost_answers: so many of the next calls do their work, and their answers are lost.
        throttled: so many of the next calls are refused.
        is_away: whether nothing answers.
        runs_jobs: whether a job's command runs; else a test moves it.
        log_lag: how long an event takes to be read, in seconds.
        refusal: the next job is refused with it.
        s3_refusal: every call of S3 is refused with it.
        is_cut: whether S3 breaks off in the midst of an object.
    """

    def __init__(self, folder: Path, *, grace_seconds: float = 1.0) -> None:
        self.folder = folder
        self.grace_seconds = grace_seconds
        self.jobs: dict[str, Job] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.is_full = False
        self.lost_answers = 0
        self.throttled = 0
        self.is_away = False
        self.runs_jobs = True
        self.log_lag = 0.0
        self.page_size = 100
        self.refusal: AwsError | None = None
        self.s3_refusal: AwsError | None = None
        self.is_cut = False
        self._tokens = itertools.count(1)
        self._token_life = 0
        self._lock = threading.RLock()

    # --- what a test does ---

    def free(self) -> None:
        """Let what waits start."""
        with self._lock:
            self.is_full = False
            for job in self.jobs.values():
                if job.status == "InProgress" and job.started is None and job.process is None:
                    self._start(job)

    def expire_tokens(self) -> None:
        """Let all tokens of logs expire, as they do in a day."""
        self._token_life += 1

    def close(self) -> None:
        """Kill what still runs."""
        for job in self.jobs.values():
            _kill(job, signal.SIGKILL)

    # --- SageMaker ---

    def create_training_job(self, given: dict[str, Any]) -> dict[str, Any]:
        """Make a job, and start it if there is room."""
        with self._lock:
            if self.refusal is not None:
                refusal, self.refusal = self.refusal, None
                raise refusal
            _check(given)
            name = given["TrainingJobName"]
            if name in self.jobs:
                raise AwsError(
                    "ResourceInUse",
                    "Training job names must be unique within an AWS account and region, and a training job with this"
                    f" name already exists ({self.jobs[name].arn})",
                )
            folder = self.folder / name
            (folder / "output" / "data").mkdir(parents=True)
            (folder / "model").mkdir()
            job = self.jobs[name] = Job(given, folder)
            job.move("Starting", "Starting the training job")
            if self.is_full:
                job.move("Pending", _NO_CAPACITY)
            else:
                self._start(job)
            return {"TrainingJobArn": job.arn}

    def describe_training_job(self, given: dict[str, Any]) -> dict[str, Any]:
        """Describe a job."""
        return self._job(given).description()

    def stop_training_job(self, given: dict[str, Any]) -> dict[str, Any]:
        """Begin to stop a job."""
        with self._lock:
            job = self._job(given)
            if job.status != "InProgress":
                raise AwsError(
                    "ValidationException",
                    f"The request was rejected: the training job is in status {job.status}.",
                )
            job.move("Stopping", "Stopping the training job", "Stopping")
            if job.process is None:
                job.move("Stopped", "Training job stopped", "Stopped")
            else:
                _kill(job, signal.SIGTERM)
                timer = threading.Timer(self.grace_seconds, _kill, (job, signal.SIGKILL))
                timer.daemon = True
                timer.start()
        return {}

    def list_training_jobs(self, given: dict[str, Any]) -> dict[str, Any]:
        """List jobs, a page of them."""
        with self._lock:
            found = [
                job
                for job in self.jobs.values()
                if given.get("NameContains", "") in job.name
                and job.created > given.get("CreationTimeAfter", 0)
                and job.modified > given.get("LastModifiedTimeAfter", 0)
            ]
            found.sort(key=lambda job: job.created, reverse=given.get("SortOrder") == "Descending")
            start, size = int(given.get("NextToken", 0)), min(self.page_size, given.get("MaxResults", 10))
            more = {"NextToken": str(start + size)} if len(found) > start + size else {}
            return {"TrainingJobSummaries": [job.summary() for job in found[start : start + size]], **more}

    def list_tags(self, given: dict[str, Any]) -> dict[str, Any]:
        """List the tags of a job."""
        job = next(job for job in self.jobs.values() if job.arn == given["ResourceArn"])
        return {"Tags": job.request.get("Tags", [])}

    def _job(self, given: Mapping[str, Any]) -> Job:
        if given["TrainingJobName"] not in self.jobs:
            raise AwsError("ValidationException", "Requested resource not found.")
        return self.jobs[given["TrainingJobName"]]

    # --- CloudWatch Logs ---

    def describe_log_streams(self, given: dict[str, Any]) -> dict[str, Any]:
        """List streams, a page of them."""
        names = sorted(
            name for job in self.jobs.values() for name in job.streams if name.startswith(given["logStreamNamePrefix"])
        )
        if not names and not any(job.streams for job in self.jobs.values()):
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        start, size = int(given.get("nextToken", 0)), given["limit"]
        more = {"nextToken": str(start + size)} if len(names) > start + size else {}
        return {"logStreams": [{"logStreamName": name} for name in names[start : start + size]], **more}

    def get_log_events(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the events of a stream behind a token, or since a time."""
        name = given["logStreamName"]
        job = self.jobs.get(name.partition("/")[0])
        if job is None or name not in job.streams:
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
        events = job.streams[name]
        there = list(itertools.takewhile(lambda event: event[1] <= time.time(), events))
        start = next(
            (number for number, event in enumerate(there) if event[0] >= given.get("startTime", 0)), len(there)
        )
        if "nextToken" in given:
            life, _, position = given["nextToken"].removeprefix("f/").partition("-")
            if int(life) != self._token_life:
                raise AwsError("InvalidParameterException", "The specified nextToken is invalid.")
            start = int(position)
        page = there[start : start + min(self.page_size, given.get("limit", 10_000))]
        token = f"f/{self._token_life}-{start + len(page)}"
        return {
            "events": [{"timestamp": at, "ingestionTime": at, "message": text} for at, _, text in page],
            "nextForwardToken": token,
            "nextBackwardToken": token,
        }

    # --- a job's life ---

    def _start(self, job: Job) -> None:
        if not self.runs_jobs:
            return
        job.move("Downloading", "Downloading the training image")
        algorithm = job.request["AlgorithmSpecification"]
        command = [*algorithm.get("ContainerEntrypoint", ["true"]), *algorithm.get("ContainerArguments", [])]
        given = {name: value.replace("/opt/ml", str(job.folder)) for name, value in job.request["Environment"].items()}
        env = {"PATH": os.environ["PATH"], **given, "TRAINING_JOB_NAME": job.name}
        job.move("Training", "Training image download completed. Training in progress.")
        job.process = subprocess.Popen(
            command,
            env=env,
            cwd=job.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._follow, args=(job, job.process), daemon=True).start()

    def _follow(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            job.write("algo-1", line.decode("utf-8", "replace").removesuffix("\n"), self.log_lag)
        code = process.wait()
        with self._lock:
            if job.status in _ENDED:
                return
            job.move("Uploading", "Uploading generated training model")
            place = job.request["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://").rstrip("/")
            self.objects[f"{place}/{job.name}/output/output.tar.gz"] = _packed(job.folder / "output")
            if job.status == "Stopping":
                job.move("Stopped", "Training job stopped", "Stopped")
            elif code == 0:
                job.move("Completed", "Training job completed", "Completed")
            else:
                job.reason = f"AlgorithmError: , exit code: {code if code > 0 else 128 - code}"
                job.move("Failed", "Training job failed", "Failed")


def _packed(folder: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return packed.getvalue()


def _kill(job: Job, number: signal.Signals) -> None:
    if job.process is not None and job.process.poll() is None:
        os.killpg(job.process.pid, number)


def _check(given: Mapping[str, Any]) -> None:
    """Refuse what SageMaker's own limits refuse, which its client does not look at."""

    def refuse(what: str) -> None:
        raise AwsError("ValidationException", f"1 validation error detected: {what}")

    if not _NAME.fullmatch(given["TrainingJobName"]):
        refuse(f"Value '{given['TrainingJobName']}' at 'trainingJobName' failed to satisfy constraint")
    algorithm = given["AlgorithmSpecification"]
    for key in ("ContainerEntrypoint", "ContainerArguments"):
        words = algorithm.get(key, [""])
        if not 1 <= len(words) <= 100 or any(len(word) > 256 or "\n" in word for word in words):
            refuse(f"Value at 'algorithmSpecification.{key}' failed to satisfy constraint")
    variables = given.get("Environment", {})
    if len(variables) > 100 or any(len(text) > 512 for pair in variables.items() for text in pair):
        refuse("Map at 'environment' failed to satisfy constraint")
    tags = given.get("Tags", [])
    if len(tags) > 50 or not all(_TAG.fullmatch(tag["Value"]) for tag in tags):
        refuse("Value at 'tags' failed to satisfy constraint")
    if "StoppingCondition" not in given or "ResourceConfig" not in given:
        refuse("Stopping condition and resource config are required")


# --- the wire ---

_TARGETS: Final = {
    f"{service}.{''.join(word.capitalize() for word in name.split('_'))}": name
    for service, names in {
        "SageMaker": (
            *("create_training_job", "describe_training_job", "stop_training_job", "list_training_jobs", "list_tags"),
        ),
        "Logs_20140328": ("describe_log_streams", "get_log_events"),
    }.items()
    for name in names
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    aws: FakeAws

    def do_POST(self) -> None:
        """Answer a call of SageMaker, CloudWatch Logs or STS."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = _TARGETS.get(self.headers.get("X-Amz-Target", ""), "get_caller_identity")
        if self._fails(name):
            return
        if name == "get_caller_identity":
            arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/agent/box"
            self._answer(
                200,
                "<GetCallerIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><GetCallerIdentityResult>"
                f"<Arn>{arn}</Arn><UserId>U</UserId><Account>{ACCOUNT}</Account></GetCallerIdentityResult>"
                "<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>".encode(),
                "text/xml",
            )
            return
        try:
            answer, status = getattr(self.aws, name)(json.loads(body)), 200
        except AwsError as error:
            answer, status = {"__type": error.code, "message": str(error)}, 400
        self._answer(status, json.dumps(answer).encode())

    def do_GET(self) -> None:
        """Answer a call of S3."""
        url = urlsplit(self.path)
        if self._fails("get_object"):
            return
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if (refusal := self.aws.s3_refusal) is not None:
            self._answer(403, f"<Error><Code>{refusal.code}</Code><Message>{refusal}</Message></Error>".encode())
        elif not key:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            rows = "".join(
                f"<Contents><Key>{escape(name.partition('/')[2])}</Key><Size>{len(data)}</Size></Contents>"
                for name, data in sorted(self.aws.objects.items())
                if name.startswith(f"{bucket}/{prefix}")
            )
            self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())
        elif (data := self.aws.objects.get(f"{bucket}/{key}")) is not None:
            self._answer(200, data, "binary/octet-stream")
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>There is no such key.</Message></Error>")

    def _fails(self, name: str) -> bool:
        """Whether the call fails as the test has asked for; what is lost has done its work."""
        aws = self.aws
        aws.calls[name] += 1
        if aws.is_away:
            self.close_connection = True
            return True
        if aws.throttled > 0:
            aws.throttled -= 1
            self._answer(400, json.dumps({"__type": "ThrottlingException", "message": "Rate exceeded"}).encode())
            return True
        return False

    def _answer(self, status: int, body: bytes, kind: str = "application/x-amz-json-1.1") -> None:
        if self.aws.lost_answers > 0:
            self.aws.lost_answers -= 1
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.aws.is_cut and kind == "binary/octet-stream":
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def fake_aws(folder: Path, port: int = 0) -> Iterator[tuple[FakeAws, str]]:
    """Run the account on a port of the loopback; gives it, and its address."""
    aws = FakeAws(folder)
    handler = type("Handler", (_Handler,), {"aws": aws})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield aws, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        aws.close()


def aws_environment(address: str) -> dict[str, str]:
    """Return the variables by which AWS's own client comes to it."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def main() -> None:
    """Run it by hand, until it is interrupted."""
    parser = argparse.ArgumentParser(description="SageMaker on the loopback; jobs run as processes of this machine.")
    parser.add_argument("--port", type=int, default=0)
    folder = Path(tempfile.mkdtemp(prefix="sagemaker-"))
    try:
        with fake_aws(folder, parser.parse_args().port) as (_, address):
            lines = "".join(f"export {name}={value}\n" for name, value in aws_environment(address).items())
            print(lines, end="", flush=True)  # noqa: T201 - for the shell that is to use it
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
