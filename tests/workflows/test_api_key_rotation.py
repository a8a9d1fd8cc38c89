"""ApiKeyRotation in a scripted world: true graces of 30 days with time skipped, and every way it can end."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from tests.histories import keep
from tests.workflows.probe import at_gate, failure, outcome, progress, until
from tests.workflows.rotation_world import NEVER, NEW, OLD, World, begin, begin_by_schedule, working
from workflows.model import Outcome, RunbookResult, RunState, State

DAY = timedelta(days=1)
ALL_MOVE = {"web": 2 * DAY, "app": 5 * DAY, "cron": 9 * DAY}
APP_STAYS = {"web": 2 * DAY, "app": NEVER, "cron": 9 * DAY}


async def finished(handle: Any, patience: float = 90) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), patience))


def reminders(world: World, client: str) -> list[float]:
    """Days after the first notice on which a client was reminded."""
    mine = [(at, title) for at, to, title in world.mails if to == f"{client}@example.com"]
    return [round((at - mine[0][0]) / DAY) for at, title in mine[1:]]


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


# --- true graces of 30 days -----------------------------------------------------------------------------------------


async def test_unused_keys_are_removed_after_30_days(temporal: WorkflowEnvironment) -> None:
    world = World(ALL_MOVE)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert world.live == list(NEW.values())
    assert world.current == NEW
    assert [(item.id, item.note) for item in result.checklist if not item.done] == []
    assert {to for _, to, _ in world.mails} == {"web@example.com", "app@example.com", "cron@example.com"}
    assert [reminders(world, client) for client in ("web", "app", "cron")] == [[], [], []]
    daily = [
        (later.end - earlier.end) / DAY for earlier, later in zip(world.looks[2:30], world.looks[3:31], strict=True)
    ]
    assert all(0.9 < gap < 1.1 for gap in daily), daily
    entry = world.entries[handle.id]
    assert (entry.status, entry.old, entry.new) == ("completed", tuple(OLD.values()), tuple(NEW.values()))
    wait = world.next[0].at - entry.started_at
    assert (world.next[0].runbook, wait.days) == ("ApiKeyRotation", 90)
    assert world.next[0].input.get("emergency") is None
    history = await handle.fetch_history()
    assert len(history.events) < 900, "bounded, though it looks daily"
    await keep(handle, "ApiKeyRotation", "thirty-days")


async def test_a_client_that_stays_is_reminded_then_people_decide(temporal: WorkflowEnvironment) -> None:
    world = World(APP_STAYS)
    world.answers = ["reject", "approve"]
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, extension="P7D")
        result = await finished(handle)
        state = await progress(handle)
    assert result.outcome is Outcome.COMPLETED
    assert [gate.plan["on old keys"] for gate in state.gates] == ["app", "app"]
    first = reminders(world, "app")
    assert first[:4] == [16, 23, 27, 29], "14, 7, 3 and 1 days before the deadline"
    assert len(first) == 7, "and anew before the extended one: 7, 3 and 1"
    assert [reminders(world, client) for client in ("web", "cron")] == [[], []]
    assert world.live == list(NEW.values())
    assert result.facts["extensions"] == 1
    clients = next(item for item in result.checklist if item.id == "clients")
    assert (clients.done, "not seen with it: app" in str(clients.note)) == (False, True)
    await keep(handle, "ApiKeyRotation", "extended")


@pytest.mark.parametrize(
    ("registered", "moves", "done", "said"),
    [
        pytest.param(
            {"web", "app"},
            {**ALL_MOVE, "cron": NEVER},
            False,
            "app, web; removed by decision from cron",
            marks=pytest.mark.long,
        ),
        (set(), dict.fromkeys(ALL_MOVE, NEVER), False, "nobody; removed by decision from app, cron, web"),
        pytest.param(set(), dict.fromkeys(ALL_MOVE, timedelta(0)), True, "app, cron, web", marks=pytest.mark.long),
    ],
)
async def test_clients_that_nobody_registered_count_as_the_log_names_them(
    temporal: WorkflowEnvironment, registered: set[str], moves: dict[str, timedelta], done: bool, said: str
) -> None:
    world = World(moves)
    world.registered = registered
    world.answers = ["approve"]
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue))
    assert result.outcome is Outcome.COMPLETED
    clients = next(item for item in result.checklist if item.id == "clients")
    assert (clients.done, clients.note) == (done, f"on their new key: {said}")


async def test_without_any_client_nothing_is_said_to_be_verified(temporal: WorkflowEnvironment) -> None:
    world = World(ALL_MOVE)
    world.registered, world.unnamed = set(), True
    world.answers = ["approve"]
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue))
    assert [item.id for item in result.checklist if not item.done] == ["clients"]


@pytest.mark.long
async def test_a_client_that_moves_in_the_extension_is_not_asked_about_again(temporal: WorkflowEnvironment) -> None:
    world = World({**ALL_MOVE, "app": 33 * DAY})
    world.answers = ["reject"]
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        result = await finished(handle)
        state = await progress(handle)
    assert result.outcome is Outcome.COMPLETED
    assert len(state.gates) == 1
    assert all(item.done for item in result.checklist)


async def test_nobody_answers_and_the_extensions_are_used_up(temporal: WorkflowEnvironment) -> None:
    world = World(APP_STAYS)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, max_extensions=1)
        with pytest.raises(WorkflowFailureError) as failed:
            await finished(handle)
        error = failed.value.cause
    assert isinstance(error, ApplicationError)
    assert error.type == "Rejected"
    assert "Old and new keys both stay accepted" in error.message
    assert "Nothing had been changed" not in error.message
    assert set(world.live) == {*OLD.values(), *NEW.values()}, "nobody is locked out"
    assert outcome(error).outcome is Outcome.REJECTED
    assert world.entries[handle.id].status == "ended"


async def test_a_log_that_tells_nothing_is_not_taken_for_silence(temporal: WorkflowEnvironment) -> None:
    for defect, says in (("blind", "could not be read"), ("unnamed", "no log line names a key")):
        world = World(ALL_MOVE)
        setattr(world, defect, True)
        world.answers = ["approve"]
        async with working(temporal.client, world) as queue:
            handle = await begin(temporal.client, queue, grace="P2D")
            assert (await finished(handle)).outcome is Outcome.COMPLETED
            state = await progress(handle)
            assert says in str(state.gates[-1].plan["on old keys"])


@pytest.mark.long
async def test_a_long_grace_goes_on_in_new_histories(temporal: WorkflowEnvironment) -> None:
    world = World(APP_STAYS)
    world.answers = ["approve"]
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, "ShortKeyHistories")
        result = await finished(handle)
        latest = temporal.client.get_workflow_handle(handle.id)
        last = await latest.fetch_history()
        state = await progress(latest)
    assert result.outcome is Outcome.COMPLETED
    assert last.run_id != handle.first_execution_run_id
    assert len(last.events) < 300
    # The server sometimes skips days before a new history's first task: the reminders of those days are not sent later.
    sent = reminders(world, "app")
    assert sent == sorted(set(sent)), "none is sent twice between two histories"
    assert len(sent) >= 2
    assert len(world.looks) > 15
    assert state.timeline[0].text == "asked for: quarterly"
    assert world.entries[handle.id].status == "completed"
    assert state.gates[-1].plan["on old keys"] == "app"
    assert world.live == list(NEW.values())


async def test_what_is_sent_while_a_history_ends_stands_in_the_next(client: Client) -> None:
    world = World(APP_STAYS, every=timedelta(days=1000))
    world.chat_held = asyncio.Event()
    async with working(client, world) as queue:
        handle = await begin(client, queue, "ShortKeyHistories", grace="P30D", look_every="PT1S")
        await until(handle, lambda s: bool(s.waits))
        await until(handle, lambda s: not s.waits)  # the history is long: it goes on when the chat has taken all
        first = client.get_workflow_handle(handle.id, run_id=handle.result_run_id)
        await first.signal("acknowledge", {"by": "cid", "client": "web"})
        world.chat_held.set()
        latest = client.get_workflow_handle(handle.id)
        await until(latest, lambda s: s.run_id != handle.result_run_id)
        assert (await carried(latest))["clients"]["web"]["acknowledged_by"] == "cid"
        await latest.terminate()


async def carried(handle: Any) -> dict[str, Any]:
    """What the run was given by the one before it, to go on from."""
    started = (await handle.fetch_history()).events[0].workflow_execution_started_event_attributes
    cursor: dict[str, Any] = json.loads(started.input.payloads[0].data)["carried"]["cursor"]
    return cursor


# --- what its schedule has begun -----------------------------------------------------------------------------------


def comes_again(world: World, handle: Any, after: timedelta) -> bool:
    """Whether its schedule is set once: so long after the run ended, at the hour at which it had begun."""
    (wanted,), entry = world.next, world.entries[handle.id]
    assert wanted.at == entry.next_at
    assert wanted.input == {"stage": entry.stage, "reason": "every 90 days", "requested_by": "schedule"}
    assert handle.id.startswith(f"{wanted.schedule}/run"), "the same id: a pause of it holds"
    hours = (wanted.at - entry.started_at) % DAY
    assert hours <= timedelta(seconds=1)
    return after - DAY / 2 <= wanted.at - entry.ended_at <= after + DAY / 2 + timedelta(seconds=1)


async def test_what_fails_is_tried_again_the_next_day(client: Client) -> None:
    world = World(ALL_MOVE)
    world.failing_deploy = 1
    async with working(client, world) as queue:
        handle = await begin_by_schedule(client, queue)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "DeployFailed"
    assert comes_again(world, handle, DAY)
    assert state.step("next").state is State.DONE  # type: ignore[union-attr]
    item = next(item for item in state.checklist if item.id == "next")
    assert (item.done, "ended as failed" in str(item.note)) == (True, True)
    await keep(handle, "ApiKeyRotation", "comes-again")


async def test_what_its_pair_holds_up_is_tried_again_after_the_overlap(client: Client) -> None:
    world = World(ALL_MOVE)
    world.blocked, world.blocked_for = "production/Other is being rotated by run-1", 10 * DAY
    async with working(client, world) as queue:
        handle = await begin_by_schedule(client, queue)
        assert (await failure(handle)).type == "PairRotates"
    assert comes_again(world, handle, 11 * DAY)


async def test_what_people_end_comes_two_weeks_later(client: Client) -> None:
    world = World(APP_STAYS)
    async with working(client, world) as queue:
        handle = await begin_by_schedule(client, queue)
        await until(handle, lambda s: bool(s.waits))
        await handle.signal("abort", {"by": "bob", "reason": "freeze"})
        assert (await failure(handle)).type == "Aborted"
    assert comes_again(world, handle, 14 * DAY)


async def test_when_the_new_keys_are_in_use_the_next_comes_at_its_date(temporal: WorkflowEnvironment) -> None:
    world = World(APP_STAYS)
    async with working(temporal.client, world) as queue:
        handle = await begin_by_schedule(temporal.client, queue, max_extensions=0)
        assert (await failure(handle)).type == "Rejected"
    (wanted,), entry = world.next, world.entries[handle.id]
    assert (wanted.at - entry.started_at).days == 90
    assert entry.next_at == wanted.at


async def test_what_fails_before_it_is_entered_comes_again_too(client: Client) -> None:
    world = World(ALL_MOVE, production=True, rotation={"api_keys": {"name": "ApiKeys", "store": "app/ApiKeys"}})
    async with working(client, world) as queue:
        handle = await begin_by_schedule(client, queue)
        assert (await failure(handle)).type == "NoStaging"
    assert [one.runbook for one in world.next] == ["ApiKeyRotation"]
    assert world.entries == {}


@pytest.mark.parametrize("asked", [{"dry_run": True}, {"schedule_next": False}])
async def test_a_dry_run_and_a_run_that_is_the_only_one_set_no_date(client: Client, asked: dict[str, bool]) -> None:
    world = World(ALL_MOVE, production=True, rotation={"api_keys": {"name": "ApiKeys", "store": "app/ApiKeys"}})
    async with working(client, world) as queue:
        assert (await failure(await begin_by_schedule(client, queue, **asked))).type == "NoStaging"
    assert world.next == []


# --- other ways -----------------------------------------------------------------------------------------------------


async def test_production_is_rotated_after_the_other_stage(temporal: WorkflowEnvironment) -> None:
    world = World({}, production=True)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, grace="PT2H", quiet="PT0S")
        await finished(handle)
        staging = [entry for entry in world.entries.values() if entry.stage == "staging"]
        assert [entry.status for entry in staging] == ["completed"]
        assert staging[0].started_at < world.entries[handle.id].started_at + timedelta(minutes=1)
        again = await begin(temporal.client, queue, grace="PT2H", quiet="PT0S")
        await finished(again)
        assert len([entry for entry in world.entries.values() if entry.stage == "staging"]) == 1, "it is fresh enough"


async def test_an_emergency_asks_and_skips_the_grace(client: Client) -> None:
    world = World(APP_STAYS, production=True)
    async with working(client, world) as queue:
        handle = await begin(client, queue, emergency=True, requested_by="ann")
        state = await until(handle, at_gate)
        assert state.gates[0].id == "emergency"
        assert str(state.gates[0].plan["used within 7 days by"]) == "app, cron, web"
        assert world.live == list(OLD.values())
        await handle.signal("approve", {"by": "bob"})
        result = await finished(handle)
        state = await progress(handle)
    assert result.outcome is Outcome.COMPLETED
    assert world.live == list(NEW.values())
    assert not state.step("grace").started_at  # type: ignore[union-attr]
    left = {item.id: item.note for item in result.checklist if not item.done}
    assert set(left) == {"non-production", "clients"}
    await keep(handle, "ApiKeyRotation", "emergency")


async def test_a_deployment_that_fails_leaves_everything_as_it_was(client: Client) -> None:
    world = World(ALL_MOVE)
    world.failing_deploy = 1
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "DeployFailed"
    assert "Everything that was begun has been undone" in error.message
    assert (world.listed, world.live, world.current) == (list(OLD.values()), list(OLD.values()), OLD)
    assert state.step("create").state is State.UNDONE  # type: ignore[union-attr]
    assert world.mails == [], "nobody was told of keys that are gone"
    await keep(handle, "ApiKeyRotation", "deploy-fails")


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("api_keys.create", marks=pytest.mark.long),
        pytest.param("api_keys.accept", marks=pytest.mark.long),
        "deployments.again",
    ],
)
async def test_the_worker_dies(temporal: WorkflowEnvironment, moment: str) -> None:
    """Between any two of 'created', 'stored', 'deployed', 'verified': the step is repeated and makes the same."""
    world = World(ALL_MOVE)
    world.fail_after = moment
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, look_every="P5D"))
    assert (result.outcome, world.live, world.fail_after) == (Outcome.COMPLETED, list(NEW.values()), None)


async def test_a_removal_that_fails_accepts_the_old_keys_again(temporal: WorkflowEnvironment) -> None:
    world = World(ALL_MOVE)
    world.failing_deploy = 2
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue))
    assert error.type == "DeployFailed"
    assert set(world.live) == {*OLD.values(), *NEW.values()}, "old and new both work: nobody is locked out"


async def test_an_abort_within_the_grace_goes_back(client: Client) -> None:
    world = World(APP_STAYS)
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        state = await until(handle, lambda s: bool(s.waits))
        assert not state.lock.held, "others may work on the stage meanwhile"
        await handle.signal("abort", {"by": "bob", "reason": "wrong quarter"})
        error = await failure(handle)
    assert error.type == "Aborted"
    assert (world.listed, world.live, world.current) == (list(OLD.values()), list(OLD.values()), OLD)
    await keep(handle, "ApiKeyRotation", "aborted-in-the-grace")


async def test_the_pair_never_rotates_within_one_overlap(client: Client) -> None:
    world = World(ALL_MOVE)
    world.blocked = "production/Other is being rotated by run-1"
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        error = await failure(handle)
    assert (error.type, "production/Other" in error.message) == ("PairRotates", True)
    assert world.entries[handle.id].status == "ended", "its own entry does not block others"
    assert world.live == list(OLD.values())
    assert world.next == [], "people began it: the schedule stays as it is"


async def test_acknowledgements_are_noted_and_others_are_refused(client: Client) -> None:
    world = World(APP_STAYS)
    world.deaf = True
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        await until(handle, lambda s: bool(s.waits), 60)
        await handle.signal("acknowledge", {"by": "mo", "client": "web"})
        await handle.signal("acknowledge", {"by": "mo", "client": "nobody"})
        state = await until(handle, lambda s: "nobody" in timeline(s))
        said = timeline(state)
        assert "acknowledges the new key of web" in said
        assert "no registered client 'nobody'; registered: web, app, cron" in said
        assert "owner of web could not be told about web's key" in said
        await handle.signal("abort", {"by": "bob"})
        await failure(handle)


async def test_a_dry_run_makes_and_tells_nothing(client: Client) -> None:
    world = World(APP_STAYS, production=True)
    async with working(client, world) as queue:
        handle = await begin(client, queue, dry_run=True)
        result = await finished(handle)
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would "), result.summary
    assert (world.listed, world.deploys, world.mails, world.told, world.entries, world.next) == (
        list(OLD.values()),
        0,
        [],
        [],
        {},
        [],
    )
    said = "\n".join(result.would_change)
    for part in (
        "rotate staging first",
        "three new keys",
        "beside the 3 old",
        "mail owner of web",
        "schedule the next",
    ):
        assert part in said
    await keep(handle, "ApiKeyRotation", "dry-run")
