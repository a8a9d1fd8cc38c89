"""News that reaches an incident while it does something else: while it documents, closes or goes on in a new run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.incidents import OpenIncident, open_incident
from tests.histories import keep
from tests.patience import eventually, soon
from tests.workflows.incident_world import World, begin, send, situation, working
from tests.workflows.probe import going_on, progress, until
from workflows.incident import Incident
from workflows.model import Outcome, RunbookResult, RunState, State


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


async def called(client: Client, world: World, queue: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    """An incident of which all were told, and to which somebody has come."""
    handle = await begin(client, queue, severity="P1", **inp)
    await soon(lambda: bool(world.pages and world.mails))
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


async def test_a_real_alarm_during_a_drill_of_its_key_calls_people(client: Client) -> None:
    world = World("none")
    async with working(client, world) as queue:
        drill = OpenIncident(
            stage=f"stage-{queue}", reason="errors", key="errors", alert="d-1", source="ann", severity="P1", drill=True
        )
        practised = await open_incident(client, queue, drill)
        alarm = drill.model_copy(update={"alert": "a-1", "source": "alarm", "drill": False})
        real = await open_incident(client, queue, alarm)
        assert (practised.new, real.new) == (True, True)
        await soon(lambda: bool(world.pages))
        again = await open_incident(client, queue, drill.model_copy(update={"alert": "d-2"}))
        assert (again.workflow_id, again.new) == (practised.workflow_id, False)
        for opened, alerts in ((practised, ["d-1", "d-2"]), (real, ["a-1"])):
            handle = client.get_workflow_handle(opened.workflow_id)
            assert (await situation(handle)).alerts == alerts
            await handle.terminate()


@pytest.fixture
def notes_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note that says so makes the history of a run long that continues no other."""

    def is_long(self: Incident) -> bool:
        noted = any(entry.text == "long" for entry in self.state.timeline)
        return noted and workflow.info().continued_run_id is None

    monkeypatch.setattr(Incident, "history_is_long", property(is_long))


async def make_long(handle: WorkflowHandle[Any, Any]) -> None:
    await handle.signal("note", {"by": "ann", "text": "long"})


async def gone_on(handle: WorkflowHandle[Any, Any]) -> bool:
    return (await handle.describe()).run_id != handle.first_execution_run_id


@pytest.mark.usefixtures("notes_are_long")
@pytest.mark.parametrize("moment", ["meanwhile", pytest.param("afterwards", marks=pytest.mark.long)])
async def test_what_comes_before_it_goes_on_in_a_new_run_is_carried(client: Client, moment: str) -> None:
    """A page is on its way while people write: none of it is lost, and the page is ended."""
    world = World("none")
    world.hold["page"] = asyncio.Event()
    async with working(client, world) as queue:
        started = await begin(client, queue, severity="P1")
        handle = client.get_workflow_handle(started.id, first_execution_run_id=started.first_execution_run_id)
        await until(handle, lambda s: s.step("declare").state is State.DONE)
        await soon(lambda: "page" in world.held)
        await make_long(handle)
        await until(handle, lambda s: "long" in timeline(s))
        if moment == "meanwhile":
            assert await send(handle, "action", text="add a test") == "A1"
            await send(handle, "acknowledge")
            await send(handle, "severity", severity="P2", reason="only some")
            await send(handle, "resolve", cause="a typo")
        assert not await gone_on(handle)
        world.hold.pop("page").set()
        await eventually(lambda: gone_on(handle), "a new run")
        if moment == "afterwards":
            await send(handle, "acknowledge")
        await soon(lambda: bool(world.page_ends))
        assert [end.key for end in world.page_ends] == [page.key for _, page in world.pages]
        if moment == "meanwhile":
            await until(handle, lambda s: "resolved as ann said" in timeline(s))
            seen = await situation(handle)
            assert seen.book is not None
            assert (seen.book.responder, seen.book.severity) == ("ann", "P2")
            assert [action.id for action in seen.actions] == ["A1"]
        await handle.terminate()


@pytest.mark.usefixtures("notes_are_long")
async def test_a_relapse_before_it_goes_on_in_a_new_run_is_carried(client: Client) -> None:
    world = World("none")
    async with working(client, world) as queue:
        started = await called(client, world, queue)
        handle = client.get_workflow_handle(started.id, first_execution_run_id=started.first_execution_run_id)
        world.hold["announce"] = asyncio.Event()
        await send(handle, "resolve", cause="a typo")
        await soon(lambda: "announce" in world.held)
        await make_long(handle)
        await until(handle, lambda s: "long" in timeline(s))
        pages = len(world.pages)
        assert await again(handle) == "joined"
        assert not await gone_on(handle)
        world.hold.pop("announce").set()
        await eventually(lambda: gone_on(handle), "a new run")
        await soon(lambda: len(world.pages) > pages)
        assert "RELAPSE, outbreak 2" in timeline(await progress(handle))
        await handle.terminate()


@pytest.mark.usefixtures("notes_are_long")
@pytest.mark.parametrize("part", ["respond", pytest.param("after", marks=pytest.mark.long)])
async def test_what_comes_before_a_continued_run_begins_counts(client: Client, part: str) -> None:
    """All of it is in the first task of the run: until then nobody works on it."""
    world = World("none")
    async with working(client, world) as queue:
        started = await begin(client, queue, severity="P1")
        handle = client.get_workflow_handle(started.id, first_execution_run_id=started.first_execution_run_id)
        await soon(lambda: bool(world.pages))
        if part == "after":
            await send(handle, "resolve", cause="a typo")
            await until(handle, lambda s: "Resolved after" in timeline(s))
        await make_long(handle)
        await eventually(lambda: gone_on(handle), "a new run")
        bare = await Client.connect(client.service_client.config.target_host)  # its workers have no incident of theirs
        latest = await going_on(bare, f"{queue}-before", handle)
        await client.get_workflow_handle(handle.id).terminate()
    handle, world.pages = client.get_workflow_handle(latest.id), world.pages[:1]
    messages = [send(handle, "action", text="add a test")]
    messages.append(send(handle, "acknowledge") if part == "respond" else again(handle))
    answers = asyncio.gather(*messages)
    await asyncio.wait([answers], timeout=1)  # the server has them by then, or they come into a later task
    async with working(client, world, f"{queue}-before-next"):
        assert await asyncio.wait_for(answers, 60) == ["A1", "ann is on it" if part == "respond" else "joined"]
        state = await progress(handle)
        assert "asked for" in timeline(state)
        assert "adds action A1" in timeline(state)
        seen = await situation(handle)
        assert [action.id for action in seen.actions] == ["A1"]
        assert seen.book is not None
        if part == "respond":
            assert seen.book.responder == "ann"
        else:
            assert seen.book.episode == 2
            await soon(lambda: len(world.pages) == 2)
        await handle.terminate()
