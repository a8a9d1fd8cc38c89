"""A task that is cancelled in the moment in which its wait is over, or in which a run below it starts."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer, Worker

from tests.histories import keep
from tests.workflows.probe import Outer, World, begin, failure, until, working
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


async def test_an_abort_while_a_run_below_is_being_started_is_heard(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK spends it on the start; the run below, which is closing when it hears of it, ends well."""
    starts, sent, aborts, closes = (threading.Event() for _ in range(4))
    run_child, abort = Outer.run_child, Outer._abort

    async def held_start(self: Outer, *args: Any, **more: Any) -> Any:
        starts.set()
        assert sent.wait(8)
        return await run_child(self, *args, **more)

    def held_abort(self: Outer, message: Any) -> None:
        aborts.set()
        assert closes.wait(8)
        abort(self, message)

    monkeypatch.setattr(Outer, "run_child", held_start)
    monkeypatch.setattr(Outer, "_abort", held_abort)
    world = World(default={"on_timeout": "approve", "time_limit": "PT0.1S"})
    world.numbers["own"] = 1
    world.chat_held = asyncio.Event()
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Outer")
        child = client.get_workflow_handle(f"{handle.id}/probe")
        assert await asyncio.to_thread(starts.wait, 8)
        await handle.signal("abort", {"by": "bob"})
        sent.set()  # the task that starts the run below ends when the abort is there
        assert await asyncio.to_thread(aborts.wait, 8)
        await until(child, lambda s: s.checklist[0].done)
        closes.set()
        await until(child, lambda s: any("the closing goes on" in entry.text for entry in s.timeline))
        world.chat_held.set()
        assert (await failure(handle)).type == "Aborted"
        await keep(handle, "Outer", "aborted-as-its-child-starts")
    assert world.done == ["own=2", "dial=2", "lamp=2", "own=1"]
