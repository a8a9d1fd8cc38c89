"""Schedules as code: what there should be, and that applying it makes just that."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client, ScheduleOverlapPolicy
from temporalio.service import RPCError, RPCStatusCode

from activities.schedules import NextRun, Schedules, runs_of, schedule_id
from activities.settings import Settings
from activities.stage import RotationPolicy
from starters import schedule_plan
from starters.problems import Problem
from starters.schedule_plan import CADENCES, Cadence, plan
from tests.patience import eventually
from tests.starters.conftest import Cli, House
from tests.worker.test_process import SETTINGS
from tests.workflows.probe import Probe, at_gate
from workflows.api_key_model import ApiKeyRotationInput
from workflows.backup_check import BackupCheckInput
from workflows.catalog import RUNBOOKS

STAGES = SETTINGS + SETTINGS.replace("test", "production").replace(
    'function = "f"', 'function = "f"\nproduction = true'
)
WEEKLY = Cadence("Probe", "weekly", "to see it", every=timedelta(days=7), catch_up=timedelta(days=1))
RENEWED = Cadence("Probe", "weekly", "to see it", every=timedelta(days=7), catch_up=timedelta(days=1), renewed=True)


def settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    file = tmp_path / "runbooks.toml"
    file.write_text(STAGES)
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(file))
    return Settings()


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_documents_cadences_are_planned_for_every_stage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(settings(tmp_path, monkeypatch), RUNBOOKS)
    ids = {one.id for one in planned}
    assert {"runbooks/restore-drill/production", "runbooks/rehearsal/test", "runbooks/rehearsal/production"} <= ids
    assert "runbooks/restore-drill/test" not in ids
    assert len(ids) == len(planned)
    for one in planned:
        schedule: Any = one.schedule
        assert schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
        assert schedule.policy.catchup_window >= timedelta(hours=12)
        assert schedule.spec.jitter
        assert schedule.state.note.startswith(f"{one.cadence.runbook} on {one.stage}, ")
        assert schedule.action.args[0]["requested_by"] == f"schedule {one.id}"


def test_a_rotation_is_planned_where_its_secret_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = settings(tmp_path, monkeypatch)
    assert not [one for one in plan(known, RUNBOOKS) if "rotation" in one.id]
    for stage in known.stages.values():
        named = {name: {"name": "Secret", "store": f"app/{stage.name}"} for name in ("api_keys", "database", "signing")}
        known.stages[stage.name] = stage.model_copy(update={"rotation": RotationPolicy.model_validate(named)})
    ids = {one.id for one in plan(known, RUNBOOKS)}
    for runbook in ("ApiKeyRotation", "DatabaseCredentialRotation", "SigningSecretRotation"):
        assert {schedule_id(runbook, stage) for stage in known.stages} <= ids


def test_what_rehearses_production_is_over_before_its_turn(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its own grace the other stage can neither be rotated again nor count as rotated."""
    known = settings(tmp_path, monkeypatch)

    def graces(rehearse_on: str | None) -> dict[str, timedelta]:
        for stage in known.stages.values():
            keys = {"name": "Secret", "store": f"app/{stage.name}"}
            rotation = {"api_keys": keys, "rehearse_on": rehearse_on if stage.production else None}
            known.stages[stage.name] = stage.model_copy(update={"rotation": RotationPolicy.model_validate(rotation)})
        found = {one.stage: one for one in plan(known, RUNBOOKS) if one.cadence.runbook == "ApiKeyRotation"}
        inputs: dict[str, Any] = {name: one.schedule.action for name, one in found.items()}
        return {name: ApiKeyRotationInput.model_validate(one.args[0]).grace for name, one in inputs.items()}

    days = timedelta(days=1)
    (cadence,) = (one for one in CADENCES if one.runbook == "ApiKeyRotation")
    rehearsed = graces("test")
    assert rehearsed["production"] == 30 * days
    ends = rehearsed["test"] + days
    assert ends < cadence.production_later, "with a day for its decisions"
    newest = ApiKeyRotationInput(stage="production", reason="r").rehearsal_max_age
    assert cadence.production_later - rehearsed["test"] < newest
    assert graces(None) == {"test": 30 * days, "production": 30 * days}


