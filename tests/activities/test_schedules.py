"""Schedules on a real server: one run at one moment, set as often as wanted."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from temporalio.client import Client, ScheduleOverlapPolicy
from temporalio.testing import ActivityEnvironment

from activities.schedules import NextRun, Schedules, Unschedule


def wanted(schedule: str, at: datetime) -> NextRun:
    return NextRun(
        schedule=schedule,
        runbook="ApiKeyRotation",
        input={"stage": "production", "reason": "every 90 days"},
        at=at,
        note="90 days after the last one",
    )


async def test_the_next_run_is_set_moved_and_removed(client: Client) -> None:
    name = f"rotation/{uuid.uuid4()}"
    schedules, run = Schedules(client, "runbooks"), ActivityEnvironment().run
    first = (datetime.now(UTC) + timedelta(days=90)).replace(microsecond=0)
    for at in (first, first, first + timedelta(days=3)):
        answer = await run(schedules.next_run, wanted(name, at))
        assert answer.at == at
        described = await client.get_schedule_handle(name).describe()
        assert described.info.next_action_times == [at], "exactly once, never in the year after"
        assert described.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
    await client.get_schedule_handle(name).pause(note="holidays")
    await run(schedules.next_run, wanted(name, first))
    state = (await client.get_schedule_handle(name).describe()).schedule.state
    assert (state.paused, state.note) == (True, "holidays"), "a person's pause stays, and why"
    assert (await run(schedules.remove, Unschedule(schedule=name))).existed
    assert not (await run(schedules.remove, Unschedule(schedule=name))).existed
