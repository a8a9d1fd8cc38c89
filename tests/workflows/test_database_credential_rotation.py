"""DatabaseCredentialRotation in a scripted world: true waits with time skipped, and every way it can end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from tests.histories import keep
from tests.workflows.credential_world import NEW, OLD, CredentialWorld, ShortHistories
from tests.workflows.probe import at_gate, failure, progress, until
from tests.workflows.rotation_world import begin, working
from workflows.model import Outcome, RunbookResult, State

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
NAME = "DatabaseCredentialRotation"


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


# --- to its end -----------------------------------------------------------------------------------------------------


async def test_the_old_user_goes_a_day_after_its_last_login(temporal: WorkflowEnvironment) -> None:
    world = CredentialWorld(lingers=26 * HOUR)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME, look_every="PT2H")
        result = await finished(handle)
    assert (result.outcome, world.users, world.served) == (Outcome.COMPLETED, {NEW}, NEW)
    assert world.switched is not None
    assert world.removed is not None
    assert 50 * HOUR <= world.removed - world.switched < 54 * HOUR, "a day of quiet after the 26 hours"
    assert [(item.id, item.note) for item in result.checklist if not item.done] == []
    entry = world.entries[handle.id]
    assert (entry.status, entry.old, entry.new) == ("completed", (OLD,), (NEW,))
    assert world.next[0].schedule.startswith("runbooks/database-credential-rotation/stage-")
    assert (world.next[0].at - entry.started_at).days == 182
    await keep(handle, NAME, "lingering")


async def test_in_use_to_the_end_people_are_asked(temporal: WorkflowEnvironment) -> None:
    world = CredentialWorld(lingers=1000 * DAY)
    world.answers = ["reject", "approve"]
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME, look_every="P1D", extension="P3D")
        result = await finished(handle)
        state = await progress(handle)
    assert result.outcome is Outcome.COMPLETED
    assert [gate.plan["in use"] for gate in state.gates] == ["yes", "yes"]
    assert world.removed is not None
    assert world.switched is not None
    assert world.removed - world.switched > 10 * DAY
    assert {item.id for item in result.checklist if not item.done} == {"clients"}
    await keep(handle, NAME, "in-use")


@pytest.mark.parametrize("why", ["untold", "held"])
async def test_silence_that_means_nothing_is_no_leave(temporal: WorkflowEnvironment, why: str) -> None:
    world = CredentialWorld(tells=why == "held")
    world.holders = ("backup.uri",) if why == "held" else ()
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME, look_every="P1D", max_extensions=0)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "Rejected"
    assert "can still log in" in error.message
    assert world.users == {OLD, NEW}
    plan = state.gates[0].plan
    assert (plan["in use"], plan["still named by"]) == (
        ("not known", "nothing that is known") if why == "untold" else ("no", "backup.uri")
    )


async def test_a_long_wait_goes_on_in_new_histories(temporal: WorkflowEnvironment) -> None:
    world = CredentialWorld(lingers=5 * DAY)
    async with working(temporal.client, world, ShortHistories) as queue:
        handle = await begin(temporal.client, queue, "ShortCredentialHistories", look_every="PT6H")
        result = await finished(handle)
        last = await temporal.client.get_workflow_handle(handle.id).fetch_history()
    assert (result.outcome, world.users) == (Outcome.COMPLETED, {NEW})
    assert last.run_id != handle.first_execution_run_id
    assert len(last.events) < 300
    assert all(item.done for item in result.checklist)


# --- when it must not go on -----------------------------------------------------------------------------------------


async def test_nothing_is_switched_to_a_login_that_does_not_work(client: Client) -> None:
    world = CredentialWorld()
    world.new_works = False
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME)
        error = await failure(handle)
    assert error.type == "NoLogin"
    assert (world.users, world.set_user, world.switched) == ({OLD}, OLD, None)
    await keep(handle, NAME, "no-login")


@pytest.mark.parametrize("fault", ["deploy", "ready"])
async def test_what_fails_before_the_wait_leaves_everything_as_it_was(client: Client, fault: str) -> None:
    world = CredentialWorld()
    world.failing_deploy = 1 if fault == "deploy" else None
    world.ready = fault != "ready"
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == {"deploy": "DeployFailed", "ready": "NotReady"}[fault]
    assert "Everything that was begun has been undone" in error.message
    assert (world.users, world.set_user, world.served) == ({OLD}, OLD, OLD)
    assert state.step("create").state is State.UNDONE  # type: ignore[union-attr]
    assert world.entries[handle.id].status == "ended"
    if fault == "deploy":
        await keep(handle, NAME, "deploy-fails")


async def test_an_abort_within_the_wait_goes_back(client: Client) -> None:
    world = CredentialWorld(lingers=DAY)
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME)
        state = await until(handle, lambda s: bool(s.waits))
        assert not state.lock.held, "others may work on the stage meanwhile"
        await handle.signal("abort", {"by": "bob", "reason": "wrong quarter"})
        error = await failure(handle)
    assert error.type == "Aborted"
    assert (world.users, world.set_user, world.served) == ({OLD}, OLD, OLD)
    await keep(handle, NAME, "aborted-in-the-wait")


async def test_a_removal_that_cannot_be_seen_makes_the_old_user_again(temporal: WorkflowEnvironment) -> None:
    world = CredentialWorld()
    world.needs_old = True
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME, look_every="P1D")
        error = await failure(handle)
    assert error.type == "NotReady"
    assert (world.users, world.served) == ({OLD, NEW}, NEW)
    assert f"The API works as {NEW}" in error.message


async def test_an_emergency_asks_and_does_not_wait(client: Client) -> None:
    world = CredentialWorld(lingers=DAY, production=True)
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME, emergency=True)
        state = await until(handle, at_gate)
        assert (state.gates[0].id, state.gates[0].plan["removed at once"]) == ("emergency", OLD)
        assert world.users == {OLD}
        await handle.signal("approve", {"by": "bob"})
        result = await finished(handle)
    assert (world.users, world.looked) == ({NEW}, [])
    assert {item.id for item in result.checklist if not item.done} == {"non-production", "clients"}
    await keep(handle, NAME, "emergency")


async def test_production_is_rotated_after_the_other_stage(temporal: WorkflowEnvironment) -> None:
    world = CredentialWorld(production=True)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME, look_every="P1D")
        await finished(handle)
    staging = [entry for entry in world.entries.values() if entry.stage == "staging"]
    assert [entry.status for entry in staging] == ["completed"]
    assert len(world.next) == 1, "the rehearsal schedules nothing"


@pytest.mark.parametrize("moment", ["credentials.create", pytest.param("deployments.again", marks=pytest.mark.long)])
async def test_the_worker_dies(temporal: WorkflowEnvironment, moment: str) -> None:
    """Between any two of 'created', 'stored', 'deployed', 'verified': the step is repeated and makes the same."""
    world = CredentialWorld()
    world.fail_after = moment
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, NAME, look_every="P1D"))
    assert (result.outcome, world.users, world.served) == (Outcome.COMPLETED, {NEW}, NEW)


async def test_a_dry_run_changes_nothing(client: Client) -> None:
    world = CredentialWorld(production=True)
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME, dry_run=True)
        result = await finished(handle)
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would "), result.summary
    assert (world.users, world.deploys, world.entries, world.next) == ({OLD}, 0, {}, [])
    said = "\n".join(result.would_change)
    for part in ("rotate staging first", "roles of api: readWrite@d", "connection string", "remove api"):
        assert part in said
    await keep(handle, NAME, "dry-run")
