"""News that reaches an incident while it does something else: while it documents, closes or goes on in a new run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.incidents import OpenIncident, open_incident
from tests.histories import keep
from tests.patience import eventually, soon
from tests.workflows.incident_world import World, begin, send, situation, working
from tests.workflows.probe import progress, until
from workflows.model import Outcome, RunbookResult, RunState


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


async def called(client: Client, world: World, queue: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    """An incident to which somebody has come."""
    handle = await begin(client, queue, severity="P1", **inp)
    await soon(lambda: bool(world.pages))
    await send(handle, "acknowledge")
    return handle


async def again(handle: WorkflowHandle[Any, Any], alert: str = "a-9") -> str:
    return str(await handle.execute_update("join", {"alert": alert, "source": "alarm", "text": "errors again"}))


async def ended(handle: WorkflowHandle[Any, Any]) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


@pytest.mark.parametrize("busy", ["ticket", "write", "mail"])
async def test_a_relapse_while_it_is_documented_calls_people_at_once(client: Client, busy: str) -> None:
    world = World("none")
    async with working(client, world) as queue:
        handle = await called(client, world, queue)
        world.hold[busy] = asyncio.Event()
        await send(handle, "resolve", cause="a typo")
        await soon(lambda: busy in world.held)
        pages = len(world.pages)
        assert await again(handle) == "joined"
        await soon(lambda: len(world.pages) > pages)
        world.hold.pop(busy).set()
        assert "RELAPSE, outbreak 2" in timeline(await progress(handle))
        await send(handle, "acknowledge")
        await send(handle, "resolve", cause="another typo")
        await until(handle, lambda s: s.step("invite") is not None and "Resolved after" in timeline(s))
        assert (await situation(handle)).written_for == 2
        assert world.written[-1].entry.outbreaks == 2
        await send(handle, "post_mortem")
        assert (await ended(handle)).outcome is Outcome.COMPLETED
        if busy == "write":
            await keep(handle, "Incident", "relapses-while-written")


async def test_what_comes_during_the_last_writing_is_not_lost(client: Client) -> None:
    """The same alarm, and an action: each holds the run open that was about to end."""
    world = World("none")
    async with working(client, world) as queue:
        handle = await called(client, world, queue)
        await send(handle, "resolve", cause="a typo")
        await until(handle, lambda s: "Resolved after" in timeline(s))
        world.hold["write"] = asyncio.Event()
        await send(handle, "post_mortem")
        await soon(lambda: "write" in world.held)
        assert await send(handle, "action", text="add a test", owner="bob") == "A1"
        world.hold.pop("write").set()
        await soon(lambda: any("A1" in ticket.title for ticket in world.tickets))
        world.held.clear()
        world.hold["write"] = asyncio.Event()
        await send(handle, "action", do="done", id="A1")
        await soon(lambda: "write" in world.held)
        pages = len(world.pages)
        assert await again(handle) == "joined"
        await soon(lambda: len(world.pages) > pages)
        world.hold.pop("write").set()
        assert (await progress(handle)).outcome is None
        await keep(handle, "Incident", "relapses-at-the-end")
        await handle.terminate()


@pytest.mark.parametrize("busy", ["announce", "report"])
async def test_an_alert_to_a_closing_incident_is_tried_again_until_it_opens_a_new_one(
    client: Client, busy: str
) -> None:
    world = World("none")
    async with working(client, world) as queue:
        problem = OpenIncident(
            stage=f"stage-{queue}", reason="errors", key="errors", alert="a-1", source="alarm", severity="P4"
        )
        handle = client.get_workflow_handle((await open_incident(client, queue, problem)).workflow_id)
        first = (await handle.describe()).run_id
        await until(handle, lambda s: s.step("tree").ended_at is not None)
        world.hold[busy] = asyncio.Event()
        await send(handle, "resolve", cause="a typo")

        async def closing() -> bool:
            seen = (await handle.describe()).raw_description
            pending = {activity.activity_id.partition("-")[0] for activity in seen.pending_activities}
            return (
                len(world.written) == 2 and pending <= {"tell", "record"} and not seen.HasField("pending_workflow_task")
            )

        await eventually(closing, "closing")
        again = problem.model_copy(update={"alert": "a-2"})
        for _ in range(2):
            with pytest.raises(ApplicationError, match="is closing: try again") as refused:
                await open_incident(client, queue, again)
            assert not refused.value.non_retryable
        world.hold.pop(busy).set()
        result = await client.get_workflow_handle(handle.id, run_id=first).result()
        assert RunbookResult.model_validate(result).outcome is Outcome.COMPLETED
        assert (await open_incident(client, queue, again)).new
        assert (await handle.describe()).run_id != first
        await handle.terminate()
