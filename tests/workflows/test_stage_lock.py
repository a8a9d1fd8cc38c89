"""One change at a time on a stage: order, incidents ahead, holders that die."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHandle

from activities.locks import LockRequest, lock_id
from tests.histories import keep
from tests.patience import eventually
from tests.workflows.probe import World, at_gate, begin, failure, progress, until, working
from workflows import policy
from workflows.stage_lock import LockView

STAGE = "stage-locked-{}"


async def queued(handle: Any, position: int) -> None:
    await until(handle, lambda s: s.lock.position == position)


async def view(client: Client, stage: str) -> LockView:
    return LockView.model_validate(await client.get_workflow_handle(lock_id(stage)).query("lock"))


async def seen(client: Client, stage: str, holds: Any) -> LockView:
    """The lock as soon as ``holds`` of it."""

    async def look() -> LockView | None:
        return found if holds(found := await view(client, stage)) else None

    return await eventually(look, f"the lock of {stage}")


def request_of(handle: WorkflowHandle[Any, Any], stage: str, **more: Any) -> LockRequest:
    assert handle.result_run_id is not None
    return LockRequest(stage=stage, workflow_id=handle.id, run_id=handle.result_run_id, runbook="Probe", **more)


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


async def test_a_lock_whose_history_is_long_goes_on_as_it_was(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 1_000_000

    def suggested(info: workflow.Info) -> bool:
        first = info.workflow_type == "StageLock" and info.continued_run_id is None
        return first and info.get_current_history_length() > longest

    monkeypatch.setattr(workflow.Info, "is_continue_as_new_suggested", suggested)
    world, stage = World(), STAGE.format("long")
    async with working(client, world) as queue:
        holder = await begin(client, queue, "Outer", stage=stage)
        await until(holder, lambda s: (step := s.step("probe")) and step.state == "running")
        guest = client.get_workflow_handle(f"{holder.id}/probe")
        await until(guest, at_gate)
        urgent = await begin(client, queue, stage=stage, incident="inc-7", severity="P1")
        await queued(urgent, 1)
        second = await begin(client, queue, stage=stage)
        await queued(second, 2)
        before = await view(client, stage)
        first_run = (await client.get_workflow_handle(lock_id(stage)).describe()).run_id
        longest = len((await client.get_workflow_handle(lock_id(stage)).fetch_history()).events)
        third = await begin(client, queue, stage=stage)
        await queued(third, 3)

        async def gone_on() -> bool:
            return (await client.get_workflow_handle(lock_id(stage)).describe()).run_id != first_run

        await eventually(gone_on, lambda: "the lock does not go on in a new run")
        after = await seen(client, stage, lambda found: len(found.queue) == 3)
        assert (after.holder, after.since, after.guests) == (before.holder, before.since, before.guests)
        assert [request.workflow_id for request in after.queue] == [urgent.id, second.id, third.id]
        assert [request.workflow_id for request in after.guests] == [guest.id]
        assert not (await progress(urgent)).lock.held
        for handle in (third, second):
            await handle.signal("abort", {"by": "bob"})
            await failure(handle)
        await guest.signal("reject", {"by": "bob"})
        await failure(holder)
        await until(urgent, at_gate)
        await urgent.signal("abort", {"by": "bob"})
        await failure(urgent)
        lock = client.get_workflow_handle(lock_id(stage))
        await asyncio.wait_for(lock.result(), 180)
        await keep(lock, "StageLock", "went-on-as-it-was")


async def test_what_is_sent_to_a_lock_before_it_goes_on_is_done_then(client: Client) -> None:
    world, stage = World(), STAGE.format("early")
    async with working(client, world) as queue:
        first, second, third = [await begin(client, queue) for _ in range(3)]
        for handle in (first, second, third):
            await until(handle, at_gate)  # each has a stage of its own: whatever this lock says changes nothing
        await client.start_workflow(
            "StageLock",
            {"stage": stage, "holder": request_of(first, stage), "queue": [request_of(second, stage)]},
            id=lock_id(stage),
            task_queue=queue,
            start_signal="request",
            start_signal_args=[request_of(third, stage, elders=(first.id,))],
        )
        found = await view(client, stage)
        assert (found.holder, found.queue) == (request_of(first, stage), [request_of(second, stage)])
        assert [guest.workflow_id for guest in found.guests] == [third.id]
        for handle in (first, second, third):
            await handle.terminate()
        await client.get_workflow_handle(lock_id(stage)).terminate()


async def test_a_grant_is_not_taken_for_a_run_of_the_same_name_before(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "LOCK_CHECK", timedelta(seconds=2))
    world, stage = World(), STAGE.format("again")
    async with working(client, world) as queue:
        first = await begin(client, queue, stage=stage)
        await until(first, at_gate)
        dead = await begin(client, queue, stage=stage)
        await queued(dead, 1)
        third = await begin(client, queue, stage=stage)
        await queued(third, 2)
        await dead.terminate()
        again = await client.start_workflow(
            "Probe", {"stage": stage, "reason": "test", "requested_by": "ann"}, id=dead.id, task_queue=queue
        )
        await queued(again, 3)
        await first.signal("abort", {"by": "bob"})
        await failure(first)
        await until(third, at_gate)  # the dead one was passed over
        assert not (await progress(again)).lock.held
        await third.signal("abort", {"by": "bob"})
        await failure(third)
        await until(again, at_gate)
        await again.terminate()


def test_a_run_can_queue_for_weeks_and_asks_again_soon_at_first() -> None:
    waited, asked = timedelta(0), 0
    while waited < timedelta(weeks=4):
        waited += policy.lock_reminder(waited)
        asked += 1
        assert waited >= timedelta(hours=1) or waited == asked * timedelta(minutes=1)
    assert 15 * asked < 48_000, "events of its history, which the server ends at 51,200"
