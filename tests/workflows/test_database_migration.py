"""DatabaseMigration in a scripted world: the order of steps for each kind of change, refusals, the way back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.testing import WorkflowEnvironment

from tests.histories import keep
from tests.workflows.migration_world import BACKFILL, BACKUP, INDEX, NAME, UPDATE, World, begin, working
from tests.workflows.probe import at_gate, failure, outcome, progress, until
from workflows import policy
from workflows.database_migration_model import DatabaseMigrationInput
from workflows.model import Outcome, RunbookResult, RunState, State


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


async def answer(handle: Any, gate: str, word: str = "approve", **more: Any) -> RunState:
    """Answer that gate as soon as it is open; returns what the run showed then."""
    state = await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == gate)
    await handle.signal(word, {"by": "bob", "gate": gate, **more})
    return state


def ticked(result: RunbookResult) -> dict[str, bool]:
    return {item.id: item.done for item in result.checklist}


# --- the order of things --------------------------------------------------------------------------------------------


async def test_an_index_is_verified_before_its_code_is_deployed(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        state = await answer(handle, "approve-migration")
        assert world.done == [
            "production: backup",
            "staging: index",
            "staging: deploy new",
        ], "production is not touched, and staging is through, before anybody is asked"
        plan = state.open_gate().plan
        assert plan["change"] == f"add the index {NAME} {{owner: 1, created_at: -1}} to sessions"
        assert plan["estimate"] == "10 min by the rule of 5 min a GB, 10 s by the rate measured on staging"
        assert plan["staging"].startswith("add the index")
        assert plan["query now"] == "COLLSCAN"
        result = await finished(handle)
        assert world.done[3:] == ["production: index", "production: deploy new", f"production: drill {BACKUP}"]
        assert result.outcome is Outcome.COMPLETED
        assert all(ticked(result).values()), result.checklist
        assert result.facts["query_after"] == f"IXSCAN of {NAME}, examines 20 documents, 2.0 ms"
        assert "dropIndexes" in str(result.facts["rollback_plan"])
        assert BACKUP in str(result.facts["rollback_plan"])
        assert [(entry.stage.partition("-")[0], entry.outcome) for entry in world.log] == [
            ("staging", "completed"),
            ("production", "completed"),
        ]


@pytest.mark.long
async def test_people_deploy_the_code_where_no_release_is_named(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX)
        await answer(handle, "approve-migration")
        state = await answer(handle, "deploy-code")
        assert world.done[-1] == "production: index", "the index first"
        assert state.open_gate().plan["live code"] == "old"
        assert str(state.open_gate().plan["query now"]).startswith(f"IXSCAN of {NAME}")
        result = await finished(handle)
        assert result.facts["code"] == "confirmed by bob"
        assert [a.by for a in result.approvals] == ["bob", "bob"]


async def test_connections_of_the_former_release_are_given_time_to_end(temporal: WorkflowEnvironment) -> None:
    world = World()
    world.connected = [10, 40, 40, 12]
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, INDEX, release="new")
        await answer(handle, "approve-migration")
        result = await finished(handle)
        assert ticked(result)["database"], result.checklist
        assert (await progress(handle)).step("connections-after-settle").summary.startswith("waited 1 min")
        await keep(handle, "DatabaseMigration", "connections-settle")


@pytest.mark.long
async def test_connections_that_stay_are_not_called_stable(temporal: WorkflowEnvironment) -> None:
    world = World()
    world.connected = [10, 40]
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, INDEX, release="new")
        await answer(handle, "approve-migration")
        result = await finished(handle)
        told = next(item for item in result.checklist if item.id == "database")
        assert not told.done
        assert told.note == "10 connections, then 40; answers in 1 ms"
        assert (await progress(handle)).step("connections-after-settle").summary.startswith("waited 5 min")


@pytest.mark.parametrize(
    ("took", "good", "waited"),
    [pytest.param([500, 500, 300, 85], True, "waited 1 min", marks=pytest.mark.long), ([500], False, "waited 5 min")],
)
async def test_a_query_that_is_slower_is_timed_again(
    temporal: WorkflowEnvironment, took: list[float], good: bool, waited: str
) -> None:
    """The first two looks are those that count what is left."""
    world = World()
    world.took = took
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, BACKFILL, release="new")
        await answer(handle, "approve-migration")
        result = await finished(handle)
        told = next(item for item in result.checklist if item.id == "performance")
        assert told.done is good, told.note
        assert f"{took[-1]:.1f} ms" in str(told.note)
        assert f"{took[-1]:.1f} ms" in str(result.facts["query_after"])
        assert (await progress(handle)).step("query-settle").summary.startswith(waited)
        if good:
            await keep(handle, "DatabaseMigration", "query-settle")


@pytest.mark.parametrize("change", [BACKFILL, UPDATE], ids=["backfill_field", "update_documents"])
async def test_code_that_takes_both_forms_is_live_before_an_update(client: Client, change: dict[str, Any]) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, change, release="new")
        await answer(handle, "approve-migration")
        result = await finished(handle)
        assert world.done == [
            "production: backup",
            "staging: deploy new",
            "staging: update",
            "production: deploy new",
            "production: update",
            f"production: drill {BACKUP}",
        ]
        assert all(ticked(result).values()), result.checklist
        order = next(inp for name, inp in world.children if name == "BatchedUpdate" and "production" in inp["stage"])
        assert (order["approved"], order["journal"], order["collection"]) == (True, True, "sessions")
        if change is BACKFILL:
            assert order["filter"] == {"environment": {"$exists": False}}
            assert order["update"] == {"$set": {"environment": "production"}}
        assert "journal" in str(result.facts["rollback_plan"])


@pytest.mark.long
async def test_people_confirm_the_code_before_an_update(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL)
        await answer(handle, "approve-migration")
        await answer(handle, "code-deployed")
        await finished(handle)
        names = [name for name, _ in world.children]
        assert names == ["DatabaseBackup", "BatchedUpdate", "BatchedUpdate", "RestoreDrill"]


@pytest.mark.long
async def test_a_release_that_is_live_is_not_deployed_again(client: Client) -> None:
    world = World()
    world.live = {"production": "new", "staging": "new"}
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await answer(handle, "approve-migration")
        result = await finished(handle)
        assert not [line for line in world.done if "deploy" in line]
        assert result.facts["code"] == "new was live"


async def test_an_index_that_is_there_is_not_built_again(client: Client) -> None:
    world = World()
    world.index = {"production": NAME, "staging": NAME}
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX)
        await answer(handle, "approve-migration")
        await answer(handle, "deploy-code", "reject", reason="not yet")
        assert (await failure(handle)).type == "Rejected"
        assert not [line for line in world.done if "index" in line], "neither built nor dropped: it is not this run's"


async def test_on_the_staging_stage_itself_there_is_no_rehearsal(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, stage="staging-own", staging_stage="staging-own")
        await answer(handle, "approve-migration")
        await answer(handle, "deploy-code")
        await finished(handle)
        assert world.done == ["staging: backup", "staging: index", f"staging: drill {BACKUP}"]


async def test_a_dry_run_looks_on_both_stages_and_changes_nothing(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, dry_run=True)
        result = await finished(handle)
        assert result.outcome is Outcome.DRY_RUN
        assert world.done == []
        assert world.log == []
        assert any(line.startswith("on staging-") and "500 documents" in line for line in result.would_change)
        assert "give documents of sessions without environment this field, 4000 documents" in result.would_change
        index = await finished(await begin(client, queue, INDEX, dry_run=True, release="new"))
        assert any(line.startswith("add the index") for line in index.would_change)
        assert any(line.startswith("deploy new") for line in index.would_change)
        assert world.done == []


# --- staging cannot be skipped --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inp", "text"),
    [
        ({"staging_stage": "nowhere"}, "a migration needs a staging stage first: there is no stage 'nowhere'"),
        ({"stage": "production-x", "staging_stage": "production-x"}, "production and cannot be its own staging"),
        ({"staging_stage": "production-y"}, "is production too"),
        ({"stage": "staging-a", "staging_stage": "staging-b"}, "has the same database"),
    ],
)
async def test_no_staging_no_migration(client: Client, inp: dict[str, Any], text: str) -> None:
    world = World()
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, INDEX, **inp))
        assert (error.type, text in error.message) == ("NoStaging", True), error.message
        assert world.done == []


async def test_a_person_cannot_say_that_it_was_approved(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, approved=True)
        state = await until(handle, at_gate)
        assert state.open_gate().id == "approve-migration"
        assert "staging: index" in world.done
        await handle.signal("reject", {"by": "bob"})
        error = await failure(handle)
        assert "is as it was; staging keeps the change" in error.message
        assert world.index["production"] is None


async def test_what_fails_on_staging_never_reaches_production(client: Client) -> None:
    world = World()
    world.fail["build staging"] = "documents have the same values"
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, INDEX))
        assert error.type == "StagingFailed"
        assert "documents have the same values" in error.message
        assert world.done == ["production: backup", "staging: drop index"]
        assert world.index == {"production": None, "staging": None}


async def test_a_query_that_does_not_use_its_index_is_found_on_staging(client: Client) -> None:
    world = World()
    world.uses_index = False
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, INDEX))
        assert error.type == "StagingFailed"
        assert f"the query does not use index {NAME}: COLLSCAN" in error.message
        assert world.index["staging"] is None


# --- gates ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_the_gate_is_asked_again_when_the_collection_has_grown_a_lot(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        world.left["production"] += 900  # as a live collection does
        world.documents["production"] += 900
        await handle.signal("approve", {"by": "bob"})
        await finished(handle)
        assert next(gate for gate in (await progress(handle)).gates).asked == 1
        other = World()
    async with working(client, other) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        other.left["production"] += 5000
        await handle.signal("approve", {"by": "bob"})
        state = await until(handle, lambda s: any(g.asked == 2 for g in s.gates))
        assert state.open_gate().plan["to migrate"] == 9000
        await handle.signal("approve", {"by": "bob"})
        await finished(handle)


@pytest.mark.long
async def test_late_writers_are_asked_about_and_swept(client: Client) -> None:
    world = World()
    world.late = [0, 0, 7]  # on production: the first look after the update
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await answer(handle, "approve-migration")
        await answer(handle, "late-writers")
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        assert world.done.count("production: update") == 2
        assert "none left on two looks" in str(next(i for i in result.checklist if i.id == "migrated").note)


async def test_fewer_documents_have_to_be_explained_by_a_person(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await until(handle, at_gate)
        world.documents["production"] -= 5
        await handle.signal("approve", {"by": "bob"})
        # The plan that was approved is steady within its tolerance: the count before is the one that was shown.
        await answer(handle, "accept-count", reason="the nightly clean-up")
        result = await finished(handle)
        item = next(item for item in result.checklist if item.id == "data")
        assert item.done
        assert "5 fewer than before; explained by bob: the nightly clean-up" in str(item.note)


async def test_a_refused_login_ends_a_rehearsal(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policy.SCAN, "retry_policy", RetryPolicy(maximum_attempts=2))
    world = World()
    world.fail["look"] = "wrong user or password. Renew the database secret"
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, BACKFILL, dry_run=True))
    assert error.type == "Mongo18"
    assert "Renew the database secret" in error.message


# --- when it goes wrong ---------------------------------------------------------------------------------------------


async def test_abort_while_the_index_is_built_drops_it(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX)
        await until(handle, at_gate)
        world.hold["build"] = asyncio.Event()
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: "production: index" in world.done)
        await handle.signal("abort", {"by": "bob", "reason": "traffic"})
        await until(handle, lambda s: any("aborts" in entry.text for entry in s.timeline))
        world.hold["build"].set()
        error = await failure(handle)
        assert error.type == "Aborted"
        assert "State: 10000 documents" in error.message
        assert world.index["production"] is None
        assert world.log[-1].outcome == "aborted"


async def test_a_failing_deployment_takes_the_index_back_in_reverse_order(client: Client) -> None:
    world = World()
    world.live["staging"] = "new"
    world.fail["deploy new"] = "the build is broken"
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await answer(handle, "approve-migration")
        error = await failure(handle)
        assert "the build is broken" in error.message
        assert world.done[-2:] == ["production: deploy old", "production: drop index"]


@pytest.mark.long
async def test_an_unwell_api_is_asked_about_and_no_goes_back_by_the_journal(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        world.well = False
        await handle.signal("approve", {"by": "bob"})
        await answer(handle, "keep-migration", "reject", reason="errors")
        error = await failure(handle)
        assert error.type == "Rejected"
        assert world.done[-2:] == ["production: revert", "production: deploy old"]
        assert outcome(error).left_undone == []


@pytest.mark.long
async def test_half_an_update_without_a_journal_is_offered_the_backup_after_an_abort(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new", journal=False)
        await until(handle, at_gate)
        world.hold["BatchedUpdate"] = asyncio.Event()
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: len(world.children) == 3)  # backup, staging's update, production's update
        await handle.signal("abort", {"by": "bob"})
        await until(handle, lambda s: any("aborts" in entry.text for entry in s.timeline))
        world.hold["BatchedUpdate"].set()  # it was done before it heard of that
        state = await answer(handle, "restore-backup", "reject")
        assert "what was updated stays, there is no journal" in state.open_gate().plan["left"]
        assert (await failure(handle)).type == "LeftUndone"


@pytest.mark.long
@pytest.mark.parametrize("word", ["approve", "reject"])
async def test_what_cannot_be_undone_is_offered_the_backup(client: Client, word: str) -> None:
    world = World()
    world.fail["BatchedUpdate production"] = "left: 1,200 documents stay updated"
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new", journal=False)
        await answer(handle, "approve-migration")
        state = await answer(handle, "restore-backup", word)
        plan = state.open_gate().plan
        assert plan["backup"] == BACKUP
        assert "1,200 documents stay updated" in plan["left"]
        assert plan["lost"] == "every write since the backup"
        error = await failure(handle)
        restored = f"production: restore {BACKUP} replace" in world.done
        assert restored is (word == "approve")
        assert (error.type == "LeftUndone") is (word == "reject")
        assert bool(outcome(error).left_undone) is (word == "reject")
        assert "production: deploy old" in world.done


@pytest.mark.parametrize("word", ["approve", pytest.param("reject", marks=pytest.mark.long)])
async def test_a_journal_that_cannot_be_put_back_is_offered_the_backup(client: Client, word: str) -> None:
    """The update is through; a no afterwards goes back by the journal, which the database refuses."""
    world = World()
    world.fail["revert production"] = "the user lacks a role"
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        world.well = False
        await handle.signal("approve", {"by": "bob"})
        await answer(handle, "keep-migration", "reject", reason="errors")
        state = await answer(handle, "restore-backup", word)
        assert state.open_gate().plan["left"] == ("put the former values back by the journal: the user lacks a role")
        error = await failure(handle)
        restored = word == "approve"
        assert (f"production: restore {BACKUP} replace" in world.done) is restored
        assert (f"then {BACKUP} was restored" in error.message) is restored
        assert (error.type == "LeftUndone") is not restored
        assert bool(outcome(error).left_undone) is not restored
        if restored:
            await keep(handle, "DatabaseMigration", "restored-after-undo")


@pytest.mark.long
async def test_an_index_that_cannot_be_dropped_is_offered_the_backup(client: Client) -> None:
    world = World()
    world.fail["deploy new"] = "the build is broken"
    world.fail["drop production"] = "the user lacks a role"
    world.live["staging"] = "new"
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await answer(handle, "approve-migration")
        state = await answer(handle, "restore-backup", "reject")
        assert state.open_gate().plan["left"] == f"drop index {NAME}: the user lacks a role"
        error = await failure(handle)
        assert error.type == "LeftUndone"
        assert len(outcome(error).left_undone) == 2, "the index, and the backup that was not restored"


async def test_code_that_cannot_be_put_back_is_not_offered_the_backup(client: Client) -> None:
    world = World()
    world.live["staging"] = "new"
    world.fail["deploy old"] = "the build is gone"
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        world.well = False
        await handle.signal("approve", {"by": "bob"})
        await answer(handle, "keep-migration", "reject", reason="errors")
        assert (await failure(handle)).type == "LeftUndone"
        assert "restore-backup" not in [gate.id for gate in (await progress(handle)).gates]


async def test_late_writers_whose_update_stays_half_done_are_offered_the_backup(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        world.late = [7]
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == "late-writers")
        world.fail["BatchedUpdate production"] = "left: 3 documents stay updated"
        await handle.signal("approve", {"by": "bob", "gate": "late-writers"})
        state = await answer(handle, "restore-backup", "reject")
        assert state.open_gate().plan["left"] == "3 documents stay updated"
        error = await failure(handle)
        assert error.type == "LeftUndone"
        assert outcome(error).left_undone[0] == "3 documents stay updated"


async def test_what_was_asked_before_an_abort_is_not_asked_beside_the_backup(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new", journal=False)
        await until(handle, at_gate)
        world.late = [7]
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == "late-writers")
        await handle.signal("abort", {"by": "bob"})
        await until(handle, lambda s: any(gate.id == "restore-backup" for gate in s.gates))
        await handle.signal("reject", {"by": "bob"})  # which one need not be said
        assert (await failure(handle)).type == "LeftUndone"
        assert [gate.state for gate in (await progress(handle)).gates] == ["begun", "rejected", "rejected"]
        await keep(handle, "DatabaseMigration", "aborted-at-a-gate")


async def test_the_approval_of_a_restore_that_runs_is_not_taken_back(client: Client) -> None:
    world = World()
    world.fail["BatchedUpdate production"] = "left: 1,200 documents stay updated"
    world.hold["DatabaseRestore"] = asyncio.Event()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new", journal=False)
        await answer(handle, "approve-migration")
        await answer(handle, "restore-backup")
        await until(handle, lambda s: (step := s.step("restore")) and step.state is State.RUNNING)
        await handle.signal("revoke", {"by": "bob"})
        refused = "the step that 'restore-backup' released has begun: send abort instead"
        state = await until(handle, lambda s: any(refused in entry.text for entry in s.timeline))
        assert state.open_gate() is None
        world.hold["DatabaseRestore"].set()
        assert (await failure(handle)).type == "ChangeFailed"


async def test_a_backup_that_is_not_verified_stops_everything(client: Client) -> None:
    world = World()
    world.fail["DatabaseBackup production"] = "the disk is full"
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, INDEX))
        assert "the disk is full" in error.message
        assert world.index == {"production": None, "staging": None}


async def test_a_backup_that_no_restore_could_name_stops_everything(client: Client) -> None:
    world = World()
    world.backup = "tape://1"
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, INDEX))
        assert error.type == "NoBackup"
        assert "no restore can name the backup tape://1" in error.message
        assert world.index == {"production": None, "staging": None}


@pytest.mark.long
async def test_a_failed_drill_is_loud_and_undoes_nothing(client: Client) -> None:
    world = World()
    world.fail["RestoreDrill production"] = "checksums differ"
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await answer(handle, "approve-migration")
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        assert "THE BACKUP COULD NOT BE RESTORED: checksums differ" in result.summary
        assert ticked(result)["backup"] is False
        assert world.index["production"] == NAME
        assert any("could not be restored" in title for title in world.told)


async def test_a_drill_that_somebody_cancels_undoes_nothing(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await until(handle, at_gate)
        world.hold["RestoreDrill"], world.fail["RestoreDrill production"] = asyncio.Event(), "cancelled"
        await handle.signal("approve", {"by": "bob"})
        drill = client.get_workflow_handle(f"{handle.id}/drill")
        await until(handle, lambda s: world.children and world.children[-1][0] == "RestoreDrill" and not s.open_gate())
        await drill.cancel()
        world.hold["RestoreDrill"].set()
        result = await finished(handle)
        await keep(handle, "DatabaseMigration", "drill-cancelled")
    assert result.outcome is Outcome.COMPLETED
    assert "THE BACKUP COULD NOT BE RESTORED: RestoreDrill was cancelled" in result.summary
    assert world.index["production"] == NAME


@pytest.mark.long
async def test_cancel_of_the_run_below_is_awaited(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        handle = await begin(client, queue, BACKFILL, release="new")
        await until(handle, at_gate)
        world.hold["BatchedUpdate"] = asyncio.Event()
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: len(world.children) == 3)  # backup, staging's update, production's update
        await handle.signal("abort", {"by": "bob"})
        await until(handle, lambda s: any("aborts" in entry.text for entry in s.timeline))
        world.hold["BatchedUpdate"].set()
        error = await failure(handle)
        assert error.type == "Aborted"
        assert world.done[-2:] == ["production: revert", "production: deploy old"], (
            "it was done before it heard of that"
        )


# --- what stands in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "extra", "kind"),
    [
        (INDEX, {"problems": ["d.sessions is a view"]}, "CannotMigrate"),
        (INDEX, {"covered_by": "longer"}, "RedundantIndex"),
        (BACKFILL, {"remaining": 2_000_000}, "TooManyForJournal"),
    ],
)
async def test_what_the_plan_finds_is_refused(
    client: Client, change: dict[str, Any], extra: dict[str, Any], kind: str
) -> None:
    world = World()
    world.look_extra = extra
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, change))
        assert error.type == kind
        assert error.message.endswith("Nothing had been changed")
        assert world.done == []


async def test_a_release_that_is_gone_costs_nothing(client: Client) -> None:
    world = World()
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, INDEX, release="gone"))
        assert (error.type, "there is no saved build gone" in error.message) == ("ReleaseUnusable", True)
        assert world.done == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({**BACKFILL, "kind": "drop_everything"}, "'add_index', 'backfill_field', 'update_documents'"),
        ({**INDEX, "keys": {}}, "at least 1 item"),
        ({**INDEX, "keys": {"_id": 1}}, "_id has its index already"),
        ({**INDEX, "keys": {"owner": 2}}, "Input should be 1 or -1"),
        ({**INDEX, "keys": {"$owner": 1}}, "should match pattern"),
        ({**INDEX, "query": {}}, "at least 1 item"),
        ({**INDEX, "query": {"$where": "1"}}, "runs code"),
        ({**INDEX, "collection": "system.users"}, "belongs to the server"),
        ({**INDEX, "surprise": 1}, "Extra inputs are not permitted"),
        ({**BACKFILL, "field": "_id"}, "touches _id"),
        ({**BACKFILL, "field": "$x"}, "should match pattern"),
        ({**BACKFILL, "value": {"$date": "tomorrow"}}, "not Extended JSON"),
        ({k: v for k, v in BACKFILL.items() if k != "value"}, "Field required"),
        ({**UPDATE, "filter": {}}, "the filter is empty"),
        ({**UPDATE, "all_documents": True}, "this one is not empty"),
        ({**UPDATE, "update": {"$set": {"_id": 1}}}, "touches _id"),
        ({**UPDATE, "update": {"status": "x"}}, "is not an operator"),
        ({**UPDATE, "update": {"$setOnInsert": {"a": 1}}}, "is not allowed"),
        ({**UPDATE, "update": [{"$lookup": {}}]}, "no stage of an update"),
        ({**UPDATE, "update": [{"$set": {"a": 1}, "$unset": "b"}]}, "exactly one field"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DatabaseMigrationInput.model_validate({"stage": "production", "reason": "x", "change": change})
    assert text in str(refused.value)


# --- the maintenance window -----------------------------------------------------------------------------------------


def window(opens: datetime, length: timedelta) -> dict[str, Any]:
    closes = opens + length
    every = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    return {"windows": [{"days": every, "opens": f"{opens:%H:%M}", "closes": f"{closes:%H:%M}"}]}


def tonight(length: timedelta = timedelta(hours=4)) -> dict[str, Any]:
    """A window of every day that opens in about six hours."""
    return {
        "maintenance": window(datetime.now(UTC) + timedelta(hours=6), length),
        "gates": {"default": {"approvals": 0}},
    }


@pytest.mark.long
async def test_it_waits_through_a_closed_window_to_the_next_night(temporal: WorkflowEnvironment) -> None:
    world = World(**tonight())
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, BACKFILL, release="new")
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        waited = (await progress(handle)).step("window")
        assert waited.state is State.DONE
        assert timedelta(hours=5, minutes=55) < waited.ended_at - waited.started_at <= timedelta(hours=6)
        backup = next(inp for name, inp in world.children if name == "DatabaseBackup")
        assert backup
        order = next(inp for name, inp in world.children if name == "BatchedUpdate" and "production" in inp["stage"])
        until_ = datetime.fromisoformat(order["until"])
        assert until_ > waited.ended_at + timedelta(hours=3), "it parks when the window closes"
        assert len(order["windows"]) == 30
        assert datetime.fromisoformat(order["windows"][0]["opens"]) > until_


async def test_refuse_instead_of_waiting(temporal: WorkflowEnvironment) -> None:
    world = World(**tonight())
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, INDEX, when_closed="refuse"))
        assert error.type == "WindowClosed"
        assert "the next one opens" in error.message
        assert world.done == []


async def test_no_window_is_long_enough(temporal: WorkflowEnvironment) -> None:
    world = World(**tonight())
    world.size = 100 * 1024**3  # 8 h 20 min by the document's rule
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, INDEX))
        assert error.type == "WindowTooShort"
        assert "it takes about 8 h 20 min" in error.message


async def test_an_operator_ends_the_wait_and_goes_on_outside_of_the_window(client: Client) -> None:
    world = World(**tonight())
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await until(handle, lambda s: bool(s.waits))
        await handle.execute_update("end_wait", {"by": "bob", "reason": "it is urgent"})
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        assert any("outside of the maintenance window" in entry.text for entry in (await progress(handle)).timeline)


async def test_the_stage_is_left_to_others_while_the_window_is_waited_for(client: Client) -> None:
    """Waiting for hours with the lock would keep a rollback from its stage."""
    world = World(**tonight())
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        state = await until(handle, lambda s: bool(s.waits))
        assert not state.lock.held
        await handle.signal("abort", {"by": "bob"})
        assert (await failure(handle)).type == "Aborted"


async def test_a_window_that_has_closed_before_the_yes_is_waited_for_again(temporal: WorkflowEnvironment) -> None:
    """The yes takes six hours, the window closes in two: it goes on a day later, with a backup of that day."""
    slow = {"time_limit": "PT6H", "remind_every": "PT6H", "on_timeout": "approve"}
    open_now = window(datetime.now(UTC) - timedelta(hours=1), timedelta(hours=3))
    world = World(maintenance=open_now, gates={"approve-migration": slow})
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, BACKFILL, release="new")
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        state = await progress(handle)
        assert state.step("window") is None, "it was open at first"
        waited = state.step("window-again")
        assert timedelta(hours=16) < waited.ended_at - waited.started_at < timedelta(hours=18)
        assert [entry.text for entry in state.timeline].count("has " + str(state.stage) + " to itself") == 2
        assert world.done == [
            "production: backup",
            "staging: deploy new",
            "staging: update",
            "production: backup",
            "production: deploy new",
            "production: update",
            f"production: drill {BACKUP}",
        ]


async def test_what_has_grown_out_of_every_window_is_not_begun(client: Client) -> None:
    world = World(maintenance=window(datetime.now(UTC) - timedelta(hours=1), timedelta(hours=3)))
    async with working(client, world) as queue:
        handle = await begin(client, queue, INDEX, release="new")
        await until(handle, at_gate)
        world.size = 40 * 1024**3  # 3 h 20 min by the rule: no longer fits, in none
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: any(g.asked == 2 for g in s.gates))
        await handle.signal("approve", {"by": "bob"})
        error = await failure(handle)
        assert error.type == "WindowTooShort"
        assert world.index["production"] is None
