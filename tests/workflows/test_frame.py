"""The frame, end to end on a real Temporal server: steps, gates, waits, undo, messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as ActivityTimeout

from tests.histories import keep
from tests.workflows.probe import (
    Outer,
    ProbeInput,
    Set,
    World,
    at_gate,
    begin,
    failure,
    going_on,
    outcome,
    progress,
    until,
    working,
)
from workflows.beside import start_beside
from workflows.model import Outcome, RunbookResult, State
from workflows.runbook import Runbook
from workflows.steps import describe


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


async def approve(handle: Any, by: str = "bob") -> None:
    await until(handle, at_gate)
    await handle.signal("approve", {"by": by})


def _timed_out(kind: TimeoutType, last: BaseException | None = None) -> ActivityTimeout:
    error = ActivityTimeout("activity timed out", type=kind, last_heartbeat_details=[])
    error.__cause__ = last
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            _timed_out(TimeoutType.SCHEDULE_TO_CLOSE, ApplicationError("the stage is locked", type="Locked")),
            "gave up after trying for as long as the policy allows; the last try: the stage is locked",
        ),
        (
            _timed_out(TimeoutType.SCHEDULE_TO_CLOSE, _timed_out(TimeoutType.HEARTBEAT)),
            "gave up after trying for as long as the policy allows; the last try: its worker fell silent",
        ),
        (
            _timed_out(TimeoutType.START_TO_CLOSE, _timed_out(TimeoutType.START_TO_CLOSE)),
            "it did not end in the time that the policy gives one try",
        ),
    ],
)
def test_a_step_that_was_given_up_says_how_its_last_try_ended(error: BaseException, said: str) -> None:
    assert describe(error) == (said, "TimedOut")


async def test_a_run_from_start_to_report(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        state = await until(handle, at_gate)
        assert [step.state for step in state.steps] == [State.DONE, State.PENDING, State.PENDING, State.WAITING]
        assert state.steps[0].evidence == {"value": 1}
        await handle.signal("approve", "bob")  # a bare name will do
        result = await finished(handle)
        assert (result.outcome, result.summary) == (Outcome.COMPLETED, "dial 1 → 2")
        assert world.done == ["dial=2", "lamp=2"]
        assert [a.by for a in result.approvals] == ["bob"]
        assert [(item.done, item.by) for item in result.checklist] == [(True, "evidence"), (False, None)]
        assert result.report == {"md": f"s3://records/{handle.id}.md"}
        assert "Turn the dial" in world.reports[0]["html"]
        description = await handle.describe()
        found = {k.name: v for k, v in ((p.key, p.value) for p in description.typed_search_attributes)}
        assert found["RunbookPhase"] == "closed"
        assert "RunbookGate" not in found


async def test_reject_changes_nothing(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await until(handle, at_gate)
        await handle.signal("reject", {"by": "bob", "reason": "not now"})
        error = await failure(handle)
        assert error.type == "Rejected"
        assert error.message == "bob said no at 'turn-it': not now. Nothing had been changed"
        assert outcome(error).outcome is Outcome.REJECTED
        assert world.done == []


async def test_abort_after_the_change_puts_everything_back(client: Client) -> None:
    world = World()
    world.hold["lamp"] = asyncio.Event()
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await approve(handle)
        await until(handle, lambda s: s.step("light").state is State.RUNNING)
        await handle.signal("abort", {"by": "bob", "reason": "wrong dial"})
        await until(handle, lambda s: any("aborts" in e.text for e in s.timeline))
        world.hold["lamp"].set()
        error = await failure(handle)
        assert error.type == "Aborted"
        assert error.message == "aborted by bob: wrong dial. Everything that was begun has been undone"
        # The lamp was being lit: its outcome was awaited, so that its undo came after it, and in reverse.
        assert world.done == ["dial=2", "lamp=2", "lamp=1", "dial=1"]
        states = {s.id: s.state for s in (await progress(handle)).steps}
        assert states["turn"] is states["light"] is State.UNDONE
        assert states["undo-turn"] is State.DONE


async def test_cancel_does_the_same_and_ends_cancelled(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, bake="PT1H")
        await approve(handle)
        await until(handle, lambda s: bool(s.waits))
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await finished(handle)
        assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
        assert world.done == ["dial=2", "dial=1"]
        state = await progress(handle)
        assert state.outcome is Outcome.CANCELLED
        assert len(world.reports) == 1


async def test_a_cancel_during_an_undo_does_not_stop_it(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, bake="PT1H")
        await approve(handle)
        await until(handle, lambda s: bool(s.waits))
        world.hold["dial"] = asyncio.Event()
        await handle.signal("abort", {"by": "bob"})
        await until(handle, lambda s: s.phase == "undoing")
        await handle.cancel()
        await until(handle, lambda s: any("the closing goes on" in e.text for e in s.timeline))
        world.hold["dial"].set()
        error = await failure(handle)
        assert error.type == "Aborted"
        assert world.numbers["dial"] == 1


async def test_a_failed_change_undoes_itself_and_what_went_before(client: Client) -> None:
    world = World()
    world.fail["lamp"] = "after: the bulb broke"
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await approve(handle)
        await until(handle, lambda s: s.phase in ("undoing", "closed"))
        error = await failure(handle)
        # The lamp cannot be put out either: the run says so, puts the dial back, and is no plain failure.
        assert error.type == "LeftUndone"
        assert error.message.startswith("could not set lamp: after: the bulb broke. NOT put back: put lamp back:")
        assert world.numbers == {"dial": 1, "lamp": 1}
        assert outcome(error).left_undone
        assert any("Could not undo" in message.title for message in world.told)


async def test_the_gate_is_asked_again_when_the_plan_has_drifted(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, to=5)
        state = await until(handle, at_gate)
        first = state.gates[0].plan_hash
        world.numbers["dial"] = 3
        await handle.signal("approve", {"by": "bob", "plan_hash": first})
        state = await until(handle, lambda s: at_gate(s) and s.gates[0].asked == 2)
        assert state.gates[0].plan == {"from": 3, "to": 5}
        assert any("from: 1 → 3" in entry.text for entry in state.timeline)
        assert world.done == []
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("decide", {"decision": "approve", "by": "bob", "plan_hash": first})
        assert "read it again" in str(refused.value.cause)
        said = await handle.execute_update("decide", {"decision": "approve", "by": "bob"})
        assert said == "gate 'turn-it' is approved"
        assert (await finished(handle)).summary == "dial 3 → 5"


async def test_who_asked_may_not_approve_and_two_are_two(client: Client) -> None:
    world = World(default={"approvals": 2, "requester_may_approve": False})
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await until(handle, at_gate)
        for by in ("ann", "bob", "bob"):
            await handle.signal("approve", {"by": by})
        state = await until(handle, lambda s: sum("changed nothing" in e.text for e in s.timeline) == 2)
        assert state.open_gate() is not None
        texts = " | ".join(e.text for e in state.timeline if e.level == "warning")
        assert "ann asked for this run and may not approve it" in texts
        assert "bob has approved already; 1 more needed" in texts
        await handle.signal("revoke", {"by": "bob"})
        await handle.signal("approve", {"by": "cid"})
        state = await until(handle, lambda s: any(e.who == "cid" for e in s.timeline))
        assert state.open_gate() is not None
        await handle.signal("approve", {"by": "dot"})
        result = await finished(handle)
        assert [a.by for a in result.approvals] == ["cid", "dot"]


async def test_pause_holds_the_next_step_and_an_approval_can_be_taken_back_meanwhile(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await until(handle, at_gate)
        await handle.signal("pause", {"by": "bob", "reason": "let me look"})
        await handle.signal("approve", {"by": "bob"})
        state = await until(handle, lambda s: s.phase == "paused")
        assert state.paused_by == "bob"
        await handle.signal("revoke", {"by": "bob", "reason": "I was wrong"})
        await handle.signal("resume", {"by": "bob"})
        await until(handle, at_gate)
        assert world.done == []
        await handle.signal("approve", {"by": "cid"})
        assert [a.by for a in (await finished(handle)).approvals] == ["cid"]


async def test_a_wait_can_be_extended_and_ended(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, bake="PT1H")
        await approve(handle)
        before = (await until(handle, lambda s: bool(s.waits))).waits[0].until
        await handle.execute_update("extend_wait", {"by": "bob", "duration": "PT15M", "reason": "few requests"})
        after = (await progress(handle)).waits[0].until
        assert (after - before).total_seconds() == 900
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("end_wait", {"by": "bob", "wait": "nap"})
        assert "no such wait; waiting now: bake" in str(refused.value.cause)
        await handle.execute_update("end_wait", {"by": "bob", "reason": "enough"})
        assert (await finished(handle)).outcome is Outcome.COMPLETED


async def test_a_dry_run_looks_and_changes_nothing(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        result = await finished(await begin(client, queue, dry_run=True, bake="PT1H"))
        assert result.outcome is Outcome.DRY_RUN
        assert result.would_change == ["set dial to 2", "set lamp to 2"]
        assert world.done == []
        assert world.told == []


async def test_chat_that_is_down_is_reported_and_decides_nothing(client: Client) -> None:
    world = World()
    world.fail["chat"] = "HTTP 503"
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await approve(handle)
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        state = await progress(handle)
        assert any("nobody could be told" in e.text and "HTTP 503" in e.text for e in state.timeline)


async def test_notes_ticks_and_what_does_not_fit_stand_on_the_timeline(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await until(handle, at_gate)
        await handle.signal("note", {"by": "bob", "text": "customers are calling"})
        await handle.signal("tick", {"by": "bob", "item": "human", "reason": "looked at the graphs"})
        await handle.signal("tick", {"by": "bob", "item": "nope"})
        await handle.signal("resume", {"by": "bob"})
        await approve(handle)
        result = await finished(handle)
        assert result.checklist[1].by == "bob"
        texts = [e.text for e in (await progress(handle)).timeline]
        assert "customers are calling" in texts
        assert "signal tick changed nothing: no item 'nope'; items: dial, human" in texts
        assert "signal resume changed nothing: the run is not paused" in texts


async def test_a_run_that_continues_as_new_keeps_its_page_its_lock_and_its_undo(client: Client) -> None:
    world = World()
    world.hold["lamp"] = asyncio.Event()
    async with working(client, world) as queue:
        handle = await begin(client, queue, laps=3)
        await approve(handle)
        latest = client.get_workflow_handle(handle.id)
        state = await until(latest, lambda s: (step := s.step("light")) and step.state is State.RUNNING)
        assert state.run_id != handle.result_run_id
        assert state.lock.held
        assert state.steps[0].evidence == {"value": 1}
        assert [gate.state for gate in state.gates] == ["begun"]
        lock = await client.get_workflow_handle(f"stage-lock/{state.stage}").query("lock")
        assert (lock["holder"]["workflow_id"], lock["queue"]) == (handle.id, [])
        await latest.signal("abort", {"by": "bob"})
        await until(latest, lambda s: any("aborts" in entry.text for entry in s.timeline))
        world.hold["lamp"].set()
        error = await failure(latest)
        assert error.type == "Aborted"
        assert world.done == ["dial=2", "lamp=2", "lamp=1", "dial=1"]


async def test_what_is_sent_before_a_run_goes_on_counts(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, laps=1)
        await approve(handle)
        await finished(handle)
    latest = await going_on(client, queue, handle)
    await latest.signal("pause", {"by": "bob", "reason": "let me look"})
    await latest.signal("note", {"by": "bob", "text": "customers are calling"})
    async with working(client, world, queue=f"{queue}-next"):
        state = await until(latest, lambda s: s.phase == "paused")
        assert any(entry.text == "customers are calling" for entry in state.timeline)
        await latest.signal("resume", {"by": "bob"})
        await finished(latest)
        await keep(latest, "Probe", "paused-before-it-goes-on")
    assert world.done == ["dial=2", "lamp=2", "lamp=2"]


async def test_a_child_works_under_its_parents_lock_and_is_undone_with_it(client: Client) -> None:
    world = World()
    world.numbers["own"] = 1
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Outer", bake="PT1H")
        child = client.get_workflow_handle(f"{handle.id}/probe")
        await until(handle, lambda s: (step := s.step("probe")) and step.state is State.RUNNING)
        await approve(child)
        state = await until(child, lambda s: bool(s.waits))
        assert state.lock.held
        await handle.signal("abort", {"by": "bob", "reason": "enough"})
        error = await failure(handle)
        assert error.type == "Aborted"
        assert world.done == ["own=2", "dial=2", "dial=1", "own=1"]
        assert (await progress(child)).outcome is Outcome.CANCELLED


async def test_a_run_that_has_done_its_work_is_neither_aborted_nor_paused(client: Client) -> None:
    world = World()
    world.chat_held = asyncio.Event()
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await approve(handle)
        await until(handle, lambda s: s.checklist[0].done)  # it closes when the chat has taken all
        await handle.signal("pause", {"by": "bob"})
        await handle.signal("abort", {"by": "bob", "reason": "wrong dial"})
        state = await until(handle, lambda s: any("signal abort changed nothing" in e.text for e in s.timeline))
        said = [entry.text for entry in state.timeline if "has done its work and is closing" in entry.text]
        assert [text.split(" changed nothing")[0] for text in said] == ["signal pause", "signal abort"]
        assert state.paused_by is None
        world.chat_held.set()
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        await keep(handle, "Probe", "sent-while-it-closes")


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_pause_does_not_hold_what_is_undone(client: Client, how: str) -> None:
    world = World()
    world.numbers["own"] = 1
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Outer")
        child = client.get_workflow_handle(f"{handle.id}/probe")
        await until(handle, lambda s: (step := s.step("probe")) and step.state is State.RUNNING)
        await until(child, at_gate)
        await handle.signal("pause", {"by": "bob"})
        if how == "fails":
            await child.signal("reject", {"by": "bob"})
            assert (await failure(handle)).type == "Rejected"
            await keep(handle, "Outer", "paused-when-its-child-fails")
        else:
            await handle.cancel()
            with pytest.raises(WorkflowFailureError):
                await finished(handle)
        state = await progress(handle)
        assert any("no longer paused by bob" in entry.text for entry in state.timeline)
        assert (after := state.step("after")) is not None
        assert after.state is State.DONE
        assert world.done == ["own=2", "own=1"]


async def test_a_child_that_is_cancelled_alone_is_a_failure_and_no_cancellation_of_its_parent(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Outer")
        child = client.get_workflow_handle(f"{handle.id}/probe")
        await until(handle, lambda s: (step := s.step("probe")) and step.state is State.RUNNING)
        await until(child, at_gate)
        await child.cancel()
        error = await failure(handle)
    assert (error.type, outcome(error).outcome) == ("Cancelled", Outcome.FAILED)
    assert error.message.startswith("Probe was cancelled")
    assert world.done == ["own=2", "own=1"]


@workflow.defn(name="AbortedAsItStarts")
class AbortedAsItStarts(Runbook[ProbeInput]):
    """Is told to stop between the start of a run beside it and the server's word that it has started."""

    spec = Outer.spec

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ProbeInput) -> str:
        stop = asyncio.create_task(self._stop())
        await start_beside(self, "beside", "Probe", inp.model_copy(update={"stage": "stage-beside"}), title="Beside")
        await stop
        await self.change("own", World.set, Set(name="own", value=2), would="set own", undo=None)
        return "it was not heard"

    async def _stop(self) -> None:
        await workflow.wait_condition(lambda: self.state.step("beside") is not None)
        self.abort({"by": "bob"})


