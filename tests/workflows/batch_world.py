"""A worker for batched updates on a real wire server; run as a program, it is one that can be killed.

``python -m tests.workflows.batch_world TARGET QUEUE URI``
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from activities.batches import Batches
from activities.locks import Locks
from activities.stage import Stage
from tests.workflows.bare_stage import bare_stage
from tests.workflows.probe import World
from worker.activities import activity_methods
from workflows import policy
from workflows.batched_update import BatchedUpdate
from workflows.model import RunbookResult
from workflows.plugin import RunbooksPlugin
from workflows.stage_lock import StageLock


class Resolver:
    """Every reference leads to the one server."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def resolve(self, ref: str) -> str:
        return self._uri


class BatchWorld(World):
    """Stages by name, each with the database of that name; 'production-...' is production."""

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(
            name,
            {
                "production": name.startswith("production-"),
                "database": {"uri": "env:NONE", "name": name},
                "gates": self.gates,
            },
        )


@workflow.defn(name="ShortHistories")
class ShortHistories(BatchedUpdate):
    """A batched update that thinks its history long very soon."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    @property
    def history_is_long(self) -> bool:
        return workflow.info().get_current_history_length() > 35


def batches(uri: str) -> Batches:
    return Batches(Resolver(uri), None)  # type: ignore[arg-type]  # resolves as the real one does


@contextlib.asynccontextmanager
async def updating(
    client: Client, queue: str, world: BatchWorld, system: Batches, sticky: timedelta = timedelta(seconds=10)
) -> AsyncIterator[None]:
    """A worker for batched updates. ``sticky``: how long the server waits for a dead worker that knows the run."""
    locks = Locks(client, queue)
    with ThreadPoolExecutor(16) as threads:
        async with Worker(
            client,
            task_queue=queue,
            workflows=[ShortHistories, *(cls for cls in (BatchedUpdate, StageLock) if cls not in registered())],
            activities=[
                world.resolve,
                world.announce,
                world.write,
                locks.request,
                locks.release,
                locks.is_running,
                *activity_methods(system),
            ],
            activity_executor=threads,
            sticky_queue_schedule_to_start_timeout=sticky,
        ):
            yield


def registered() -> tuple[type, ...]:
    """What comes with the client's plugin."""
    from workflows.catalog import WORKFLOWS

    return WORKFLOWS


async def serve(target: str, queue: str, uri: str) -> None:
    policy.BATCHES["heartbeat_timeout"] = timedelta(seconds=2)  # a dead worker is noticed sooner than in production
    client = await Client.connect(target, plugins=[RunbooksPlugin()])
    async with updating(client, queue, BatchWorld(), batches(uri), timedelta(seconds=1)):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:4]))
