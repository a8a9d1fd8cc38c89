"""The runbooks of a symptom in a scripted world, true windows of ten minutes with time skipped."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from activities.symptom_models import ErrorKind, ErrorKinds, ErrorMinutes, LatencyParts, Reports, Requests
from tests.histories import keep
from tests.workflows.probe import at_gate, failure, progress, until
from tests.workflows.symptom_cases import SCENARIOS, WELL, but, errors, latency
from tests.workflows.symptom_world import DEPLOYED_AGO, World, begin, working
from workflows import symptom
from workflows.model import Outcome, Phase, RunbookResult, State
from workflows.symptom_readings import Readings

SLOW, HEAVY, FAILING = "PerformanceDegradation", "HighMemoryUsage", "HighErrorRate"


def scenario(name: str, **more: Any) -> Readings:
    return dataclasses.replace(SCENARIOS[name][0], **more)


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


CURED = {
    "missing-index": (SLOW, scenario("missing index"), "DatabaseMigration", "add_index"),
    "cold-starts": (SLOW, scenario("cold starts"), "ProvisionedConcurrency", "provisioned_concurrency"),
    "connections": (
        SLOW,
        scenario("exhausted connections", latency=latency()),
        "ConnectionPoolScaling",
        "connection_pool",
    ),
    "small-memory": (HEAVY, scenario("small memory"), "VerticalScaling", "more_memory"),
    "bad-release": (FAILING, scenario("bad release"), "QuickRollback", "roll_back"),
    "hammering-client": (FAILING, scenario("one hammering client"), "ClientRateLimit", "limit_client"),
    "gone-route": (FAILING, scenario("a route that is gone"), "QuickRollback", "roll_back"),
}


@pytest.mark.parametrize("name", CURED)
async def test_found_remedied_by_its_runbook_and_measured_well_for_a_window(
    temporal: WorkflowEnvironment, name: str
) -> None:
    runbook, sick, below, remedy = CURED[name]
    world = World(sick, WELL, below)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, runbook)
        result = await finished(handle)
        state = await progress(handle)
        if name in ("missing-index", "small-memory", "gone-route"):
            await keep(handle, runbook, name)
    assert result.outcome is Outcome.COMPLETED
    assert [child for child, _ in world.children] == [below]
    assert result.facts["mended_by"] == remedy
    assert "before" in result.summary
    unticked = [item.id for item in result.checklist if not item.done]
    assert unticked == [], result.checklist
    assert world.profiler == [(1, 100), (0, 100), (1, 100), (0, 100)], "put back each time"
    watch = state.step(f"watch-{remedy}")
    assert watch is not None
    assert watch.started_at is not None
    assert watch.ended_at is not None
    assert watch.ended_at - watch.started_at >= timedelta(minutes=10)
    assert "<svg" in world.reports[0]["html"]
    assert not world.incidents or runbook == FAILING
    given = world.children[0][1]
    assert (given["requested_by"], given["reason"].split(":")[0]) == ("ann", runbook)


async def test_a_long_watch_looks_less_often_so_that_its_history_has_room(
    temporal: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symptom, "_LOOKS", 8, raising=False)
    runbook, sick, below, _ = CURED["small-memory"]
    async with working(temporal.client, World(sick, WELL, below)) as queue:
        handle = await begin(temporal.client, queue, runbook, look_every="PT1M")
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        assert any(entry.text.startswith("measures every 5 min") for entry in (await progress(handle)).timeline)
        history = await handle.fetch_history()
    timers = [event for event in history.events if event.HasField("timer_started_event_attributes")]
    assert len(timers) < 8


@pytest.mark.long
async def test_a_wrong_remedy_is_refused_with_the_reason_and_the_right_one_offered(
    temporal: WorkflowEnvironment,
) -> None:
    wrong = ((SLOW, "missing index", "provisioned_concurrency"), (FAILING, "bad release", "add_index"))
    for runbook, name, remedy in (*wrong, (HEAVY, "small memory", "provisioned_concurrency")):
        right = {"missing index": "DatabaseMigration", "bad release": "QuickRollback"}.get(name, "VerticalScaling")
        world = World(scenario(name), WELL, right)
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, runbook, remedy=remedy)
            await finished(handle)
            state = await progress(handle)
        assert [child for child, _ in world.children] == [right]
        assert any(
            entry.text.startswith(f"REFUSED: {remedy}, ") and entry.level == "warning" for entry in state.timeline
        )


async def test_one_that_does_not_help_is_followed_by_the_next_and_the_end_is_no_success(
    temporal: WorkflowEnvironment,
) -> None:
    world = World(scenario("bad release"), WELL, "never")
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, FAILING, incident="inc-1")
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "NotMended"
    assert "30.00% 5xx" in error.message
    assert [child for child, _ in world.children] == ["QuickRollback"]
    said = [entry.text for entry in state.timeline]
    assert any("roll_back: it did not help within 30 min" in text for text in said)
    assert state.step("by-hand-fix_code") is not None, "the next was offered: people fix the code"
    assert {item.id: item.done for item in state.checklist}["rate"] is False
    assert world.tickets, "handed on"


@pytest.mark.long
async def test_a_relapse_within_the_window_begins_the_window_anew(temporal: WorkflowEnvironment) -> None:
    world = World(scenario("bad release"), WELL, "QuickRollback")
    relapse: list[datetime] = []
    deployed = datetime.now(UTC) - DEPLOYED_AGO

    def rate(at: datetime) -> float:
        if not world.children:
            return 0.3 if at >= deployed else 0.0
        if not relapse:
            relapse.append(at + timedelta(minutes=5))
        return 0.3 if relapse[0] <= at < relapse[0] + timedelta(minutes=1) else 0.0

    world.per_minute = rate
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, FAILING, incident="inc-1")
        result = await finished(handle)
        watch = (await progress(handle)).step("watch-roll_back")
    assert result.outcome is Outcome.COMPLETED
    assert watch is not None
    assert watch.started_at is not None
    assert watch.ended_at is not None
    assert watch.ended_at - watch.started_at >= timedelta(minutes=15)


@pytest.mark.parametrize("runbook", [SLOW, HEAVY, FAILING])
async def test_where_nothing_is_wrong_nothing_is_done(temporal: WorkflowEnvironment, runbook: str) -> None:
    world = World(WELL, WELL)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, runbook)
        result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert "the symptom is not there" in result.summary
    assert (world.children, world.incidents, world.tickets) == ([], [], [])


@pytest.mark.parametrize("runbook", [SLOW, HEAVY, FAILING])
async def test_what_cannot_be_measured_is_neither_well_nor_bad(temporal: WorkflowEnvironment, runbook: str) -> None:
    world = World(scenario("missing index"), WELL)
    world.down = {"latency", "errors", "reports", "requests", "kinds", "profiler", "slow", "deployments", "database"}
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, runbook)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "NotMeasured"
    assert world.children == []
    assert sum("not known" in entry.text for entry in state.timeline) >= len(world.down) - 1, "each source is reported"


@pytest.mark.parametrize("runbook", [SLOW, HEAVY, FAILING])
async def test_a_dry_run_looks_at_everything_and_changes_nothing(temporal: WorkflowEnvironment, runbook: str) -> None:
    sick = but(
        latency=latency(),
        errors=errors(0.3),
        reports=scenario("small memory").reports,
        slow=scenario("missing index").slow,
    )
    world = World(sick, WELL)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, runbook, dry_run=True)
        result = await finished(handle)
    assert result.outcome is Outcome.DRY_RUN
    assert (world.children, world.profiler, world.incidents, world.tickets, world.told) == ([], [], [], [], [])
    assert any("offer" in line for line in result.would_change)
    assert any("profile queries" in line for line in result.would_change)


@pytest.mark.parametrize("runbook", [SLOW, HEAVY, FAILING])
async def test_a_dry_run_without_traffic_still_says_that_it_would_work(
    temporal: WorkflowEnvironment, runbook: str
) -> None:
    """As the monthly rehearsal starts it on a quiet stage."""
    quiet = but(
        latency=LatencyParts(summary="no latency measured"),
        errors=ErrorMinutes(summary="nothing"),
        reports=Reports(summary="nothing"),
        requests=Requests(summary="nothing"),
        earlier=Requests(summary="nothing"),
    )
    async with working(temporal.client, World(quiet, WELL)) as queue:
        result = await finished(await begin(temporal.client, queue, runbook, dry_run=True))
    assert "no traffic to measure" in result.summary


async def test_a_remedy_that_fails_is_followed_by_the_next_and_one_that_left_something_undone_stops(
    temporal: WorkflowEnvironment,
) -> None:
    sick = scenario("missing index", reports=scenario("small memory").reports)
    world = World(sick, WELL, "VerticalScaling")
    world.child_fails = {"DatabaseMigration": "DuplicateValues: documents have the same values"}
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, SLOW))
    assert result.facts["mended_by"] == "more_memory"
    assert "same values" in str(result.facts["failed add_index"])
    world = World(sick, WELL, "VerticalScaling")
    world.child_fails = {"DatabaseMigration": "LeftUndone: half an index"}
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, SLOW))
    assert error.type == "LeftUndone"
    assert world.children == []


async def test_the_profiler_is_put_back_whatever_happens(temporal: WorkflowEnvironment, client: Client) -> None:
    world = World(scenario("missing index"), WELL, "DatabaseMigration")
    world.fail_after = "profiler.set"  # set, and the worker is dead before it says so
    async with working(temporal.client, world) as queue:
        await finished(await begin(temporal.client, queue, SLOW))
    assert world.profiler[-1] == (0, 100)
    world = World(scenario("missing index"), WELL)
    async with working(client, world) as queue:
        handle = await begin(client, queue, SLOW)
        await until(handle, lambda s: s.step("profiling").state is State.WAITING)
        assert world.profiler == [(1, 100)]
        await handle.signal("abort", {"by": "bob", "reason": "never mind"})
        error = await failure(handle)
        await keep(handle, SLOW, "aborted-while-profiling")
    assert error.type == "Aborted"
    assert "Everything that was begun has been undone" in error.message
    assert world.profiler == [(1, 100), (0, 100)]


@pytest.mark.long
async def test_a_database_that_profiles_already_is_left_alone(temporal: WorkflowEnvironment) -> None:
    for level in (None, "on"):
        world = World(scenario("missing index"), WELL, "DatabaseMigration")
        assert world.level is not None
        world.level = world.level.model_copy(update={"level": 1 if level else None, "slow_ms": 50})
        async with working(temporal.client, world) as queue:
            await finished(await begin(temporal.client, queue, SLOW))
        assert world.profiler == []


async def test_people_who_say_no_are_offered_the_next(client: Client) -> None:
    sick = scenario("missing index", reports=scenario("small memory").reports)
    world = World(sick, WELL, gates={"apply-more_memory": {"requester_may_approve": False}})
    async with working(client, world) as queue:
        handle = await begin(client, queue, SLOW, profile_for="PT0S")
        state = await until(handle, at_gate)
        gate = state.open_gate()
        assert gate is not None
        assert gate.id == "apply-add_index"
        assert gate.plan["by"] == "DatabaseMigration"
        assert "provisioned_concurrency (only 5 of 1000" in str(gate.plan["cannot help"])
        assert "more_memory" in str(gate.plan["could help too"])
        await handle.signal("reject", {"by": "bob", "reason": "not by day"})
        state = await until(handle, lambda s: at_gate(s) and s.open_gate().id == "apply-more_memory")
        await handle.signal("reject", {"by": "bob"})
        state = await until(
            handle, lambda s: at_gate(s) and s.open_gate().id not in ("apply-add_index", "apply-more_memory")
        )
        await handle.signal("abort", {"by": "bob"})
        error = await failure(handle)
        await keep(handle, SLOW, "rejected-twice")
    assert error.type == "Aborted"
    assert world.children == []


async def test_the_approval_of_a_remedy_that_runs_is_not_taken_back(client: Client) -> None:
    """It would run on under an open question, which nobody waits for and which hides the next one."""
    sick = scenario("missing index", reports=scenario("small memory").reports)
    world = World(sick, WELL, gates={})
    world.hold = {"DatabaseMigration": asyncio.Event(), "VerticalScaling": asyncio.Event()}
    world.child_fails["DatabaseMigration"] = "Failed: the index cannot be built"
    async with working(client, world) as queue:
        handle = await begin(client, queue, SLOW, profile_for="PT0S")
        await until(handle, at_gate)
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: (step := s.step("run-add_index")) and step.state is State.RUNNING)
        await handle.signal("revoke", {"by": "bob"})
        refused = "the step that 'apply-add_index' released has begun: send abort instead"
        state = await until(handle, lambda s: any(refused in entry.text for entry in s.timeline))
        assert state.open_gate() is None
        world.hold["DatabaseMigration"].set()
        state = await until(handle, at_gate)
        assert state.open_gate().id == "apply-more_memory"
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: (step := s.step("run-more_memory")) and step.state is State.RUNNING)
        await handle.signal("abort", {"by": "bob"})
        await until(handle, lambda s: any("aborts" in entry.text for entry in s.timeline))
        world.hold["VerticalScaling"].set()
        assert (await failure(handle)).type == "Aborted"
        await keep(handle, SLOW, "begun-and-not-taken-back")


async def test_after_a_pause_of_looks_side_by_side_the_run_is_where_it_was(client: Client) -> None:
    world = World(scenario("missing index"), WELL)
    world.hold["DatabaseMigration"] = asyncio.Event()
    queue = f"symptom-{uuid.uuid4()}"
    handle = await begin(client, queue, SLOW, profile_for="PT0S")
    await handle.signal("pause", {"by": "bob"})
    async with working(client, world, queue):
        await until(handle, lambda s: s.phase is Phase.PAUSED)
        await handle.signal("resume", {"by": "bob"})
        state = await until(handle, lambda s: (step := s.step("run-add_index")) and step.state is State.RUNNING)
        assert state.phase is Phase.LOOKING
        await handle.signal("abort", {"by": "bob"})
        await until(handle, lambda s: any("aborts" in entry.text for entry in s.timeline))
        world.hold["DatabaseMigration"].set()
        assert (await failure(handle)).type == "Aborted"
        await keep(handle, SLOW, "paused-while-it-looks")


# --- an incident ----------------------------------------------------------------------------------------------------


async def test_more_than_five_percent_for_ten_minutes_opens_one_incident(temporal: WorkflowEnvironment) -> None:
    """Nobody answers the gate; the incident is opened all the same, and once."""
    world = World(scenario("bad release"), WELL, gates={})
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, FAILING)
        error = await failure(handle)
        state = await progress(handle)
        await keep(handle, FAILING, "incident-while-nobody-answers")
    assert error.type == "GateExpired"
    assert len(world.incidents) == 1
    problem = world.incidents[0]
    assert (problem.key, problem.source) == ("error-rate", "HighErrorRate")
    assert "30% of requests fail" in problem.reason
    assert state.step("incident").state is State.DONE


@pytest.mark.long
@pytest.mark.parametrize(("rate", "incident"), [(0.04, None), (0.3, "inc-1")])
async def test_less_or_within_an_incident_opens_none(
    temporal: WorkflowEnvironment, rate: float, incident: str | None
) -> None:
    world = World(but(errors=errors(rate), suspect=scenario("bad release").suspect), WELL, gates={})
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, FAILING, incident=incident))
    assert error.type == "GateExpired"
    assert world.incidents == []


@pytest.mark.long
async def test_ten_minutes_are_awaited_before_it_is_an_incident(temporal: WorkflowEnvironment) -> None:
    """Above 5 % only since a moment ago: the incident opens when the ten minutes are full, not before."""
    world = World(scenario("bad release"), WELL, gates={})
    began: list[datetime] = []

    def rate(at: datetime) -> float:
        if not began:
            began.append(at + timedelta(minutes=8))  # two minutes before the end of the first window
        return 0.3 if at >= began[0] else 0.02

    world.per_minute = rate
    async with working(temporal.client, world) as queue:
        await failure(await begin(temporal.client, queue, FAILING))
    assert len(world.incidents) == 1
    assert world.incidents[0].detected_at is not None
    assert world.incidents[0].detected_at - began[0] >= timedelta(minutes=10)


async def test_a_remedy_of_another_symptom_is_wrong_input(temporal: WorkflowEnvironment) -> None:
    async with working(temporal.client, World(WELL, WELL)) as queue:
        error = await failure(await begin(temporal.client, queue, HEAVY, remedy="limit_client"))
    assert error.type == "BadInput"
    assert "more_memory" in error.message


async def test_given_up_before_the_ten_minutes_are_full_it_is_seen_out(temporal: WorkflowEnvironment) -> None:
    """Everything is refused within moments; the errors go on, and nobody else would look."""
    world = World(scenario("bad release"), WELL, gates={})
    began = datetime.now(UTC) - timedelta(minutes=2)
    world.per_minute = lambda at: 0.3 if at >= began else 0.02

    def seeing_out(state: Any) -> bool:
        return any("whether it becomes an incident" in entry.text for entry in state.timeline)

    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, FAILING)
        while not seeing_out(state := await until(handle, lambda s: at_gate(s) or seeing_out(s))):
            gate = state.open_gate()
            assert gate is not None
            await handle.signal("reject", {"by": "bob", "gate": gate.id, "reason": "not now"})
            await until(handle, lambda s: seeing_out(s) or s.open_gate() != gate)  # noqa: B023
        assert world.incidents == []
        error = await failure(handle)
        await keep(handle, FAILING, "seen-out")
    assert error.type == "NotMended"
    assert len(world.incidents) == 1
    assert world.incidents[0].detected_at is not None
    assert world.incidents[0].detected_at - began >= timedelta(minutes=10)


@pytest.mark.parametrize("named", [True, False])
async def test_that_requests_fail_is_no_root_cause_of_failing_requests(client: Client, named: bool) -> None:
    found = (ErrorKind(kind="KeyError", text="KeyError: 'owner'", count=120),) if named else ()
    sick = but(errors=errors(0.12), kinds=ErrorKinds(summary="", total=120 if named else 0, kinds=found))
    async with working(client, World(sick, WELL)) as queue:
        result = await finished(await begin(client, queue, FAILING, dry_run=True))
    item = next(item for item in result.checklist if item.id == "root-cause")
    assert item.done is named
    assert "12.00% of requests fail" in str(item.note)
    assert ("no kind of error was found that says why" in str(item.note)) is not named
