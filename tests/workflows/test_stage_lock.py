"""One change at a time on a stage: order, incidents ahead, holders that die."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio.client import Client

from activities.locks import lock_id
from tests.workflows.probe import World, at_gate, begin, failure, progress, until, working
from workflows.stage_lock import LockView

STAGE = "stage-locked-{}"


async def queued(handle: Any, position: int) -> None:
    await until(handle, lambda s: s.lock.position == position)


async def view(client: Client, stage: str) -> LockView:
    return LockView.model_validate(await client.get_workflow_handle(lock_id(stage)).query("lock"))


async def test_others_queue_visibly_and_go_in_order(client: Client) -> None:
    world, stage = World(), STAGE.format("order")
    async with working(client, world) as queue:
        first = await begin(client, queue, stage=stage)
        await until(first, at_gate)
        second = await begin(client, queue, stage=stage, to=3)
        await queued(second, 1)
        third = await begin(client, queue, stage=stage, to=4)
        await queued(third, 2)
        urgent = await begin(client, queue, stage=stage, to=5, incident="inc-7", severity="P1")
        await queued(urgent, 1)
        await queued(third, 3)
        state = await progress(third)
        assert state.lock.holder == first.id
        assert any("waits for the stage: place 3 behind" in entry.text for entry in state.timeline)
        shown = await view(client, stage)
        assert shown.holder is not None
        assert shown.holder.workflow_id == first.id
        assert [request.workflow_id for request in shown.queue] == [urgent.id, second.id, third.id]
        for handle in (first, urgent, second, third):
            await until(handle, at_gate)
            await handle.signal("approve", {"by": "bob"})
            await asyncio.wait_for(handle.result(), 180)
        assert world.done == ["dial=2", "lamp=2", "dial=5", "lamp=5", "dial=3", "lamp=3", "dial=4", "lamp=4"]
        await asyncio.wait_for(client.get_workflow_handle(lock_id(stage)).result(), 180)  # nobody left: it ends


async def test_leaving_the_queue_and_dying_in_it(client: Client) -> None:
    world, stage = World(), STAGE.format("leave")
    async with working(client, world) as queue:
        first = await begin(client, queue, stage=stage)
        await until(first, at_gate)
        second = await begin(client, queue, stage=stage)
        await queued(second, 1)
        third = await begin(client, queue, stage=stage)
        await queued(third, 2)
        fourth = await begin(client, queue, stage=stage)
        await queued(fourth, 3)
        await second.signal("abort", {"by": "bob"})
        assert (await failure(second)).type == "Aborted"
        await queued(fourth, 2)
        await third.terminate()
        await first.signal("reject", {"by": "bob"})
        await failure(first)
        await until(fourth, at_gate)  # the dead one in between was skipped
        await fourth.terminate()


async def test_a_holder_that_was_terminated_is_found_out(client: Client) -> None:
    world, stage = World(), STAGE.format("dead")
    async with working(client, world) as queue:
        first = await begin(client, queue, stage=stage)
        await until(first, at_gate)
        await first.terminate()
        second = await begin(client, queue, stage=stage)
        await until(second, at_gate)  # it asks, the lock looks after its holder, and finds it gone
        await second.terminate()


async def test_a_dry_run_takes_no_lock(client: Client) -> None:
    world, stage = World(), STAGE.format("dry")
    async with working(client, world) as queue:
        first = await begin(client, queue, stage=stage)
        await until(first, at_gate)
        dry = await begin(client, queue, stage=stage, dry_run=True)
        await asyncio.wait_for(dry.result(), 180)
        await first.terminate()