async def test_an_abort_while_a_run_beside_is_being_started_is_heard(client: Client) -> None:
    world = World()
    async with working(client, world, AbortedAsItStarts) as queue:
        handle = await begin(client, queue, "AbortedAsItStarts")
        error = await failure(handle)
        beside = [run.id async for run in client.list_workflows(f'WorkflowId STARTS_WITH "{handle.id}/beside"')]
        for run in beside:
            await client.get_workflow_handle(run).terminate()
    assert error.type == "Aborted"
    assert world.done == []


async def test_a_childs_failure_is_the_parents_in_its_own_words(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Outer")
        child = client.get_workflow_handle(f"{handle.id}/probe")
        await until(handle, lambda s: (step := s.step("probe")) and step.state is State.RUNNING)
        await until(child, at_gate)
        await child.signal("reject", {"by": "bob"})
        error = await failure(handle)
        assert error.type == "Rejected"
        assert error.message.startswith("bob said no at 'turn-it'")
        assert world.done == ["own=2", "own=1"]


@pytest.mark.parametrize(
    ("inp", "text"),
    [
        ({"stage": "stage-x"}, "reason: Field required"),
        ({"stage": "stage-x", "reason": "r", "two": 2}, "two: Extra inputs are not permitted"),
        ({"stage": "stage-x", "reason": "r", "to": "up"}, "to: Input should be a valid integer"),
        ({"stage": "../x", "reason": "r"}, "stage: String should match pattern"),
        ("production", "got str"),
        (None, "got nothing"),
        ([1, 2], "got list"),
    ],
)
async def test_bad_input_fails_at_once_and_says_what_it_takes(client: Client, inp: Any, text: str) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await client.start_workflow("Probe", inp, id=f"bad-{id(inp)}-{text[:9]}", task_queue=queue)
        error = await failure(handle)
        assert error.type == "BadInput"
        assert text in error.message
        assert 'Example: {"stage":"stage-x"' in error.message


async def test_an_unknown_stage_fails_at_once(client: Client) -> None:
    async with working(client, World()) as queue:
        error = await failure(await begin(client, queue, stage="nowhere"))
        assert (error.type, error.message) == ("UnknownStage", "there is no stage 'nowhere'. Nothing had been changed")
