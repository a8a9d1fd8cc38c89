"""A wait that another task cancels in the moment in which it is over."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer, Worker

from tests.histories import keep
from workflows import waiting


@workflow.defn(name="CancelledInTheSameMoment")
class Moment:
    """One task waits with a time limit; another waits for the same and cancels it."""

    def __init__(self) -> None:
        self.now = False

    @workflow.signal
    def begin(self) -> None:
        self.now = True

    @workflow.run
    async def run(self, how: str) -> str:
        wait: Callable[[], Awaitable[None]] = self.by_temporal if how == "temporal" else self.by_frame
        first = asyncio.create_task(self.waits(wait))
        await asyncio.sleep(0)  # so that it waits before the one that cancels it
        await workflow.wait_condition(lambda: self.now)
        first.cancel()
        return await first

    async def waits(self, wait: Callable[[], Awaitable[None]]) -> str:
        try:
            await wait()
        except asyncio.CancelledError:
            return "cancelled"
        return "went on"

    async def by_temporal(self) -> None:
        await workflow.wait_condition(lambda: self.now, timeout=timedelta(hours=1))

    async def by_frame(self) -> None:
        await waiting.until(lambda: self.now, at_most=timedelta(hours=1), summary="never")


@workflow.defn(name="CancelledInTheSameMoment")
class Mended(Moment):
    """The same under later code: all its waits are the frame's."""

    @workflow.run
    async def run(self, how: str) -> str:
        return await super().run("frame")


async def done(client: Client, how: str) -> WorkflowHandle[Any, str]:
    queue = f"waiting-{uuid.uuid4()}"
    async with Worker(client, task_queue=queue, workflows=[Moment], max_cached_workflows=0):
        handle = await client.start_workflow(Moment.run, how, id=queue, task_queue=queue)
        await handle.signal(Moment.begin)
        await asyncio.wait_for(handle.result(), 180)
    return handle


async def test_temporals_own_wait_takes_the_cancellation_for_nothing_before_python_312(client: Client) -> None:
    handle = await done(client, "temporal")
    assert await handle.result() == ("went on" if sys.version_info < (3, 12) else "cancelled")
    if sys.version_info < (3, 12):
        # A run that has gone through such a moment under earlier code goes on as it did.
        replayed = await Replayer(workflows=[Mended]).replay_workflow(await handle.fetch_history())
        assert replayed.replay_failure is None


async def test_the_frames_wait_ends_as_cancelled(client: Client) -> None:
    handle = await done(client, "frame")
    assert await handle.result() == "cancelled"
    await Replayer(workflows=[Moment]).replay_workflow(await handle.fetch_history())
    await keep(handle, "CancelledInTheSameMoment", "by-the-frame")
