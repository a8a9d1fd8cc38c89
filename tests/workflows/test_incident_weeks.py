"""What an incident does over days and weeks, with time skipped: P2's week, P4's weekend, actions, a drill."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import icalendar
import pytest
from temporalio.testing import WorkflowEnvironment

from tests.patience import soon
from tests.workflows.incident_world import World, begin, send, situation, working
from tests.workflows.probe import progress, until
from workflows.catalog import RUNBOOKS
from workflows.model import Outcome, RunbookResult, RunState
from workflows.remedies import REMEDIES


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


def test_every_remedy_is_a_runbook_that_there_is() -> None:
    assert {runbook.__name__ for runbook in RUNBOOKS} >= set(REMEDIES)


async def resolved(temporal: WorkflowEnvironment, handle: Any, world: World) -> None:
    """Let the service be good again, until the incident is resolved and its documents are written."""
    world.fault = "none"
    await temporal.fast_forward(handle, timedelta(hours=2))
    await soon(lambda: bool(world.written))


async def test_p2_through_its_week(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P2")
            await soon(lambda: bool(world.pages))
            await send(handle, "acknowledge")
            await send(handle, "cause", cause="an index was dropped")
            await resolved(temporal, handle, world)
            entry = world.written[0].entry
            assert (entry.severity, entry.cause, entry.missed) == ("P2", "an index was dropped", ())
            meeting = world.written[0].meeting
            assert meeting is not None
            assert entry.ended_at < meeting.starts_at < entry.ended_at + timedelta(weeks=1)
            assert [mail.calendar is not None for mail in world.mails][-1]
            event = icalendar.Calendar.from_ical(world.mails[-1].calendar or "").walk("VEVENT")[0]
            assert event.decoded("dtstart") == meeting.starts_at
            assert await send(handle, "action", text="guard the index", owner="bob", due="P3D") == "A1"
            await soon(lambda: any("A1" in ticket.title for ticket in world.tickets))
            pages = len(world.pages)
            # Due after three days and a day later, or on Monday morning where that is a Friday evening.
            await temporal.fast_forward(handle, timedelta(days=7))
            reminders = [m.title for _, m in world.said if "A1 is due" in m.title]
            assert len(reminders) >= 2, "reminded of until it is done"
            await temporal.fast_forward(handle, timedelta(days=2))
            assert "MISSED P2 post-mortem" in timeline(await progress(handle))
            assert len(world.pages) == pages, "a late post-mortem wakes nobody"
            await send(handle, "post_mortem")
            await send(handle, "action", do="hand-on", id="A1", owner="the platform team")
            result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
            events = len((await handle.fetch_history()).events)
    assert result.outcome is Outcome.COMPLETED
    assert events < 4000, f"{events} events in a week"
    assert "guard the index" in world.documents[-1]["md"]
    assert "<svg" in world.documents[-1]["html"]
    assert "missed: P2 post-mortem" in world.documents[-1]["md"].replace("**", "")


async def test_p4_over_a_weekend(temporal: WorkflowEnvironment) -> None:
    """Opened when the week's work is over: whatever day it is, the days until the next opening are the weekend."""
    today = datetime.now(UTC)
    closed = {(today + timedelta(days=days)).strftime("%a").lower() for days in range(3)}
    days = [day for day in ("mon", "tue", "wed", "thu", "fri", "sat", "sun") if day not in closed]
    hours = {"windows": [{"days": days, "opens": "09:00", "closes": "17:00"}]}
    opening = (today + timedelta(days=3)).replace(hour=9, minute=0, second=0, microsecond=0)
    world = World("none", incidents={"business_hours": hours})
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P4")
            await until(handle, lambda s: "P4: as it was opened" in timeline(s))
            book = (await situation(handle)).book
            assert book is not None
            assert book.clocks[0].due == opening + timedelta(hours=8), "a whole business day, from Monday on"
            await temporal.fast_forward(handle, opening - datetime.now(UTC) - timedelta(minutes=5))
            assert world.said == [], "nobody is told at the weekend"
            await temporal.fast_forward(handle, timedelta(minutes=10))
            await soon(lambda: any(m.title.startswith("INCIDENT DECLARED - P4") for _, m in world.said))
            await temporal.fast_forward(handle, timedelta(hours=8))
            assert "MISSED P4 response" in timeline(await progress(handle))
            assert world.pages == []
            await handle.terminate()


async def test_a_drill_pages_nobody_changes_nothing_and_is_scored(temporal: WorkflowEnvironment) -> None:
    world = World("errors", incidents={"drill": ["drill-channel"]})
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1", drill=True)
            await until(handle, lambda s: s.open_gate() is not None)
            await send(handle, "acknowledge")
            await handle.signal("approve", {"by": "bob"})
            await until(
                handle, lambda s: any("QuickRollback: " in e.text and "aaaa" not in e.text for e in s.timeline[-3:]), 30
            )
            assert world.changes == []
            await resolved(temporal, handle, world)
            await send(handle, "post_mortem")
            result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
    assert result.outcome is Outcome.COMPLETED
    assert (world.pages, world.mails, world.tickets, world.changes) == ([], [], [], [])
    drilled = [m for _, m in world.said if m.channels.chat == ("drill-channel",)]
    assert drilled
    assert all(message.title.startswith("DRILL: ") for message in drilled)
    assert [m.title for _, m in world.said if m.channels.chat != ("drill-channel",)] == []
    assert {"time to confirm", "time to declare", "time to acknowledge", "time to mitigate"} <= result.facts.keys()


@pytest.mark.long
async def test_a_long_incident_goes_on_in_runs_with_short_histories(temporal: WorkflowEnvironment) -> None:
    """Nobody answers for two days: paged on and on, and nothing of it is lost when the history is cut."""
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await until(handle, lambda s: s.open_gate() is not None)
            await handle.signal("reject", {"by": "bob", "reason": "not the release"})
            await until(handle, lambda s: "bob said no" in timeline(s))
            before = await situation(handle)
            current = temporal.client.get_workflow_handle(handle.id)
            for _ in range(8):
                await temporal.fast_forward(current, timedelta(hours=6))
                described = await current.describe()
                if described.run_id != handle.result_run_id:
                    break
            assert described.run_id != handle.result_run_id, "its history was cut"
            after = await situation(current)
            assert before.book is not None
            assert after.book is not None
            assert after.book.opened_at == before.book.opened_at
            assert after.evidence == before.evidence
            assert after.book.pages == len(world.pages) > 100
            assert len({page.key for _, page in world.pages}) == len(world.pages), "no call is made twice"
            assert [tried.state for tried in after.tried] == ["declined"]
            assert len(after.earlier) + len((await progress(current)).timeline) > 300
            await send(current, "acknowledge")
            assert (await situation(current)).book.responder == "ann"  # type: ignore[union-attr]
            await current.terminate()
