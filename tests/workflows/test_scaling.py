"""The scaling runbooks in a scripted world: staging first, arithmetic that refuses, a way back, an end in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.testing import WorkflowEnvironment

from activities.function_capacity import Setting
from tests.histories import keep
from tests.workflows.probe import failure, progress, until
from tests.workflows.restart_world import working
from tests.workflows.scaling_world import COMMIT, ScalingWorld, begin
from workflows.model import Outcome, RunbookResult, State

FIRST = Setting(memory_mb=512, provisioned=0, max_pool_size=0)


async def finished(handle: Any, patience: float = 60) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), patience))


async def test_memory_goes_to_staging_first_and_is_measured_there_and_here(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "VerticalScaling")
        result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert world.order == ["load staging", "staging 1024 MB", "load staging", "production 1024 MB"]
    assert [(item.id, item.note) for item in result.checklist if not item.done] == []
    assert world.alarms_at["slow-production"] < 3000, "the alarm follows the quicker service"
    assert [drift.state for drift in world.drifts] == ["open", "open"], "staging and production drift"
    assert result.facts["improved"] is True
    assert "Load test of staging-" in world.reports[-1]["html"]
    assert world.reports[-1]["html"].count("<svg") == 4, "answers and p95, before the change and after it"
    assert "2025-11" in str(result.facts["cost"])
    await keep(handle, "VerticalScaling", "direct")
    await keep(temporal.client.get_workflow_handle(f"{handle.id}/rehearse"), "VerticalScaling", "rehearsal")
    await keep(temporal.client.get_workflow_handle(f"{handle.id}/rehearse/load-before"), "LoadTest", "staging")


async def test_staging_that_does_worse_keeps_it_from_production(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    world.helps["staging"] = False
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "VerticalScaling")
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), 180)
    assert world.settings == {"production": FIRST, "staging": FIRST}
    assert "production 1024 MB" not in world.order


@pytest.mark.parametrize(
    ("runbook", "inp"),
    [pytest.param("VerticalScaling", {}, marks=pytest.mark.long), ("ProvisionedConcurrency", {"executions": 10})],
)
async def test_a_change_with_which_staging_fails_quickly_does_not_reach_production(
    temporal: WorkflowEnvironment, runbook: str, inp: dict[str, Any]
) -> None:
    world = ScalingWorld()
    world.fails["staging"] = 0.2
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, runbook, **inp)
        error = await failure(handle)
    assert "staging does worse with it: share of failed calls 0.0% → 20.0%" in error.message, error.message
    assert world.settings == {"production": FIRST, "staging": FIRST}
    assert not any(line.startswith("production") for line in world.order)


async def test_more_errors_on_production_ask_whether_to_keep_the_quicker_change(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld(gates={"default": {"approvals": 0}, "keep-scaling": {"approvals": 1, "time_limit": "PT1H"}})
    world.fails["production"] = 0.05
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "VerticalScaling")
        assert (await failure(handle)).type == "GateExpired"
        assert "(share of failed calls 0.0% → 5.0%; average duration 800 → 400 ms)" in (
            (await progress(handle)).gates[-1].question
        )
    assert world.settings == {"production": FIRST, "staging": FIRST}
    await keep(handle, "VerticalScaling", "more-errors")


@pytest.mark.parametrize(
    ("slowness", "said"),
    [
        pytest.param(1, "better: 1600 → 800 ms; passed with the change", marks=pytest.mark.long),
        (3, "4800 → 2400 ms; NOT passed"),
    ],
)
async def test_a_load_test_counts_by_what_it_has_shown(
    temporal: WorkflowEnvironment, slowness: float, said: str
) -> None:
    world = ScalingWorld()
    world.slowness = slowness
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, world, "VerticalScaling"))
    item = next(item for item in result.checklist if item.id == "load-test")
    assert (item.done, said in str(item.note)) == (True, True), item.note


async def test_a_load_test_that_measured_nothing_leaves_its_item_open(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    world.measurable = False
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "VerticalScaling")
        result = await finished(handle)
        staged = await progress(temporal.client.get_workflow_handle(f"{handle.id}/rehearse"))
    for checklist in (result.checklist, staged.checklist):
        assert [item.id for item in checklist if not item.done] == ["load-test"]


async def test_a_larger_pool_has_helped_where_fewer_calls_fail(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    world.reserved, world.more_connections = 6, 200
    world.failed_before["production"] = 0.1
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "ConnectionPoolScaling", max_pool_size=150)
        result = await finished(handle, 60)
    assert result.facts["improved"] is True
    assert "10.0% → 0.0%" in str(result.facts["compared"])


@pytest.mark.long
async def test_worse_on_production_is_taken_back_where_nobody_answers(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld(gates={"default": {"approvals": 0}, "keep-scaling": {"approvals": 1, "time_limit": "PT1H"}})
    world.helps["production"] = False
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, world, "VerticalScaling"))
    assert error.type == "GateExpired"
    assert "Everything that was begun has been undone" in error.message
    assert world.settings == {"production": FIRST, "staging": FIRST}
    assert world.drifts == [world.drifts[0]], "only staging's was recorded by then"


async def test_a_service_that_is_not_healthy_with_it_goes_back(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    world.healthy = False
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "VerticalScaling", stage="staging")
        assert (await failure(handle)).type == "NotHealthy"
    assert world.settings["staging"] == FIRST


async def test_a_load_test_that_fails_before_the_change_says_once_that_nothing_was_changed(client: Client) -> None:
    world = ScalingWorld()
    world.loadable = False
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, world, "VerticalScaling", stage="staging"))
    assert error.message.count("Nothing had been changed") == 1, error.message
    assert world.settings["staging"] == FIRST


async def test_a_temporary_change_really_ends(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    async with working(temporal.client, world) as queue:
        handle = await begin(
            temporal.client, queue, world, "ProvisionedConcurrency", executions=10, expires_after="PT12H"
        )
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        assert result.facts["improved"] is True
        ending = next(e.text for e in (await progress(handle)).timeline if "ScalingExpiry runs as" in e.text)
        expiry = temporal.client.get_workflow_handle(ending.rsplit(" ", 1)[1])
        ended = await finished(expiry)
        staged = await progress(temporal.client.get_workflow_handle(f"{handle.id}/rehearse"))
        text = next(entry.text for entry in staged.timeline if "ScalingExpiry runs as" in entry.text)
        await finished(temporal.client.get_workflow_handle(text.rsplit(" ", 1)[1]))
        state = await progress(expiry)
    waited = state.step("until")
    assert waited
    assert waited.started_at
    assert waited.ended_at
    assert waited.ended_at - waited.started_at >= timedelta(hours=11)
    assert ended.outcome is Outcome.COMPLETED
    assert world.settings == {"production": FIRST, "staging": FIRST}
    assert set(world.alarms_at.values()) == {3000}
    assert world.utilisation[-1] is False
    assert world.drifts[-1].state == "closed"
    await keep(handle, "ProvisionedConcurrency", "temporary")
    await keep(expiry, "ScalingExpiry", "put-back")


async def test_an_end_leaves_alone_what_somebody_else_has_set(temporal: WorkflowEnvironment) -> None:
    world = ScalingWorld()
    world.settings["production"] = Setting(memory_mb=512, provisioned=7, max_pool_size=0)
    given = {"of": "x", "ends_at": "2026-01-01T00:00:00Z", "former": {"provisioned": 0}, "applied": {"provisioned": 5}}
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, world, "ScalingExpiry", **given))
    assert world.settings["production"].provisioned == 7
    assert [item.done for item in result.checklist if item.id == "ended"] == [False]


async def test_the_merged_commit_is_waited_for_and_deployed_to_staging_first(client: Client) -> None:
    world = ScalingWorld()
    async with working(client, world) as queue:
        handle = await begin(client, queue, world, "VerticalScaling", way="merge", window="PT10S")
        state = await until(handle, lambda s: any(wait.id == "merge" for wait in s.waits))
        assert not state.lock.held, "days can pass: nobody else waits for them"
        assert any("+  memory: 1024" in entry.text for entry in state.timeline)
        await handle.execute_update("merged", {"by": "bob", "commit": "0ddba11"})
        await until(handle, lambda s: any("does not have it" in entry.text for entry in s.timeline) and s.waits)
        world.merged = {COMMIT}
        await handle.execute_update("merged", {"by": "bob", "commit": COMMIT})
        await until(handle, lambda s: s.step("rehearse").state is State.RUNNING, 30)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("merged", {"by": "bob", "commit": COMMIT})
        result = await finished(handle, 90)
    assert result.outcome is Outcome.COMPLETED
    assert world.order == ["load staging", f"staging {COMMIT}", "load staging", f"production {COMMIT}"]
    assert world.drifts == []
    assert {entry.release for entry in world.ledger} == {COMMIT}
    await keep(handle, "VerticalScaling", "merged")


async def test_abort_puts_staging_and_production_back(client: Client) -> None:
    world = ScalingWorld()
    async with working(client, world) as queue:
        handle = await begin(client, queue, world, "ConnectionPoolScaling", max_pool_size=1, window="PT5M")
        await until(handle, lambda s: s.step("watch").state is State.WAITING, 60)
        assert world.settings["production"].max_pool_size == world.settings["staging"].max_pool_size == 1
        await handle.signal("abort", {"by": "bob"})
        assert (await failure(handle)).type == "Aborted"
    assert world.settings == {"production": FIRST, "staging": FIRST}
    await keep(handle, "ConnectionPoolScaling", "aborted")


@pytest.mark.long
async def test_only_a_smaller_pool_is_worse_for_having_more_connections(temporal: WorkflowEnvironment) -> None:
    ask = {"default": {"approvals": 0}, "keep-scaling": {"approvals": 1, "time_limit": "PT1H"}}
    world = ScalingWorld(gates=ask)
    world.reserved, world.more_connections = 6, 200
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, world, "ConnectionPoolScaling", max_pool_size=150)
        result = await finished(handle, 60)
        assert "600 → 800 connections, as a larger pool has" in str(result.facts["compared"])
        await keep(handle, "ConnectionPoolScaling", "larger")
        world.settings = dict.fromkeys(world.settings, FIRST)
        handle = await begin(temporal.client, queue, world, "ConnectionPoolScaling", max_pool_size=40)
        assert (await failure(handle)).type == "GateExpired"
        question = (await progress(handle)).gates[-1].question
    assert "(connections in use 600 → 800 connections)" in question


@pytest.mark.parametrize(
    ("runbook", "inp", "kind", "said"),
    [
        ("VerticalScaling", {"memory_mb": 512}, "WouldBeWorse", "512 MB already"),
        ("VerticalScaling", {"memory_mb": 256}, "WouldBeWorse", "380 MB are in use; x 1.25 = 475 MB"),
        ("VerticalScaling", {"staging": "production"}, "NoStaging", "cannot be its own staging"),
        ("ConnectionPoolScaling", {"max_pool_size": 150}, "WouldBeWorse", "150 x 1000 environments = 150000"),
        ("ConnectionPoolScaling", {"max_pool_size": 5, "min_pool_size": 1}, "NoPoolVariable", "way=merge"),
        ("ProvisionedConcurrency", {"executions": 950}, "WouldBeWorse", "the 900 that the account has left"),
    ],
)
async def test_what_would_be_worse_is_refused_before_anything_is_touched(
    client: Client, runbook: str, inp: dict[str, Any], kind: str, said: str
) -> None:
    world = ScalingWorld()
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, world, runbook, **inp))
    assert error.type == kind
    assert said in error.message
    assert world.order == []


async def test_a_dry_run_changes_nothing(client: Client) -> None:
    world = ScalingWorld()
    async with working(client, world) as queue:
        result = await finished(await begin(client, queue, world, "VerticalScaling", dry_run=True, expires_after="P1D"))
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would "), result.summary
    assert world.order == []
    assert world.drifts == []
    assert world.told == []
    assert any("1024 MB" in line for line in result.would_change)


# --- the load test ------------------------------------------------------------------------------------------------


async def test_a_load_test_of_production_always_asks(client: Client) -> None:
    world = ScalingWorld()
    async with working(client, world) as queue:
        handle = await begin(client, queue, world, "LoadTest")
        await until(handle, lambda s: s.open_gate() is not None)
        assert world.loads == []
        await handle.signal("approve", {"by": "bob"})
        result = await finished(handle)
    assert result.facts["passed"] is True
    assert world.loads[0].production_allowed
    await keep(handle, "LoadTest", "production")


async def test_a_load_test_that_is_not_passed_is_a_finding(client: Client) -> None:
    world = ScalingWorld()
    async with working(client, world) as queue:
        result = await finished(await begin(client, queue, world, "LoadTest", stage="staging", max_p95_ms=500))
    assert result.outcome is Outcome.COMPLETED
    assert result.facts["passed"] is False
    assert "NOT passed: p95 is 1600 ms" in result.summary
