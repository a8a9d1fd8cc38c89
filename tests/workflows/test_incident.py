"""Incident in a scripted world: the first fifteen minutes, with time skipped only where a test says so."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from activities.database import Connections
from activities.deployment_models import FindTarget, RollbackTarget
from activities.releases import ReleaseFacts
from activities.stage import Stage
from tests.histories import keep
from tests.patience import soon
from tests.workflows.incident_world import World, begin, send, situation, working
from tests.workflows.probe import failure, progress, until
from workflows import search_attributes
from workflows.model import Outcome, Phase, RunbookResult, RunState, State

MINUTE = timedelta(minutes=1)


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


async def test_p1_from_the_alarm_to_resolved(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1", detected_by="alarm errors-high")
            state = await until(handle, lambda s: s.open_gate() is not None)
            shown = (await handle.query("__temporal_workflow_metadata")).current_details
            for line in (
                "## P1: more 500s",
                "nobody has acknowledged",
                "the newest deployment",
                "cannot help:",
                "Next, ",
            ):
                assert line in shown, shown
            plan = state.open_gate().plan  # type: ignore[union-attr]
            assert (plan["runbook"], plan["from"], plan["to"]) == (
                "QuickRollback",
                "broken (version 2)",
                "good (version 1)",
            )
            await soon(lambda: bool(world.pages))
            assert [page.title for _, page in world.pages] == ["P1 " + state.stage + ": more 500s"]  # type: ignore[operator]
            declared = next(m for _, m in world.said if m.title.startswith("INCIDENT DECLARED - P1"))
            for line in (
                "Service:",
                "Status:** DEGRADED",
                "Detection:",
                "Impact:** 50.0% of the requests",
                "Commander:",
            ):
                assert line in declared.text, declared.text
            assert await send(handle, "acknowledge") == "ann is on it"
            await soon(lambda: bool(world.page_ends))
            await handle.signal("approve", {"by": "bob"})
            await soon(lambda: bool(world.changes))
            await until(handle, lambda s: "QuickRollback" in timeline(s) and world.fault == "none")
            await temporal.fast_forward(handle, timedelta(minutes=30))
            seen = await situation(handle)
            assert seen.book is not None
            assert seen.book.reached("resolved"), timeline(await progress(handle))
            assert seen.tried[0].helped
            assert await send(handle, "action", text="add a test", owner="bob") == "A1"
            await send(handle, "post_mortem")
            await send(handle, "action", do="done", id="A1")
            result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
            await keep(handle, "Incident", "p1")
    assert result.outcome is Outcome.COMPLETED
    assert [item.id for item in result.checklist if not item.done] == []


async def test_evidence_is_frozen_before_anybody_is_asked_and_one_hanging_probe_holds_nobody_up(
    temporal: WorkflowEnvironment,
) -> None:
    world = World("errors")
    world.hanging, world.down = {"logs"}, {"gateway_log"}
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await soon(lambda: bool(world.pages), 40)
            state = await until(handle, lambda s: s.open_gate() is not None)
            first = {step.id: step for step in state.steps[:7]}
            slowest = max(step.ended_at for step in first.values() if step.ended_at)
            gate = state.open_gate()
            assert gate is not None
            assert gate.opened_at >= slowest
            began = {name: at for at, name in world.probed if name in ("confirm", "metrics", "database", "deployments")}
            assert max(began.values()) - min(began.values()) < timedelta(seconds=3), "all at once"
            declared_at = next(at for at, m in world.said if m.title.startswith("INCIDENT DECLARED"))
            page_at = world.pages[0][0]
            assert slowest - state.started_at < timedelta(seconds=14)
            for at in (declared_at, page_at):
                assert at - slowest < timedelta(seconds=1), "no later than the slowest probe and a second"
            seen = await situation(handle)
            assert seen.evidence is not None
            assert set(seen.evidence.failed_sources) == {"lambda-log", "gateway-log"}
            assert seen.conclusion is not None
            assert any("gateway_log is down" in text for text in seen.conclusion.failed)
            assert first["lambda-log"].state is State.FAILED
            frozen = seen.evidence
            world.fault = "latency"
            await temporal.fast_forward(handle, 10 * MINUTE)
            assert (await situation(handle)).evidence == frozen
            await handle.terminate()


async def test_page_acknowledge_escalate_next_level_and_round_again(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    world.down = {"pagerduty"}
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await soon(lambda: len(world.pages) == 1)
            await temporal.fast_forward(handle, 11 * MINUTE)
            called = [page.details["called"] for _, page in world.pages]
            assert called == ["on-call engineer, round 1", "engineering lead, round 1", "on-call engineer, round 2"]
            assert len({page.key for _, page in world.pages}) == 3, "each is a call of its own"
            text = timeline(await progress(handle))
            assert "pagerduty did not take the page: HTTP 503" in text
            assert "paged on-call engineer through webhook" in text
            await temporal.fast_forward(handle, 5 * MINUTE)
            assert "MISSED P1 response" in timeline(await progress(handle))
            await send(handle, "acknowledge")
            pages = len(world.pages)
            await temporal.fast_forward(handle, 20 * MINUTE)
            assert len(world.pages) == pages
            await soon(lambda: len(world.page_ends) == pages)
            await send(handle, "command", to="carla")
            await temporal.fast_forward(handle, 25 * MINUTE)
            assert len(world.pages) == pages, "a hand-over is progress"
            await temporal.fast_forward(handle, 6 * MINUTE)
            assert len(world.pages) > pages, "an acknowledgement without progress expires"
            assert "expired without progress" in timeline(await progress(handle))
            await handle.terminate()


async def test_no_pager_takes_it_and_the_next_level_is_called_at_once(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    world.down = {"pagerduty", "webhook", "chat"}
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await until(handle, lambda s: "NOBODY COULD BE PAGED (on-call engineer)" in timeline(s))
            world.down = set()
            await temporal.fast_forward(handle, MINUTE)
            assert world.pages[0][1].details["called"] == "engineering lead, round 1"
            await handle.terminate()


async def test_severity_is_worked_out_and_a_change_plans_anew(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue)
            await until(handle, lambda s: s.open_gate() is not None)
            seen = await situation(handle)
            assert seen.book is not None
            assert seen.book.severity == "P2", "half of the requests fail"
            await send(handle, "severity", severity="P1", reason="the other half too")
            after = (await situation(handle)).book
            assert after is not None
            assert {clock.severity for clock in after.clocks if clock.runs} == {"P1", "P2"}
            await soon(lambda: len(world.pages) == 2)
            await send(handle, "severity", severity="P3", reason="one route only")
            await temporal.fast_forward(handle, 60 * MINUTE)
            assert len(world.pages) == 2, "a P3 calls nobody"
            await handle.terminate()


async def test_a_remedy_that_does_not_help_is_said_and_the_next_is_offered(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    world.cure = "something else"
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await until(handle, lambda s: s.open_gate() is not None)
            await handle.signal("approve", {"by": "bob"})
            await soon(lambda: bool(world.changes))
            await temporal.fast_forward(handle, 8 * MINUTE)
            text = timeline(await progress(handle))
            assert "QuickRollback did not help: after 4 looks still 50.0% of the requests fail" in text
            assert "diagnosed again" in text
            seen = await situation(handle)
            assert (seen.tried[0].state, seen.tried[0].helped) == ("done", False)
            await keep(handle, "Incident", "did-not-help")
            await handle.terminate()


@pytest.mark.parametrize(
    ("known", "later", "name"),
    [
        (set(), ("confirm", "metrics", "diagnostics"), "explained-later"),
        ({"confirm", "metrics"}, ("diagnostics",), "cured-later"),
    ],
)
async def test_what_nobody_could_tell_at_first_is_diagnosed_when_the_service_turns_out_bad(
    temporal: WorkflowEnvironment, known: set[str], later: tuple[str, ...], name: str
) -> None:
    world = World("errors")
    world.down = {"confirm", "metrics", "logs", "gateway_log", "database", "deployments"} - known
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            state = await until(handle, lambda s: s.step("declare").state is State.DONE, 60)  # type: ignore[union-attr]
            assert state.open_gate() is None, "nothing is known that could be offered"
            world.down.clear()
            await temporal.fast_forward(handle, 3 * MINUTE)
            state = await until(handle, lambda s: s.open_gate() is not None)
            assert state.gates[-1].plan["runbook"] == "QuickRollback"
            assert "diagnosed again" in timeline(state)
            seen = await situation(handle)
            assert seen.evidence is not None
            assert set(seen.evidence.failed_sources) >= {"lambda-log", "deployments"}, "the first look stays frozen"
            items = {item.id: item for item in state.checklist}
            for looked in later:
                assert items[looked].done
                assert " UTC, not at first: " in items[looked].note
            await handle.signal("approve", {"by": "bob"})
            await soon(lambda: bool(world.changes))
            await keep(handle, "Incident", name)
            await handle.terminate()


@pytest.mark.long
async def test_what_nobody_could_tell_for_a_long_time_is_diagnosed_soon_after_somebody_can(
    temporal: WorkflowEnvironment,
) -> None:
    world = World("errors")
    world.down = {"confirm", "metrics", "logs", "gateway_log", "database", "deployments"}
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await until(handle, lambda s: s.step("declare").state is State.DONE, 60)  # type: ignore[union-attr]
            await temporal.fast_forward(handle, 20 * MINUTE)
            assert timeline(await progress(handle)).count("diagnosed again") == 4, "after 2, 4, 8 and 16 looks"
            world.down.clear()
            await temporal.fast_forward(handle, 5 * MINUTE)
            state = await until(handle, lambda s: s.open_gate() is not None)
            assert state.gates[-1].plan["runbook"] == "QuickRollback"
            await keep(handle, "Incident", "explained-much-later")
            await handle.terminate()


class _WithoutDatabase(World):
    @activity.defn(name="database.connections")
    async def connections(self, stage: Stage) -> Connections:
        if "database" in self.down:
            raise ApplicationError("the database did not answer", type="MongoUnreachable")
        return await super().connections(stage)


async def test_a_database_that_did_not_answer_for_a_moment_explains_it_for_that_moment(
    temporal: WorkflowEnvironment,
) -> None:
    world = _WithoutDatabase("errors")
    world.down = {"database"}
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            state = await until(handle, lambda s: s.step("declare").state is State.DONE, 60)  # type: ignore[union-attr]
            assert "the database is down" in str((await situation(handle)).conclusion)
            assert state.open_gate() is None, "no runbook cures a database that is away"
            world.down.clear()
            await temporal.fast_forward(handle, 3 * MINUTE)
            state = await until(handle, lambda s: s.open_gate() is not None)
            assert state.gates[-1].plan["runbook"] == "QuickRollback"
            await keep(handle, "Incident", "explained-for-a-moment")
            await handle.terminate()


class _OddlyNamed(World):
    @activity.defn(name="deployments.find_target")
    async def find_target(self, wanted: FindTarget) -> RollbackTarget:
        found = await super().find_target(wanted)
        return found.model_copy(update={"target": ReleaseFacts(release="fix/login", label="fix/login")})


async def test_a_recovery_to_a_release_that_cannot_be_typed_is_not_offered(temporal: WorkflowEnvironment) -> None:
    world = _OddlyNamed("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            state = await until(handle, lambda s: "QuickRollback cannot be offered" in timeline(s))
            assert "to: String should match pattern" in timeline(state)
            await handle.signal("abort", {"by": "ann", "reason": "a drill"})
            await failure(handle)


async def test_a_no_goes_on_and_another_recovery_can_be_named(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await until(handle, lambda s: s.open_gate() is not None)
            await handle.signal("reject", {"by": "bob", "reason": "fix forward"})
            await until(handle, lambda s: "QuickRollback: bob said no" in timeline(s))
            assert (await progress(handle)).outcome is None
            with pytest.raises(Exception, match="Workflow update failed") as refused:
                await send(handle, "recover", runbook="ServiceRestart")
            assert "cannot help" in str(refused.value.__cause__) or "is no recovery" in str(refused.value.__cause__)
            await send(handle, "recover", runbook="QuickRollback")
            state = await until(handle, lambda s: s.open_gate() is not None)
            assert state.open_gate().id == "recover-2"  # type: ignore[union-attr]
            world.fault = "none"
            await temporal.fast_forward(handle, 3 * MINUTE)
            await send(handle, "mitigated", text="switched the flag off")
            await handle.terminate()


async def test_a_relapse_begins_anew_and_calls_again(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await soon(lambda: len(world.pages) == 1)
            await send(handle, "acknowledge")
            world.fault = "none"
            await temporal.fast_forward(handle, 5 * MINUTE)
            assert "the service is good again" in timeline(await progress(handle))
            world.fault = "errors"
            await temporal.fast_forward(handle, 4 * MINUTE)
            seen = (await situation(handle)).book
            assert seen is not None
            assert seen.episode == 2
            assert len(world.pages) == 2
            assert any("RELAPSE" in message.title for _, message in world.said)
            world.fault = "none"
            await temporal.fast_forward(handle, 30 * MINUTE)
            seen = (await situation(handle)).book
            assert seen is not None
            assert seen.reached("resolved")
            # And after it was resolved: the same alarm again.
            pages = len(world.pages)
            answer = await handle.execute_update("join", {"alert": "a-9", "source": "alarm", "text": "errors again"})
            assert answer == "joined"
            await until(handle, lambda s: "RELAPSE, outbreak 3" in timeline(s))
            await soon(lambda: len(world.pages) == pages + 1)
            await keep(handle, "Incident", "relapses")
            await handle.terminate()


async def test_false_alarm_is_resolved_by_a_person_and_never_by_itself(temporal: WorkflowEnvironment) -> None:
    world = World("none")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P4")
            await until(handle, lambda s: s.step("tree").state is State.DONE)  # type: ignore[union-attr]
            await temporal.fast_forward(handle, timedelta(hours=30))
            assert (await progress(handle)).outcome is None
            assert world.pages == []
            await send(handle, "resolve", cause="a typo in the footer")
            result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
    assert result.outcome is Outcome.COMPLETED
    assert world.written[-1].entry.cause == "a typo in the footer"


async def test_it_is_not_resolved_before_it_is_verified(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await until(handle, lambda s: s.open_gate() is not None)
            await send(handle, "resolve")
            await until(handle, lambda s: "not verified: it goes on" in timeline(s))
            assert not (await situation(handle)).book.reached("resolved")  # type: ignore[union-attr]
            await handle.terminate()


async def test_it_is_not_verified_while_it_is_not_ready(client: Client) -> None:
    world = World("none")
    world.down = {"/health/ready"}
    async with working(client, world) as queue:
        handle = await begin(client, queue, severity="P1")
        await soon(lambda: bool(world.pages))
        shown = (await handle.query("__temporal_workflow_metadata")).current_details
        assert 'update `acknowledge` with `{"by": "your name"}`' in shown, "for people without the command line"
        await send(handle, "resolve", cause="the database was away")
        await until(handle, lambda s: "not verified: it goes on" in timeline(s))
        world.down = set()
        await send(handle, "resolve")
        state = await until(handle, lambda s: "resolved as ann said" in timeline(s))
        assert state.step("verify-ready").state is State.DONE  # type: ignore[union-attr]
        await keep(handle, "Incident", "not-ready")
        await handle.terminate()


async def test_an_open_gate_stays_listed_whatever_else_the_incident_does(client: Client) -> None:
    async with working(client, World("errors")) as queue:
        handle = await begin(client, queue, severity="P1")
        await until(handle, lambda s: s.open_gate() is not None)

        async def listed() -> str | None:
            return (await handle.describe()).typed_search_attributes.get(search_attributes.GATE)

        def unverified(state: RunState) -> int:
            return [entry.text for entry in state.timeline].count("not verified: it goes on")

        await send(handle, "resolve")
        await until(handle, lambda s: unverified(s) == 1)
        assert await listed() == "recover-1"
        await handle.signal("pause", {"by": "bob"})
        await send(handle, "resolve")
        await until(handle, lambda s: s.phase is Phase.PAUSED)
        assert await listed() == "recover-1"
        await handle.signal("resume", {"by": "bob"})
        await until(handle, lambda s: unverified(s) == 2)
        assert await listed() == "recover-1"
        await handle.signal("reject", {"by": "bob"})
        await until(handle, lambda s: s.open_gate() is None)
        assert await listed() is None
        await keep(handle, "Incident", "resolve-at-an-open-gate")
        await handle.terminate()


async def test_a_question_that_nobody_answered_is_no_longer_listed(client: Client) -> None:
    async with working(client, World("errors", gates={"recover": {"time_limit": "PT1S"}})) as queue:
        handle = await begin(client, queue, severity="P1")
        state = await until(handle, lambda s: "nobody answered 'recover-1'" in timeline(s))
        assert state.phase is Phase.WAITING
        assert search_attributes.GATE not in (await handle.describe()).typed_search_attributes
        await keep(handle, "Incident", "recovery-expired")
        await handle.terminate()


async def test_abort_ends_the_pages(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, severity="P1")
            await soon(lambda: bool(world.pages))
            await handle.signal("abort", {"by": "ann", "reason": "a test of the alarm"})
            with pytest.raises(Exception, match="failed"):
                await asyncio.wait_for(handle.result(), 180)
            await keep(handle, "Incident", "aborted")
    assert [end.key for end in world.page_ends] == [page.key for _, page in world.pages]


async def test_a_dry_run_looks_and_tells_nobody(temporal: WorkflowEnvironment) -> None:
    world = World("errors")
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, dry_run=True)
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
        shown = (await handle.query("__temporal_workflow_metadata")).current_details
        assert "In command" in shown
        assert "Next, " not in shown, "it is over"
        assert "runbooks incident" not in shown
        await keep(handle, "Incident", "dry-run")
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would be a P2: 50.0% of the requests fail")
    assert (world.pages, world.said, world.changes) == ([], [], [])


async def test_a_worker_dead_for_the_first_minute_pages_once_when_one_is_back(client: Client) -> None:
    world = World("errors")
    queue = "incident-late-worker"
    handle = await begin(client, queue, severity="P1")
    await asyncio.sleep(2)
    assert world.pages == []
    async with working(client, world, queue):
        await soon(lambda: bool(world.pages), 30)
        await until(handle, lambda s: s.open_gate() is not None)
        opened = (await situation(handle)).book.opened_at  # type: ignore[union-attr]
        assert world.pages[0][0] - opened >= timedelta(seconds=2), "the clocks count from the start of the run"
        assert len(world.pages) == 1
        await handle.terminate()


async def test_diagnosis_alone(temporal: WorkflowEnvironment) -> None:
    for fault, branch in (
        ("dead", "not_responding"),
        ("errors", "errors"),
        ("latency", "latency"),
        ("throttling",) * 2,
    ):
        world = World(fault)
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, "Diagnosis")
            result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
            verdict: dict[str, Any] = await handle.query("verdict")
            await keep(handle, "Diagnosis", fault)
        assert (result.facts["branch"], verdict["branch"]) == (branch, branch)
        assert (world.pages, world.said) == ([], [])
