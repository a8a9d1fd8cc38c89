"""SigningSecretRotation in a scripted world: the proof, the switch, the wait, and every way it can end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from activities.rotation_models import RotationEntry
from tests.histories import keep
from tests.workflows.probe import at_gate, failure, progress, until
from tests.workflows.rotation_world import begin, working
from tests.workflows.signing_world import NEW, OLD, SigningWorld
from workflows.model import Outcome, RunbookResult, RunState, State

HOUR = timedelta(hours=1)
BEFORE = (OLD, (OLD,))
BOTH = (NEW, (OLD, NEW))
AFTER = (NEW, (NEW,))
NAME = "SigningSecretRotation"


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


def text(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


# --- to its end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life", "least"),
    [
        (HOUR, 12 * HOUR),  # as the settings say
        (20 * HOUR, 20 * HOUR),  # a longer one was seen
    ],
)
async def test_old_tokens_live_to_their_end(temporal: WorkflowEnvironment, life: timedelta, least: timedelta) -> None:
    world = SigningWorld(life=life)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME)
        result = await finished(handle)
    assert (result.outcome, world.served) == (Outcome.COMPLETED, AFTER)
    assert world.signed_at is not None
    assert world.removed_at is not None
    assert world.removed_at - world.signed_at >= least + timedelta(minutes=5)
    assert [(item.id, item.note) for item in result.checklist if not item.done] == []
    entry = world.entries[handle.id]
    assert (entry.status, entry.old, entry.new) == ("completed", (OLD,), (NEW,))
    assert world.next[0].schedule.startswith("runbooks/signing-secret-rotation/stage-")
    assert (world.next[0].at - entry.started_at).days == 182
    if life == HOUR:
        await keep(handle, NAME, "to-its-end")


async def test_nobody_can_end_the_wait_before_the_last_old_token_has_expired(client: Client) -> None:
    world = SigningWorld()
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME, overlap="PT48H")
        state = await until(handle, lambda s: bool(s.waits))
        assert not state.lock.held, "others may work on the stage meanwhile"
        await handle.execute_update("end_wait", {"by": "bob", "reason": "in a hurry"})
        state = await until(handle, lambda s: "are good until" in text(s))
        state = await until(handle, lambda s: bool(s.waits))
        left = state.waits[0].until - state.waits[0].started_at
        assert timedelta(hours=11) < left <= timedelta(hours=12, minutes=5), "not the whole overlap, but the least"
        assert world.served == BOTH
        await handle.signal("abort", {"by": "bob"})
        await failure(handle)


async def test_production_is_asked_and_asked_again_when_the_release_changes(client: Client) -> None:
    world = SigningWorld(production=True)
    world.releases = ["r1", "r2"]
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME, rehearsal_max_age="P9D", dry_run=False, emergency=False)
        rehearsal = client.get_workflow_handle(f"{handle.id}/non-production")
        await until(rehearsal, lambda s: bool(s.waits))
        await rehearsal.signal("abort", {"by": "bob"})
        error = await failure(handle)
    assert "aborted" in error.message, "what fails on staging does not reach production"
    world = SigningWorld(production=True)
    world.releases = ["r1", "r2"]
    world.entries = {"earlier": _rotated()}
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME)
        state = await until(handle, at_gate)
        assert state.gates[0].plan["live release"] == "r1"
        assert state.gates[0].plan["a token of nobody's key"] == 401
        assert world.made == 0, "nothing is made before the answer"
        await handle.signal("approve", {"by": "bob"})
        state = await until(handle, lambda s: at_gate(s) and s.gates[0].asked == 2)
        assert state.gates[0].plan["live release"] == "r2"
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: bool(s.waits))
        assert world.served == BOTH
        await handle.signal("abort", {"by": "bob"})
        await failure(handle)


def _rotated() -> RotationEntry:
    now = datetime.now(UTC)
    return RotationEntry(
        pair="staging/JwtSecret",
        secret="staging/JwtSecret",
        stage="staging",
        runbook=NAME,
        run="earlier",
        status="completed",
        started_at=now,
        overlap_until=now,
        ended_at=now,
    )


# --- when it must not go on -----------------------------------------------------------------------------------------


async def test_a_release_without_dual_verification_never_signs_with_the_new_key(client: Client) -> None:
    world = SigningWorld(dual=False)
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME)
        error = await failure(handle)
        state = await progress(handle)
    assert (error.type, NEW in error.message) == ("NotDual", True)
    assert "Everything that was begun has been undone" in error.message
    assert (world.set, world.served, world.signed_at) == (BEFORE, BEFORE, None)
    assert state.step("create").state is State.UNDONE  # type: ignore[union-attr]
    await keep(handle, NAME, "not-dual")


@pytest.mark.parametrize(
    ("failing", "stands"),
    [(1, BEFORE), (2, (OLD, (OLD, NEW))), (3, BOTH)],
    ids=["adding", "signing", "removing"],
)
async def test_a_deployment_that_fails(
    temporal: WorkflowEnvironment, failing: int, stands: tuple[str, tuple[str, ...]]
) -> None:
    """Old tokens go on working, whichever deployment fails; before the new key signs, all is as it was."""
    world = SigningWorld()
    world.failing_deploy = failing
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, NAME)
        error = await failure(handle)
    assert error.type == "DeployFailed"
    assert (world.set, world.served) == (stands, stands)
    assert OLD in world.served[1]
    said = {1: "Everything that was begun has been undone", 2: "The old key signs again", 3: "The new key signs"}
    assert said[failing] in error.message
    assert world.entries[handle.id].status == "ended"
    if failing == 2:
        await keep(handle, NAME, "signing-fails")


async def test_an_abort_within_the_overlap_signs_with_the_old_key_again(client: Client) -> None:
    world = SigningWorld()
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME)
        await until(handle, lambda s: bool(s.waits))
        await handle.signal("abort", {"by": "bob", "reason": "the partner's clock is wrong"})
        error = await failure(handle)
    assert error.type == "Aborted"
    assert "the new one stays accepted" in error.message
    assert world.served == (OLD, (OLD, NEW)), "nobody who holds a token of either key is sent away"
    await keep(handle, NAME, "aborted-in-the-overlap")


async def test_an_emergency_replaces_the_key_at_once(client: Client) -> None:
    world = SigningWorld(dual=False, production=True)
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME, emergency=True)
        state = await until(handle, at_gate)
        assert (state.gates[0].id, state.gates[0].plan["refused at once"]) == ("emergency", "every token that is out")
        await handle.signal("approve", {"by": "bob"})
        result = await finished(handle)
    assert (world.served, world.deploys) == (AFTER, 1)
    assert {item.id for item in result.checklist if not item.done} == {"non-production", "staged", "clients"}
    await keep(handle, NAME, "emergency")


async def test_a_leaked_secret_is_not_put_back(client: Client) -> None:
    world = SigningWorld()
    world.failing_deploy = 1
    world.answers = ["approve"]
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, NAME, emergency=True))
    assert "A leaked secret is not put back" in error.message
    assert world.set == AFTER


@pytest.mark.parametrize(
    "moment",
    ["signing.create", pytest.param("deployments.again", marks=pytest.mark.long)],
)
async def test_the_worker_dies(temporal: WorkflowEnvironment, moment: str) -> None:
    """Between any two of 'created', 'stored', 'deployed', 'verified': the step is repeated and makes the same."""
    world = SigningWorld()
    world.fail_after = moment
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, NAME))
    assert (result.outcome, world.served, world.fail_after) == (Outcome.COMPLETED, AFTER, None)


async def test_a_dry_run_changes_nothing(client: Client) -> None:
    world = SigningWorld(production=True)
    async with working(client, world) as queue:
        handle = await begin(client, queue, NAME, dry_run=True)
        result = await finished(handle)
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would "), result.summary
    assert (world.served, world.made, world.deploys, world.entries, world.next) == (BEFORE, 0, 0, {}, [])
    said = "\n".join(result.would_change)
    for part in ("rotate staging first", "new signing key", "sign with the new key", "take the old key off"):
        assert part in said
    await keep(handle, NAME, "dry-run")
