"""Temporal schedules: when a run begins by itself.

A schedule is reached by its id, so setting it twice is setting it once. All of them skip a run that would begin while
the one before it still goes on.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import Field
from temporalio import activity
from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleCalendarSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import passing
from activities.evidence import Finding
from activities.stage import Facts

if TYPE_CHECKING:
    from temporalio.client import Client

CATCH_UP = timedelta(days=7)
"""A run whose moment passed while Temporal was away is begun as long as it is no older than this."""


PREFIX = "runbooks/"


def schedule_id(runbook: str, stage: str) -> str:
    """Id of the schedule of a runbook on a stage: one of each, whoever sets it."""
    kebab = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", runbook).lower()
    return f"{PREFIX}{kebab}/{stage}"


def runs_of(schedule: str) -> str:
    """What the ids of the runs that a schedule starts begin with; Temporal adds the moment."""
    return f"{schedule}/run"


class NextRun(Facts):
    """One run of a runbook at a moment to come."""

    schedule: str = Field(description="Id of the schedule: the same id is the same schedule, set anew")
    runbook: str
    input: dict[str, Any] = Field(description="What the run is started with")
    at: datetime
    note: str = Field(description="Why then, for who looks at the schedule")


class Scheduled(Finding):
    schedule: str
    at: datetime


class Unschedule(Facts):
    schedule: str


class Unscheduled(Finding):
    existed: bool


class Schedules:
    """Temporal as the calendar."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue

    @activity.defn(name="schedules.next_run")
    async def next_run(self, wanted: NextRun) -> Scheduled:
        """Have the runbook begin once at that moment; a moment that was set before is replaced."""
        schedule = once(wanted, self._task_queue)
        try:
            try:
                await self._client.create_schedule(wanted.schedule, schedule)
            except ScheduleAlreadyRunningError:
                await self._client.get_schedule_handle(wanted.schedule).update(_replacing(schedule))
        except RPCError as error:
            raise passing(f"could not set the schedule {wanted.schedule}: {error.status.name}") from None
        return Scheduled(
            summary=f"{wanted.runbook} runs next on {wanted.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            schedule=wanted.schedule,
            at=wanted.at,
        )

    @activity.defn(name="schedules.remove")
    async def remove(self, asked: Unschedule) -> Unscheduled:
        """Delete a schedule; one that does not exist is deleted."""
        try:
            await self._client.get_schedule_handle(asked.schedule).delete()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return Unscheduled(summary=f"there was no schedule {asked.schedule}", existed=False)
            raise passing(f"could not remove the schedule {asked.schedule}: {error.status.name}") from None
        return Unscheduled(summary=f"schedule {asked.schedule} is removed", existed=True)


def once(wanted: NextRun, task_queue: str) -> Schedule:
    """The schedule that starts one run, at one minute of one day."""
    at = wanted.at.astimezone(UTC)
    return Schedule(
        action=ScheduleActionStartWorkflow(
            wanted.runbook,
            wanted.input,
            id=runs_of(wanted.schedule),
            task_queue=task_queue,
            static_summary=wanted.note[:200],
        ),
        spec=ScheduleSpec(
            calendars=[
                ScheduleCalendarSpec(
                    second=_only(at.second),
                    minute=_only(at.minute),
                    hour=_only(at.hour),
                    day_of_month=_only(at.day),
                    month=_only(at.month),
                    year=_only(at.year),
                    comment=wanted.note[:200],
                )
            ]
        ),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCH_UP),
        state=ScheduleState(note=wanted.note[:200]),
    )


def _only(value: int) -> list[ScheduleRange]:
    return [ScheduleRange(value)]


def _replacing(schedule: Schedule) -> Any:
    def update(found: ScheduleUpdateInput) -> ScheduleUpdate:
        state = found.description.schedule.state
        if state.paused:  # somebody who paused it meant the next run too
            schedule.state.paused, schedule.state.note = True, state.note
        return ScheduleUpdate(schedule=schedule)

    return update