def test_archives_are_made_daily_before_they_are_looked_for(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = settings(tmp_path, monkeypatch)
    backup = known.stages["test"].backup
    known.stages["test"] = known.stages["test"].model_copy(
        update={"backup": backup.model_copy(update={"provider": "atlas"})}
    )
    planned: dict[str, Any] = {one.id: one.schedule.spec for one in plan(known, RUNBOOKS)}
    assert "runbooks/database-backup/test" not in planned, "Atlas makes its own"
    made, looked = (planned[f"runbooks/{name}/production"] for name in ("database-backup", "backup-check"))
    (made_at,), (looked_at,) = made.calendars[0].hour, looked.calendars[0].hour
    assert looked_at.start - made_at.start == 3
    assert made.time_zone_name == looked.time_zone_name
    age = timedelta(hours=looked_at.start + 24 - made_at.start) - made.jitter
    assert age > BackupCheckInput(stage="production", reason="r").max_age, "yesterday's does not pass for today's"


def test_every_cadence_says_when() -> None:
    for cadence in CADENCES:
        assert cadence.every or cadence.day or cadence.words == "daily", cadence.runbook
        assert not cadence.day or cadence.day - cadence.production_later.days >= 1
        assert not cadence.day or cadence.day <= 28, "every month has it"


def test_the_same_plan_has_the_same_mark_and_another_has_another(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = settings(tmp_path, monkeypatch)
    marks = {one.id: one.mark for one in plan(known, RUNBOOKS)}
    assert marks == {one.id: one.mark for one in plan(known, RUNBOOKS)}
    other = known.model_copy(update={"task_queue": "elsewhere"})
    assert not set(marks.values()) & {one.mark for one in plan(other, RUNBOOKS)}


def test_production_comes_after_the_others(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        schedule_plan, "CADENCES", (Cadence(**{**vars(WEEKLY), "production_later": timedelta(days=2)}),)
    )
    offsets = {
        one.stage: one.schedule.spec.intervals[0].offset for one in plan(settings(tmp_path, monkeypatch), (Probe,))
    }
    assert offsets == {"test": timedelta(hours=9), "production": timedelta(days=2, hours=9)}


def test_an_input_that_the_runbook_does_not_take_is_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_plan, "CADENCES", (Cadence(**{**vars(WEEKLY), "input": {"to": "far"}}),))
    with pytest.raises(Problem, match="Probe does not take the input of its schedule: to: "):
        plan(settings(tmp_path, monkeypatch), (Probe,))


# --- in Temporal -----------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def schedules(
    house: House, client: Client, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    """A weekly schedule for probes on two stages, and nothing left behind."""
    monkeypatch.setattr(schedule_plan, "CADENCES", (WEEKLY,))
    file = tmp_path / "runbooks.toml"
    file.write_text(f'task_queue = "{house.queue}"\n{STAGES}')
    yield client
    async for one in await client.list_schedules():
        try:
            await client.get_schedule_handle(one.id).delete()
        except RPCError as error:  # it is deleted, and the list hears of that later
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


async def test_applying_twice_is_applying_once(schedules: Client, cli: Cli) -> None:
    first = await cli("schedules", "apply", "--json")
    assert {one["id"]: one["did"] for one in first.document} == {
        "runbooks/probe/test": "created",
        "runbooks/probe/production": "created",
    }
    before = await schedules.get_schedule_handle("runbooks/probe/test").describe()
    second = await cli("schedules", "apply", "--json")
    assert {one["did"] for one in second.document} == {"unchanged"}
    after = await schedules.get_schedule_handle("runbooks/probe/test").describe()
    assert after.info.next_action_times == before.info.next_action_times


async def test_a_changed_plan_updates_and_a_pause_stays(
    schedules: Client, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cli("schedules", "apply")
    paused = await cli("schedules", "pause", "runbooks/probe/test", "--by", "ann", "--reason", "freeze")
    assert (paused.code, "paused by ann: freeze" in paused.out) == (0, True)
    monkeypatch.setattr(schedule_plan, "CADENCES", (Cadence(**{**vars(WEEKLY), "hour": 11}),))
    done = await cli("schedules", "apply", "--json")
    assert {one["did"] for one in done.document} == {"updated"}
    found = await schedules.get_schedule_handle("runbooks/probe/test").describe()
    assert found.schedule.spec.intervals[0].offset == timedelta(hours=11)
    assert (found.schedule.state.paused, found.schedule.state.note) == (True, "paused by ann: freeze")
    resumed = await cli("schedules", "resume", "runbooks/probe/test", "--by", "bob")
    assert "resumed by bob; next 20" in resumed.out


async def test_a_date_that_a_run_has_set_is_kept(
    schedules: Client, house: House, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_plan, "CADENCES", (RENEWED,))
    await cli("schedules", "apply")
    due = datetime(2031, 5, 6, 7, 8, tzinfo=UTC)
    name = schedule_id("Probe", "production")
    wanted = NextRun(schedule=name, runbook="Probe", input={"stage": "production"}, at=due, note="90 days after")
    await Schedules(schedules, house.queue).next_run(wanted)
    done = await cli("schedules", "apply", "--json")
    assert {one["id"]: one["did"] for one in done.document} == {name: "kept", "runbooks/probe/test": "unchanged"}
    assert (await schedules.get_schedule_handle(name).describe()).info.next_action_times == [due]


async def set_once(house: House, stage: str, at: datetime, **inp: Any) -> str:
    """The schedule of probes on a stage with one date, as a run sets it."""
    name = schedule_id("Probe", stage)
    wanted = NextRun(schedule=name, runbook="Probe", input={"stage": stage, **inp}, at=at, note="90 days after")
    await Schedules(house.client, house.queue).next_run(wanted)
    return name


async def test_a_date_that_has_passed_is_said_and_planned_anew(
    schedules: Client, house: House, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_plan, "CADENCES", (RENEWED,))
    await cli("schedules", "apply")
    name = schedule_id("Probe", "production")
    await cli("schedules", "pause", name, "--by", "ann", "--reason", "freeze")
    await set_once(house, "production", datetime(2031, 5, 6, 7, 8, tzinfo=UTC))
    done = await cli("schedules", "apply", "--json")
    assert {one["id"]: one["did"] for one in done.document}[name] == "kept", "a pause alone is no end"
    await set_once(house, "production", datetime(2021, 5, 6, 7, 8, tzinfo=UTC))
    resumed = await cli("schedules", "resume", name, "--by", "bob")
    assert "never again: runbooks schedules apply" in resumed.out
    assert "never again" in (await cli("schedules", "list")).out
    await cli("schedules", "pause", name, "--by", "ann", "--reason", "freeze")
    done = await cli("schedules", "apply", "--json")
    assert {one["id"]: one["did"] for one in done.document}[name] == "updated"
    found = await schedules.get_schedule_handle(name).describe()
    assert (found.schedule.state.paused, found.schedule.state.note) == (True, "paused by ann: freeze")
    resumed = await cli("schedules", "resume", name, "--by", "bob")
    assert "resumed by bob; next 20" in resumed.out


async def test_while_its_run_goes_on_a_passed_date_is_kept(
    schedules: Client, house: House, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(schedule_plan, "CADENCES", (RENEWED,))
    stage = f"stage-{uuid.uuid4().hex[:8]}"
    (tmp_path / "runbooks.toml").write_text(f'task_queue = "{house.queue}"\n{SETTINGS.replace("test", stage)}')
    name = await set_once(house, stage, datetime(2021, 5, 6, 7, 8, tzinfo=UTC), reason="due", requested_by="ann")
    await schedules.get_schedule_handle(name).trigger()

    async def asks() -> Any:
        running = (await schedules.get_schedule_handle(name).describe()).info.running_actions
        return running and await house.until(running[0].workflow_id, at_gate)  # type: ignore[attr-defined]

    await eventually(asks, "the run of the schedule at its gate")

    async def did() -> str:
        (done,) = (await cli("schedules", "apply", "--json")).document
        return str(done["did"])

    assert await did() == "kept", "its end sets the next date"
    (running,) = (await schedules.get_schedule_handle(name).describe()).info.running_actions
    run: Any = running
    assert run.workflow_id.startswith(runs_of(name)), "by which a run knows that its schedule began it"
    await schedules.get_workflow_handle(run.workflow_id).terminate()

    async def planned() -> bool:
        return await did() == "updated"

    await eventually(planned, "a run that was terminated sets no date: the plan does")


async def test_ids_are_shown_whole(schedules: Client, cli: Cli, tmp_path: Any) -> None:
    stage = "a-stage-with-a-name-of-its-own-in-another-region-of-the-world"
    (tmp_path / "runbooks.toml").write_text(SETTINGS.replace("test", stage))
    name = schedule_id("Probe", stage)
    assert "\u2026" not in (await cli("schedules", "apply")).out
    shown = (await cli("schedules", "list")).out
    assert name in "".join(line.split("  ")[0].strip() for line in shown.splitlines())
    (tmp_path / "runbooks.toml").write_text("")

    async def told() -> bool:
        return f"temporal schedule delete --schedule-id {name}\n" in (await cli("schedules", "apply")).out

    await eventually(told, "the command that deletes it, in one line; visibility is a moment behind")


async def test_a_schedule_starts_its_run_and_the_list_tells_how_it_ended(
    schedules: Client, house: House, cli: Cli
) -> None:
    await cli("schedules", "apply")
    await schedules.get_schedule_handle("runbooks/probe/test").trigger()

    async def ran() -> Any:
        rows = (await cli("schedules", "list", "--json")).document
        return next((row for row in rows if row["last_status"] == "failed"), None)

    row = await eventually(ran, "the run of the schedule in the list")
    assert row["id"] == "runbooks/probe/test"
    state = await house.progress(row["last_run"])
    assert (state.stage, state.requested_by) == ("test", "schedule runbooks/probe/test")
    assert state.summary.startswith("there is no stage 'test'"), "the probes' world has other stages"


async def test_what_is_no_longer_planned_is_named_and_left(schedules: Client, cli: Cli, tmp_path: Any) -> None:
    await cli("schedules", "apply")
    (tmp_path / "runbooks.toml").write_text(SETTINGS)

    async def named() -> Any:
        done = (await cli("schedules", "apply", "--json")).document
        return [one for one in done if one["did"] == "not in the plan"]

    (strange,) = await eventually(named, "the schedule of the stage that is gone; visibility is a moment behind")
    assert "temporal schedule delete --schedule-id runbooks/probe/production" in strange["note"]


async def test_an_unknown_schedule_is_said(schedules: Client, cli: Cli) -> None:
    said = await cli("schedules", "pause", "nightly", "--by", "ann")
    assert (said.code, "there is no schedule nightly; there are: " in said.err) == (3, True)


# --- examples --------------------------------------------------------------------------------------------------------


async def test_examples_are_started_once_on_the_named_stage(schedules: Client, house: House, cli: Cli) -> None:
    first = await cli("examples", "test", "--json")
    assert first.document == {"example-Probe": True}
    assert (await cli("examples", "test", "--json")).document == {"example-Probe": False}
    state = await house.progress("example-Probe")
    assert (state.dry_run, state.stage, state.reason) == (True, "test", "to see it turn")
    said = await cli("examples", "nowhere")
    assert (said.code, "there are: test, production" in said.err) == (2, True)
