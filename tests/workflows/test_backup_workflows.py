"""Backup, restore and drill, end to end: a real server, real archives, real Temporal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from activities.settings import Settings
from tests.activities.conftest import wire_database  # noqa: F401  # a fixture
from tests.histories import keep
from tests.workflows.backup_world import World, begin, finished, serving, working
from tests.workflows.probe import at_gate, failure, outcome, progress, until
from workflows.backup_models import BACKUP_FACTS, DRILL_FACTS, RESTORE_FACTS
from workflows.model import Outcome, State

NewWorld = Callable[..., World]


@pytest.fixture
def new_world(wire_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewWorld]:  # noqa: F811
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(tmp_path / "none.toml"))
    made: list[World] = []
    settings = Settings()

    def make(**stage: Any) -> World:
        made.append(World(wire_database, tmp_path, settings, **stage))
        return made[-1]

    yield make
    for world in made:
        for name in world.databases():
            world.mongo.drop_database(name)
        world.mongo.close()


@pytest.fixture
def world(new_world: NewWorld) -> World:
    made = new_world()
    made.fill()
    return made


def replaced(world: World) -> bool:
    """Whether the data is again as it was when it was backed up."""
    return int(world.data["sessions"].count_documents({"status": "done"})) == 300


def spoil(world: World) -> None:
    world.data["sessions"].update_many({"_id": {"$lt": 200}}, {"$set": {"status": "oops"}})
    world.data["sessions"].delete_many({"_id": {"$gte": 250}})


async def backed_up(client: Client, queue: str, world: World) -> str:
    result = await finished(await begin(client, queue, world, "DatabaseBackup"))
    return str(result.facts["backup"])


# --- backup ---------------------------------------------------------------------------------------------------------


async def test_a_backup_is_made_verified_and_later_accepted(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        handle = await begin(client, queue, world, "DatabaseBackup")
        made = await finished(handle)
        assert made.outcome is Outcome.COMPLETED
        assert made.facts.keys() <= BACKUP_FACTS.keys()
        facts = made.facts
        assert (facts["collections"], facts["documents"], facts["verified"], facts["reused"]) == (2, 301, True, False)
        assert facts["backup"] == f"file://{world.archive()}"
        assert str(facts["consistency"]).startswith("not point in time")
        assert {item.id: item.done for item in made.checklist} == {"completed": True, "verified": True, "drill": False}
        await keep(handle, "DatabaseBackup", "made")

        recent = await begin(client, queue, world, "DatabaseBackup", max_age="PT1H")
        again = await finished(recent)
        assert (again.facts["reused"], again.facts["backup"]) == (True, facts["backup"])
        await keep(recent, "DatabaseBackup", "accepted")

        world.damage()
        anew = await finished(await begin(client, queue, world, "DatabaseBackup", max_age="PT1H"))
        assert anew.facts["reused"] is False
        assert anew.facts["backup"] != facts["backup"]
        old = await finished(await begin(client, queue, world, "DatabaseBackup", max_age="PT0.001S"))
        assert old.facts["reused"] is False


async def test_a_dry_run_makes_nothing(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        for runbook in ("DatabaseBackup",):
            result = await finished(await begin(client, queue, world, runbook, dry_run=True))
            assert result.outcome is Outcome.DRY_RUN
            assert len(result.would_change) == 1
        assert not world.archives.exists()
        await backed_up(client, queue, world)
        databases, archives = world.databases(), sorted(world.archives.rglob("*"))
        for runbook, inp in (("RestoreDrill", {}), ("DatabaseRestore", {"then": "replace"})):
            handle = await begin(client, queue, world, runbook, dry_run=True, **inp)
            result = await finished(handle)
            assert result.outcome is Outcome.DRY_RUN
            assert result.would_change
            state = await progress(handle)
            verify = state.step("verify")
            assert verify is not None
            assert verify.state is State.DONE, "what only looks really runs"
        assert (world.databases(), sorted(world.archives.rglob("*"))) == (databases, archives)
        assert world.told == []


@pytest.mark.parametrize(
    ("runbook", "inp", "says"),
    [
        ("DatabaseBackup", {"provider": "tape"}, "provider"),
        ("DatabaseBackup", {"provider": "atlas", "collections": ["a"]}, "whole cluster"),
        ("DatabaseRestore", {"backup": "ftp://x"}, "backup"),
        ("DatabaseRestore", {"point_in_time": "2026-01-20T12:00:00"}, "time zone"),
        ("DatabaseRestore", {"revert_deployment": True}, "replace or repoint"),
        ("RestoreDrill", {"max_age": "-PT1H"}, "max_age"),
    ],
)
async def test_input_that_does_not_fit(client: Client, world: World, runbook: str, inp: Any, says: str) -> None:
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, world, runbook, **inp))
        assert error.type == "BadInput"
        assert says in error.message


# --- drill ----------------------------------------------------------------------------------------------------------


async def test_a_drill_restores_compares_and_drops(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        reference = await backed_up(client, queue, world)
        spoil(world)
        handle = await begin(client, queue, world, "RestoreDrill")
        result = await finished(handle)
        assert result.facts.keys() <= DRILL_FACTS.keys()
        assert result.facts["backup"] == reference
        assert (result.facts["documents"], result.facts["indexes"], result.facts["identical"]) == (301, 1, True)
        assert all(item.done for item in result.checklist), result.checklist
        assert world.databases() == [world.database], "the scratch is gone"
        assert world.data["sessions"].count_documents({}) == 250, "the real database was only read"
        await keep(handle, "RestoreDrill", "identical")


async def test_a_backup_in_a_folder_with_a_space_can_be_named(client: Client, world: World) -> None:
    world.archives = world.archives.parent / "my archives"
    async with working(client, world) as queue:
        reference = await backed_up(client, queue, world)
        assert "/my archives/" in reference
        result = await finished(await begin(client, queue, world, "RestoreDrill", backup=reference))
        assert result.facts["backup"] == reference


async def test_a_drill_finds_a_damaged_backup(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        await backed_up(client, queue, world)
        world.damage()
        handle = await begin(client, queue, world, "RestoreDrill")
        error = await failure(handle)
        assert error.type == "DrillFailed"
        assert "sessions: its file 0002-" in error.message
        assert "is damaged" in error.message
        assert outcome(error).facts["identical"] is False
        assert world.databases() == [world.database], "nothing was restored"
        assert any("RestoreDrill" in message.title for message in world.told)
        await keep(handle, "RestoreDrill", "damaged")


async def test_a_drill_without_a_backup(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, world, "RestoreDrill"))
        assert error.type == "DrillFailed"
        assert "Run DatabaseBackup" in error.message


async def test_an_aborted_drill_drops_the_scratch(client: Client, world: World) -> None:
    world.data["sessions"].insert_many([{"_id": n, "text": "x" * 500} for n in range(1000, 41_000)])
    async with working(client, world) as queue:
        await backed_up(client, queue, world)
        handle = await begin(client, queue, world, "RestoreDrill")
        await until(handle, lambda s: s.step("restore").state is State.RUNNING)
        deadline = asyncio.get_running_loop().time() + 10
        while len(world.databases()) == 1:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        await handle.signal("abort", {"by": "bob"})
        error = await failure(handle)
        assert error.type == "Aborted"
        assert world.databases() == [world.database]
        undone = (await progress(handle)).step("undo-restore")
        assert undone is not None
        assert undone.state is State.DONE


@pytest.mark.long
async def test_a_drill_goes_on_with_another_worker(client: Client, world: World) -> None:
    world.data["sessions"].insert_many([{"_id": n, "text": "x" * 500} for n in range(1000, 41_000)])
    async with working(client, world) as queue:
        await backed_up(client, queue, world)
        handle = await begin(client, queue, world, "RestoreDrill")
        await until(handle, lambda s: s.step("restore").state is State.RUNNING)
    async with working(client, world, queue):
        result = await finished(handle)
        assert result.facts["identical"] is True
        history = await handle.fetch_history()
        attempts = [
            event.activity_task_started_event_attributes.attempt
            for event in history.events
            if event.HasField("activity_task_started_event_attributes")
        ]
        assert max(attempts) == 2, "the first worker stopped in the middle, and a second one went on"


# --- restore --------------------------------------------------------------------------------------------------------


async def test_a_restore_that_keeps_a_copy_beside(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        reference = await backed_up(client, queue, world)
        spoil(world)
        result = await finished(await begin(client, queue, world, "DatabaseRestore", backup=reference))
        assert result.facts["into"] == f"{world.database}_restored"
        assert world.mongo[f"{world.database}_restored"]["sessions"].count_documents({"status": "done"}) == 300
        assert not replaced(world)
        again = await failure(await begin(client, queue, world, "DatabaseRestore", backup=reference))
        assert again.type == "TargetNotEmpty"
        assert f"{world.database}_restored" in world.databases(), (
            "the copy of the first run is not the second's to drop"
        )


async def approve(handle: Any, gate: str) -> None:
    await until(handle, lambda s: at_gate(s) and s.open_gate().id == gate)
    await handle.signal("approve", {"by": "bob", "gate": gate})


async def test_a_restore_in_production_replaces_after_two_yeses(client: Client, new_world: NewWorld) -> None:
    world = new_world(production=True, gates={"default": {"approvals": 0}})
    world.fill()
    with serving(world):
        async with working(client, world) as queue:
            reference = await backed_up(client, queue, world)
            spoil(world)
            world.data["later"].insert_one({"_id": 1})
            handle = await begin(client, queue, world, "DatabaseRestore", then="replace")
            state = await until(handle, at_gate)
            gate = state.open_gate()
            assert gate is not None
            assert "30 to 60 minutes" in gate.question
            assert gate.needed == 1, "in production the policy cannot waive it"
            assert gate.plan["loses"].startswith("every write after ")
            assert not [name for name in world.databases() if name != world.database]
            await approve(handle, "approve-restore")
            await until(handle, lambda s: at_gate(s) and s.open_gate().id == "approve-finish")
            assert not replaced(world), "nothing real has changed yet"
            await approve(handle, "approve-finish")
            result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED, result.summary
        assert result.facts.keys() <= RESTORE_FACTS.keys()
        assert result.facts["safety_backup"] not in (None, reference)
        assert replaced(world)
        assert world.data["sessions"].count_documents({}) == 300
        assert world.data["later"].count_documents({}) == 1, "what the backup does not know is left alone"
        assert world.databases() == [world.database]
        ticked = {item.id: item.done for item in result.checklist}
        assert ticked == dict.fromkeys(ticked, True) | {"stakeholders": False}
        await keep(handle, "DatabaseRestore", "replaced")

        # The safety backup shows the spoiled data: nobody gets it by not naming a backup.
        async with working(client, world) as queue:
            drill = await finished(await begin(client, queue, world, "RestoreDrill"))
        assert drill.facts["backup"] == reference


async def test_a_no_at_the_last_gate_changes_nothing(client: Client, new_world: NewWorld) -> None:
    world = new_world(production=True)
    world.fill()
    async with working(client, world) as queue:
        await backed_up(client, queue, world)
        spoil(world)
        handle = await begin(client, queue, world, "DatabaseRestore", then="replace")
        await approve(handle, "approve-restore")
        await until(handle, lambda s: at_gate(s) and s.open_gate().id == "approve-finish")
        await handle.signal("reject", {"by": "bob", "reason": "too many writes since"})
        error = await failure(handle)
        assert error.type == "Rejected"
        assert world.databases() == [world.database], "the copy is dropped"
        assert world.data["sessions"].count_documents({}) == 250
        await keep(handle, "DatabaseRestore", "rejected")


async def test_not_ready_afterwards_and_a_no_puts_back_what_was_there(client: Client, world: World) -> None:
    with serving(world):
        world.ready = 503
        async with working(client, world) as queue:
            await backed_up(client, queue, world)
            spoil(world)
            handle = await begin(client, queue, world, "DatabaseRestore", then="replace")
            await approve(handle, "approve-restore")
            await approve(handle, "approve-finish")
            await until(handle, lambda s: at_gate(s) and s.open_gate().id == "keep-restored")
            assert replaced(world)
            await handle.signal("reject", {"by": "bob"})
            error = await failure(handle)
            assert error.type == "Rejected"
        assert world.data["sessions"].count_documents({"status": "oops"}) == 200
        assert world.data["sessions"].count_documents({}) == 250
        assert world.databases() == [world.database]
        await keep(handle, "DatabaseRestore", "put-back")


async def test_a_no_after_a_late_yes_puts_back_what_was_there_by_then(
    temporal: WorkflowEnvironment, world: World
) -> None:
    with serving(world):
        world.ready = 503
        async with working(temporal.client, world) as queue:
            await backed_up(temporal.client, queue, world)
            spoil(world)
            with temporal.with_time_skipping_disabled():
                handle = await begin(temporal.client, queue, world, "DatabaseRestore", then="replace")
            await approve(handle, "approve-restore")
            await until(handle, lambda s: at_gate(s) and s.open_gate().id == "approve-finish")
            world.data["sessions"].insert_one({"_id": 1000, "status": "written while it was asked"})
            await temporal.fast_forward(handle, timedelta(hours=5))
            await approve(handle, "approve-finish")
            state = await until(handle, lambda s: at_gate(s) and s.open_gate().id == "keep-restored")
            again = state.step("safety-again")
            assert again is not None
            assert f"what was there at {again.started_at:%d %b %H:%M} UTC" in state.open_gate().question
            await handle.signal("reject", {"by": "bob"})
            await failure(handle)
        assert world.data["sessions"].count_documents({"_id": 1000}) == 1
        assert world.data["sessions"].count_documents({"status": "oops"}) == 200
        await keep(handle, "DatabaseRestore", "put-back-late")


async def test_a_restore_after_everything_was_lost(client: Client, world: World) -> None:
    with serving(world):
        async with working(client, world) as queue:
            await backed_up(client, queue, world)
            world.mongo.drop_database(world.database)
            handle = await begin(client, queue, world, "DatabaseRestore", then="replace")
            await approve(handle, "approve-restore")
            await approve(handle, "approve-finish")
            await finished(handle)
        assert replaced(world)


async def test_a_damaged_backup_is_refused_before_anybody_is_asked(client: Client, world: World) -> None:
    async with working(client, world) as queue:
        await backed_up(client, queue, world)
        world.damage()
        handle = await begin(client, queue, world, "DatabaseRestore", then="replace")
        error = await failure(handle)
        assert error.type == "DamagedBackup"
        assert "Nothing had been changed" in error.message
        assert (await progress(handle)).gates == []
        assert replaced(world)


async def test_repointing_and_reverting_the_deployment(client: Client, world: World) -> None:
    with serving(world):
        async with working(client, world) as queue:
            await backed_up(client, queue, world)
            spoil(world)
            handle = await begin(
                client, queue, world, "DatabaseRestore", then="repoint", revert_deployment=True, revert_to="good"
            )
            await approve(handle, "approve-restore")
            await approve(handle, "approve-finish")
            result = await finished(handle)
        assert world.repointed == [f"{world.database}_restored"]
        assert [(revert["to"], revert["stage"]) for revert in world.reverts] == [("good", world.name)]
        assert result.facts["reverted"] == "good"
        assert not replaced(world), "the real database is left as it was"
        settings = next(item for item in result.checklist if item.id == "settings")
        assert not settings.done
        assert f"stages.{world.name}.database.name" in (settings.note or "")
        await keep(handle, "DatabaseRestore", "repointed")


async def test_not_ready_after_repointing_points_back(client: Client, world: World) -> None:
    with serving(world):
        world.ready = 503
        async with working(client, world) as queue:
            await backed_up(client, queue, world)
            handle = await begin(client, queue, world, "DatabaseRestore", then="repoint")
            await approve(handle, "approve-restore")
            await approve(handle, "approve-finish")
            await until(handle, lambda s: at_gate(s) and s.open_gate().id == "keep-restored")
            await handle.signal("reject", {"by": "bob"})
            await failure(handle)
        assert world.repointed == [f"{world.database}_restored", world.database]
        assert world.databases() == [world.database], "the copy is dropped after nobody works on it"
