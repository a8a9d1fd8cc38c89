"""News that reaches an incident while it does something else: while it documents, closes or goes on in a new run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle

from tests.histories import keep
from tests.patience import soon
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
