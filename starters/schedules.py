"""Schedules as they are in Temporal: made as planned, listed, paused."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
)
from temporalio.service import RPCError, RPCStatusCode

from activities.schedules import PREFIX
from starters.catalog import Catalog
from starters.problems import Code, Problem
from starters.runs import status
from starters.schedule_plan import PLAN, Planned, leftovers, plan
from starters.session import Session
from workflows.codec import EncryptionCodec, encrypted_with

Did = Literal["created", "updated", "unchanged", "kept", "not in the plan"]


class Applied(BaseModel):
    id: str
    did: Did
    note: str


class Row(BaseModel):
    """A schedule in the list."""

    id: str
    runbook: str
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_run: str | None = None
    last_status: str | None = None
    paused: bool = False
    over: bool = False
    """It starts nothing any more, and no run is under way that sets its next date."""
    note: str
    applied: bool = True


async def apply(session: Session, catalog: Catalog) -> list[Applied]:
    """Have every planned schedule as planned. Doing it twice is doing it once; what people have paused stays paused."""
    planned = plan(session.settings, catalog)
    done = [await _apply(session, one) for one in planned]
    strange = leftovers(planned, [name async for name in _there(session)])
    remedy = "the settings no longer ask for it: temporal schedule delete --schedule-id"
    return done + [Applied(id=name, did="not in the plan", note=f"{remedy} {name}") for name in strange]


async def _apply(session: Session, wanted: Planned) -> Applied:
    handle = session.client.get_schedule_handle(wanted.id)
    found = await _described(handle)
    if found is None:
        try:
            await session.client.create_schedule(wanted.id, wanted.schedule)
            return Applied(id=wanted.id, did="created", note=wanted.note)
        except ScheduleAlreadyRunningError:  # by somebody else, just now
            found = await handle.describe()
    mark = await _mark(session, found.schedule)
    if mark == wanted.mark and _key(found.schedule) == _key_now(session):
        return Applied(id=wanted.id, did="unchanged", note=wanted.note)
    if mark is None and wanted.cadence.renewed and not _over(found):
        return Applied(id=wanted.id, did="kept", note=f"set by a run: {found.schedule.state.note or ''}")

    def update(before: ScheduleUpdateInput) -> ScheduleUpdate:
        state = before.description.schedule.state
        if state.paused:
            wanted.schedule.state.paused, wanted.schedule.state.note = True, state.note
        return ScheduleUpdate(schedule=wanted.schedule)

    await handle.update(update)
    return Applied(id=wanted.id, did="updated", note=wanted.note)


async def listed(session: Session, catalog: Catalog) -> list[Row]:
    """Every schedule that there is or should be, by its id."""
    planned = {one.id: one for one in plan(session.settings, catalog)}
    names = sorted({*planned, *[name async for name in _there(session)]})
    rows = []
    for name in names:
        found = await _described(session.client.get_schedule_handle(name))
        if found is None:
            one = planned.get(name)
            if one is not None:
                note = "not applied yet: runbooks schedules apply"
                rows.append(Row(id=name, runbook=one.cadence.runbook, note=note, applied=False))
            continue
        rows.append(await _row(session, found))
    return rows


async def _row(session: Session, found: ScheduleDescription) -> Row:
    last = found.info.recent_actions[-1] if found.info.recent_actions else None
    action: Any = found.schedule.action
    run: Any = last.action if last else None
    upcoming = found.info.next_action_times
    return Row(
        id=found.id,
        runbook=action.workflow if isinstance(action, ScheduleActionStartWorkflow) else "?",
        next_at=upcoming[0] if upcoming and not found.schedule.state.paused else None,
        last_at=last.started_at if last else None,
        last_run=run.workflow_id if run else None,
        last_status=await _ended(session, run.workflow_id) if run else None,
        paused=found.schedule.state.paused,
        over=_over(found),
        note=found.schedule.state.note or "",
    )


async def _ended(session: Session, workflow_id: str) -> str:
    try:
        description = await session.handle(workflow_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return "no longer kept"
        raise
    return status(description.status or WorkflowExecutionStatus.RUNNING)


async def pause(session: Session, name: str, note: str) -> Row:
    """Have it start nothing until it is resumed.

    Raises:
        Problem: there is no such schedule.
    """
    handle = session.client.get_schedule_handle(name)
    await _required(session, handle)
    await handle.pause(note=note)
    return await _row(session, await handle.describe())


async def resume(session: Session, name: str, note: str) -> Row:
    """Have it start its runs again; what it would have started meanwhile is not made up.

    Raises:
        Problem: there is no such schedule.
    """
    handle = session.client.get_schedule_handle(name)
    await _required(session, handle)
    await handle.unpause(note=note)
    return await _row(session, await handle.describe())


def _over(found: ScheduleDescription) -> bool:
    """Whether its only date has passed, while it was paused for instance, and no run of it is there to set another."""
    return not found.info.next_action_times and not found.info.running_actions


async def _required(session: Session, handle: ScheduleHandle) -> None:
    if await _described(handle) is None:
        known = ", ".join([name async for name in _there(session)]) or "none; make them with runbooks schedules apply"
        raise Problem(f"there is no schedule {handle.id}; there are: {known}", Code.CONFLICT)


async def _described(handle: ScheduleHandle) -> ScheduleDescription | None:
    try:
        return await handle.describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def _there(session: Session) -> Any:
    async for one in await session.client.list_schedules():
        if one.id.startswith(PREFIX):
            yield one.id


async def _mark(session: Session, schedule: Schedule) -> str | None:
    """Which form of the plan a schedule was made by; None when it was not made by the plan."""
    memo = getattr(schedule.action, "memo", None) or {}
    if PLAN not in memo:
        return None
    (value,) = await session.client.data_converter.decode([memo[PLAN]])
    return str(value)


def _key(schedule: Schedule) -> str | None:
    """The key that a schedule of the plan is encrypted with. It lives for years, so it has to follow a rotation."""
    memo = getattr(schedule.action, "memo", None) or {}
    return encrypted_with(memo[PLAN]) if PLAN in memo else None


def _key_now(session: Session) -> str | None:
    used = session.client.data_converter.payload_codec
    return used.key_id if isinstance(used, EncryptionCodec) else None
