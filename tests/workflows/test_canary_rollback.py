"""CanaryRollback in a scripted world: every way it can end, true bakes of 15 minutes with time skipped."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.testing import WorkflowEnvironment

from activities.in_flight import InFlightQuery, RunFound, Runs
from tests.histories import keep
from tests.patience import soon
from tests.workflows import probe
from tests.workflows.canary_world import World, begin, steady, working
from tests.workflows.probe import failure, outcome, progress, until
from workflows.model import Outcome, RunbookResult, RunState, State

BROKEN, GOOD = steady(errors=0.3), steady()


async def finished(handle: Any, patience: float = 60) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), patience))


def shares(world: World) -> list[float]:
    return [share for _, share in world.shifts]


def gaps(world: World) -> list[float]:
    """Minutes between two shifts."""
    moments = [at for at, _ in world.shifts]
    return [(later - earlier).total_seconds() / 60 for earlier, later in itertools.pairwise(moments)]


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


# --- true bakes of 15 minutes -------------------------------------------------------------------------------------


async def test_a_cure_climbs_the_ladder_and_is_promoted(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert shares(world) == [0.1, 0.5, 1.0]
    assert all(15 <= gap < 16 for gap in gaps(world)), gaps(world)
    assert [item.id for item in result.checklist if not item.done] == ["post-mortem"]
    assert (world.ledger[0].release, world.ledger[0].kind, world.ledger[0].replaced) == (
        "aaaaaaa",
        "rollback",
        "bbbbbbb",
    )
    html = world.reports[0]["html"]
    assert html.count("<svg") == 3
    assert "p95 of good answers" in html
    looks = world.looks[1:]
    assert 40 <= len(looks) <= 48, "one a minute"
    assert all(later.start >= earlier.end for earlier, later in itertools.pairwise(looks))


async def test_a_restored_version_that_is_worse_loses_its_traffic_at_once(temporal: WorkflowEnvironment) -> None:
    world = World(old=BROKEN, new=GOOD)
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue))
    assert error.type == "Worse"
    assert "Everything that was begun has been undone" in error.message
    assert shares(world) == [0.1, 0.0]
    assert gaps(world)[0] < 5
    assert world.alias == world.found
    assert world.ledger == []


@pytest.mark.parametrize("errors", [0.0, 0.2])
async def test_no_better_is_not_the_deploy(temporal: WorkflowEnvironment, errors: float) -> None:
    """Equally bad, because the fault is elsewhere; or equally good, because there is nothing to cure."""
    world = World(old=steady(errors), new=steady(errors), rate=20)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        error = await failure(handle)
    assert error.type == "NotTheDeploy"
    assert "does no better" in error.message
    assert world.alias == world.found
    assert outcome(error).outcome is Outcome.FAILED


@pytest.mark.long
async def test_latency_alone_decides_too(temporal: WorkflowEnvironment) -> None:
    world = World(old=steady(ms=60), new=steady(ms=2600))
    async with working(temporal.client, world) as queue:
        assert (await finished(await begin(temporal.client, queue))).outcome is Outcome.COMPLETED
    slower = World(old=steady(ms=2600), new=steady(ms=60))
    async with working(temporal.client, slower) as queue:
        assert (await failure(await begin(temporal.client, queue))).type == "Worse"


async def test_a_version_that_breaks_in_the_middle_of_a_bake_is_out_within_one_interval(
    temporal: WorkflowEnvironment,
) -> None:
    world = World(old=GOOD, new=BROKEN, rate=20)
    broke: list[datetime] = []

    def breaks(at: datetime) -> tuple[float, float]:
        half = next((when for when, share in world.shifts if share == 0.5), None)
        if half is None or at < half + timedelta(minutes=7):
            return 0.0, 40.0
        broke.append(at)
        return 0.9, 40.0

    world.behaviour["1"] = breaks
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue))
    assert error.type == "Worse"
    assert shares(world) == [0.1, 0.5, 0.0]
    assert len(broke) == 1, "the first look that shows it is enough"
    assert world.shifts[-1][0] - broke[0] < timedelta(seconds=5)


async def test_breaking_after_the_promotion_brings_the_former_routing_back(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=steady(errors=0.05), rate=20)
    world.behaviour["1"] = lambda _at: (0.5, 40.0) if world.share() == 1.0 else (0.0, 40.0)
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue))
    assert error.type == "Worse"
    assert shares(world) == [0.1, 0.5, 1.0, 0.0]
    assert world.ledger == []


async def test_proven_recovery_goes_straight_to_all_where_that_is_wanted(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN, rate=20)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, on_recovery="full_rollback")
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        state = await progress(handle)
    assert shares(world) == [0.1, 1.0]
    assert gaps(world)[0] < 15
    assert state.step("shift-50").state is State.SKIPPED  # type: ignore[union-attr]


# --- not enough, not measured, not as asked -----------------------------------------------------------------------


async def test_few_requests_are_waited_for_and_then_people_are_asked(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=GOOD, rate=0.02)
    world.policies["gates"] = {
        "approve-rollback": {"approvals": 0},
        "default": {"time_limit": "PT20M", "on_timeout": "reject"},
    }
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "GateExpired"
    assert "'undecided-10'" in error.message
    assert world.alias == world.found
    assert gaps(world)[0] == pytest.approx(15 + 30 + 20, abs=2)
    assert "waits for enough to judge by" in timeline(state)


async def test_a_fault_that_shows_while_people_are_asked_ends_it(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=GOOD, rate=0.05)

    def later(_at: datetime) -> tuple[float, float]:
        if len(world.looks) > 55:
            world.rate = 20
            return 0.5, 40.0
        return 0.0, 40.0

    world.behaviour["1"] = later
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "Worse"
    assert world.alias == world.found
    assert state.open_gate() is None


async def test_not_measured_is_counted_apart_and_asked_about(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN)
    world.blind = lambda _at: len(world.looks) > 5
    world.policies["gates"] = {
        "approve-rollback": {"approvals": 0},
        "default": {"time_limit": "PT10M", "on_timeout": "approve"},
    }
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        state = await progress(handle)
    assert {gate.id for gate in state.gates} == {"unmeasured-10", "unmeasured-50", "unmeasured-100"}
    assert "could not measure: log group g does not exist" in timeline(state)


@pytest.mark.long
async def test_a_source_that_is_away_for_a_while_loses_no_counts(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN)
    world.blind = lambda _at: len(world.looks) in (5, 6)
    async with working(temporal.client, world) as queue:
        assert (await finished(await begin(temporal.client, queue))).outcome is Outcome.COMPLETED
    seen = [look for number, look in enumerate(world.looks, start=1) if number not in (5, 6)][1:]
    rung = [look for look in seen if look.start < world.shifts[1][0]]
    assert all(later.start == earlier.end for earlier, later in itertools.pairwise(rung))


@pytest.mark.long
async def test_a_split_far_from_the_wanted_one_is_said_and_asked_about(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN, rate=20)
    world.skew = 0.45
    world.policies["gates"] = {"approve-rollback": {"approvals": 0}, "default": {"time_limit": "PT10M"}}
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, ladder=[10, 100])
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "GateExpired"
    assert "'split-10'" in error.message
    assert "45.0% of" in timeline(state)
    assert "wanted 10%: far from it" in timeline(state)


# --- before anything is touched -----------------------------------------------------------------------------------


async def test_a_migration_in_flight_is_refused_before_queueing(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN)
    world.migrating = (RunFound(runbook="DatabaseMigration", workflow_id="m-1"),)
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue))
        assert error.type == "MigrationInFlight"
        assert "DatabaseMigration m-1 is in flight" in error.message
        assert world.shifts == []
        world.policies |= {
            "canary": {"migration": "gate"},
            "gates": {
                "approve-rollback": {"approvals": 0},
                "across-migration": {"on_timeout": "approve", "time_limit": "PT1H"},
            },
        }
        handle = await begin(temporal.client, queue, ladder=[100], bake="PT2M")
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        assert "goes on without waiting, as was approved" in timeline(await progress(handle))


async def test_what_is_in_flight_is_asked_of_temporal_itself(client: Client) -> None:
    """A run that works on the stage is found; one that only queues for it, runs dry or works on another, is not."""
    asked = InFlightQuery(stage=f"stage-{uuid.uuid4().hex[:8]}", runbooks=("Probe", "DatabaseMigration"))
    async with probe.working(client, probe.World()) as queue:
        works = await probe.begin(client, queue, stage=asked.stage)
        await until(works, probe.at_gate)
        queues = await probe.begin(client, queue, stage=asked.stage)
        await until(queues, lambda s: s.phase == "queued")
        elsewhere = await probe.begin(client, queue)
        await until(elsewhere, probe.at_gate)
        dry = await client.start_workflow(
            "Probe",
            {"stage": asked.stage, "reason": "test", "dry_run": True},
            id=f"dry-{uuid.uuid4()}",
            task_queue=queue,
            start_signal="pause",  # so that it is under way for as long as the test looks
            start_signal_args=[{"by": "ann"}],
        )
        await until(dry, lambda s: s.phase == "paused")
        deadline = asyncio.get_running_loop().time() + 10  # visibility is a moment behind
        while not (found := await Runs(client).in_flight(asked)).runs:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        assert [run.workflow_id for run in found.runs] == [works.id]
        assert not (await Runs(client).in_flight(asked.model_copy(update={"runbooks": ("DatabaseMigration",)}))).runs
        for handle in (works, queues, elsewhere, dry):
            await handle.terminate()


async def test_traffic_that_is_split_by_somebody_else_is_left_alone(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN)
    world.alias = world.alias.model_copy(update={"weights": {"9": 0.2}})
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue))
    assert error.type == "TrafficBusy"
    assert world.shifts == []


async def test_a_dry_run_shifts_nothing(temporal: WorkflowEnvironment) -> None:
    world = World(old=GOOD, new=BROKEN)
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, dry_run=True))
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would go "), result.summary
    assert "; as it is now: " in result.summary, "nothing was verified"
    assert result.would_change[:3] == [
        "give 10 % of the traffic to good (version 1)",
        "give 50 % of the traffic to good (version 1)",
        "promote good (version 1)",
    ]
    assert (world.shifts, world.told, world.ledger) == ([], [], [])


@pytest.mark.parametrize(
    ("inp", "text"),
    [
        ({"ladder": [50, 10, 100]}, "each rung has to be higher"),
        ({"ladder": [10, 50]}, "the last one 100"),
        ({"ladder": [0, 100]}, "greater than or equal to 1"),
        ({"ladder": [*range(1, 11), 100]}, "at most 10 items"),
        ({"bake": "PT0S"}, "bake: Input should be greater than"),
        ({"bake": "PT1H", "judge_every": "PT1S"}, "judge less often"),
        ({"limits": {"alfa": 0.1}}, "limits.alfa: Extra inputs"),
    ],
)
async def test_an_impossible_ladder_fails_at_once(temporal: WorkflowEnvironment, inp: Any, text: str) -> None:
    async with working(temporal.client, World(old=GOOD, new=GOOD)) as queue:
        error = await failure(await begin(temporal.client, queue, **inp))
    assert error.type == "BadInput"
    assert text in error.message


# --- operators on a live bake, in real time -----------------------------------------------------------------------

QUICK: dict[str, Any] = {"judge_every": "PT1S", "bake": "PT2S", "patience": "PT0S", "limits": {"min_sample": 1}}
NO_DELAY = {"metrics_delay": "PT0S", "error_window": "PT0S"}


def lively(**more: Any) -> World:
    return World(old=GOOD, new=BROKEN, rate=200, rollback=NO_DELAY, **more)


async def test_operators_steer_a_live_bake_and_say_why(client: Client) -> None:
    world = lively()
    async with working(client, world) as queue:
        handle = await begin(client, queue, **QUICK | {"bake": "PT3M"})
        await until(handle, lambda s: bool(s.waits))
        for name, message in (
            ("hold", {"by": "bob"}),
            ("promote", {"by": "bob"}),
            ("release", {"by": "bob", "reason": "r"}),
            ("end_wait", {"by": "bob"}),
            ("extend_wait", {"by": "bob", "duration": "PT1M"}),
        ):
            with pytest.raises(WorkflowUpdateFailedError):
                await handle.execute_update(name, message)
        await handle.signal("abort", {"by": "bob"})
        before = (await progress(handle)).waits[0].until
        await handle.execute_update("extend_wait", {"by": "bob", "duration": "PT1M", "reason": "few requests"})
        state = await progress(handle)
        assert (state.waits[0].until - before).total_seconds() == 60
        assert "signal abort changed nothing: say why" in timeline(state)
        await handle.execute_update("end_wait", {"by": "bob", "reason": "clear enough"})
        await until(handle, lambda s: any(w.id == "bake-50" for w in s.waits))
        assert shares(world) == [0.1, 0.5]
        await handle.execute_update("promote", {"by": "cid", "reason": "customers wait"})
        await until(handle, lambda s: any(w.id == "bake-100" for w in s.waits))
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("promote", {"by": "cid", "reason": "again"})
        await handle.execute_update("end_wait", {"by": "bob", "reason": "it is fine"})
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        said = timeline(await progress(handle))
        await keep(handle, "CanaryRollback", "steered-by-operators")
    assert shares(world) == [0.1, 0.5, 1.0]
    for text in ("promotes at once: customers wait", "few requests", "clear enough"):
        assert text in said


async def test_promoting_at_once_skips_the_rungs_between(client: Client) -> None:
    world = lively()
    async with working(client, world) as queue:
        handle = await begin(client, queue, **QUICK | {"bake": "PT3M"})
        await until(handle, lambda s: bool(s.waits))
        await handle.execute_update("promote", {"by": "cid", "reason": "customers wait"})
        await until(handle, lambda s: any(w.id == "bake-100" for w in s.waits))
        await handle.signal("abort", {"by": "cid", "reason": "wrong after all"})
        error = await failure(handle)
        await keep(handle, "CanaryRollback", "promoted-and-aborted")
    assert error.type == "Aborted"
    assert shares(world) == [0.1, 1.0, 0.0]
    assert world.alias == world.found


async def during_a_look(world: World, handle: Any) -> asyncio.Event:
    """A look of the first rung has begun; it is answered when what this returns is set."""
    await until(handle, lambda s: bool(s.waits))
    before, world.look_held = len(world.looks), asyncio.Event()
    await soon(lambda: len(world.looks) > before)
    return world.look_held


@pytest.mark.long
async def test_promoting_during_a_look_skips_the_rungs_between_too(client: Client) -> None:
    world = lively()
    async with working(client, world) as queue:
        handle = await begin(client, queue, judge_every="PT1S", bake="PT3M", patience="PT1H")
        answer = await during_a_look(world, handle)
        await handle.execute_update("promote", {"by": "cid", "reason": "customers wait"})
        answer.set()
        state = await until(handle, lambda s: bool(s.waits) and s.waits[0].id != "bake-10")
        assert state.waits[0].id == "bake-100", "neither patience nor a gate comes between"
        await handle.signal("abort", {"by": "cid", "reason": "wrong after all"})
        await failure(handle)
        await keep(handle, "CanaryRollback", "promoted-during-a-look")
    assert shares(world) == [0.1, 1.0, 0.0]


async def test_a_wait_that_is_ended_during_a_look_is_over_though_the_run_is_paused(client: Client) -> None:
    world = lively()
    async with working(client, world) as queue:
        handle = await begin(client, queue, judge_every="PT1S", bake="PT3M", patience="PT1H")
        answer = await during_a_look(world, handle)
        await handle.signal("pause", {"by": "bob"})
        await handle.execute_update("end_wait", {"by": "cid", "reason": "clear enough"})
        answer.set()
        await until(handle, lambda s: s.phase == "paused")
        await handle.signal("resume", {"by": "bob"})
        await until(handle, lambda s: any(wait.id == "bake-50" for wait in s.waits))
        await handle.terminate()
    assert shares(world) == [0.1, 0.5]


async def test_a_held_bake_stays_and_is_judged_on(client: Client) -> None:
    world = lively()
    async with working(client, world) as queue:
        handle = await begin(client, queue, **QUICK)
        await until(handle, lambda s: bool(s.waits))
        await handle.execute_update("hold", {"by": "bob", "reason": "let me look"})
        held = len(world.looks)
        await until(handle, lambda s: len(world.looks) >= held + 4)
        assert shares(world) == [0.1], "the bake of two seconds is over since long"
        await handle.execute_update("release", {"by": "bob", "reason": "all right"})
        await until(handle, lambda s: len(world.shifts) == 2 and bool(s.waits))
        await handle.execute_update("hold", {"by": "bob", "reason": "once more"})
        world.behaviour["1"] = steady(errors=0.9)
        error = await failure(handle)
    assert error.type == "Worse", "a hold protects no version that is worse"
    assert world.alias == world.found


@pytest.mark.long
async def test_a_paused_run_shifts_no_further_but_judges_on(client: Client) -> None:
    world = lively()
    async with working(client, world) as queue:
        handle = await begin(client, queue, **QUICK)
        await until(handle, lambda s: bool(s.waits))
        await handle.signal("pause", {"by": "bob"})
        paused = len(world.looks)
        await until(handle, lambda s: len(world.looks) >= paused + 4)
        assert shares(world) == [0.1]
        world.behaviour["1"] = steady(errors=0.9)
        assert (await failure(handle)).type == "Worse"
    assert world.alias == world.found


# --- what dies in between -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [pytest.param("traffic.shift", marks=pytest.mark.long), "traffic.promote"])
async def test_an_attempt_that_died_after_its_effect_is_made_again(client: Client, dies: str) -> None:
    world = lively()
    world.fail_after = dies
    async with working(client, world) as queue:
        result = await finished(await begin(client, queue, **QUICK))
    assert result.outcome is Outcome.COMPLETED
    assert [share for n, share in enumerate(shares(world)) if share not in shares(world)[:n]] == [0.1, 0.5, 1.0]
