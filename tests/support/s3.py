"""An S3 service on the loopback (moto's), and a Prefect storage block on a bucket in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import s3fs
from moto.server import ThreadedMotoServer
from prefect.filesystems import RemoteFileSystem


@contextmanager
def s3_service() -> Iterator[str]:
    """Run the service on a free port; gives its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(address: str) -> RemoteFileSystem:
    """Make a bucket and return the block that keeps files in it."""
    settings = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": address}}
    bucket = f"jobs-{uuid4().hex[:8]}"
    s3fs.S3FileSystem(**settings).mkdir(bucket)
    return RemoteFileSystem(basepath=f"s3://{bucket}", settings=settings)
