"""What an open connection remembers of queues, and when it is told better."""

from __future__ import annotations

from prefect_launch.queues.pool import create_queue
from prefect_launch.queues.session import Session
from prefect_launch.server.values import Pool
from prefect_launch.testing import InMemoryApi
from tests.support.queue_config import make_config


async def known_queue(session: Session) -> Pool:
    pool = await create_queue(session, "gpu", make_config("local-container", {"cpus": 1}, None))
    await session.queue("gpu")
    return pool


async def test_queue_is_as_its_pool_was_read_last() -> None:
    async with InMemoryApi().open() as session:
        await known_queue(session)
        other = make_config("local-container", {"cpus": 2}, None).to_template()
        await session.server.update_pool("gpu", base_job_template=other)
        pool = await session.server.read_pool("gpu")
        assert pool is not None

        session.note_pool(pool)

        assert (await session.queue("gpu")).config.resource_args == {"cpus": 2}


async def test_queue_that_was_made_again_is_read_again() -> None:
    async with InMemoryApi().open() as session:
        first = await known_queue(session)
        await session.server.delete_pool("gpu")
        config = make_config("local-process", None, None)
        pool = await session.server.create_pool(
            "gpu", base_job_template=config.to_template(), description=None, concurrency_limit=None
        )
        assert pool is not None
        assert pool.id != first.id

        session.note_pool(pool)
        queue = await session.queue("gpu")

        assert (queue.pool_id, queue.config.resource) == (pool.id, "local-process")
