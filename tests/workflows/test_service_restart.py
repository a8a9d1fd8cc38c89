"""ServiceRestart in a scripted world: however it ends, and whatever ends it, traffic comes back."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment

from tests.histories import keep
from tests.patience import soon
from tests.workflows.probe import failure, progress, until
from tests.workflows.restart_world import QUICK, Boundaries, RestartWorld, begin, watchdog_of, working
from workflows.model import Outcome, RunbookResult, State
from workflows.restart_judge import Rung, Verdict, judge, steps_up

CURED = {"1": 0.5, "2": 0.0}


def cured(version: str) -> float:
    return CURED[version]


def broken(_version: str) -> float:
    return 0.5


def dead(version: str) -> float:
    return 1.0 if version == "2" else 0.5


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


async def approved(client: Client, queue: str, **inp: Any) -> Any:
    handle = await begin(client, queue, **{**QUICK, **inp})
    await until(handle, lambda s: s.open_gate() is not None)
    await handle.signal("approve", {"by": "bob"})
    return handle


# --- the judge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "invocations", "before", "verdict"),
    [
        (0, 100, None, Verdict.GOOD),
        (0, 100, 0.5, Verdict.GOOD),
        (1, 100, 0.0, Verdict.BAD),
        (20, 100, 0.5, Verdict.BETTER),
        (26, 100, 0.5, Verdict.BAD),
        (20, 100, None, Verdict.BAD),
        (5, 9, None, Verdict.FEW),
        (0, 0, None, Verdict.FEW),
        (None, 100, None, Verdict.UNKNOWN),
        (0, None, None, Verdict.UNKNOWN),
    ],
)
def test_a_step_is_judged(errors: int | None, invocations: int | None, before: float | None, verdict: Verdict) -> None:
    assert judge(Rung(errors, invocations), 0.01, before).verdict is verdict


@pytest.mark.parametrize(
    ("former", "reservable", "steps"),
    [
        (None, None, (2, 10, 50)),
        (None, 900, (2, 10, 50)),
        (None, 20, (2, 10)),
        (None, 0, ()),
        (10, 0, (2,)),
        (100, 0, (2, 10, 50)),
        (1, 900, ()),
    ],
)
def test_only_steps_that_fit_are_taken(former: int | None, reservable: int | None, steps: tuple[int, ...]) -> None:
    assert steps_up((2, 10, 50), former, reservable) == steps


# --- how it goes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("former", [pytest.param(None, marks=pytest.mark.long), 100])
async def test_every_environment_is_new_and_traffic_is_back(client: Client, former: int | None) -> None:
    world = RestartWorld(cured, reserved=former)
    async with working(client, world) as queue:
        handle = await approved(client, queue)
        result = await finished(handle)
        watchdog = await watchdog_of(client, handle)
        assert watchdog
        assert "given traffic back itself" in (await finished(watchdog)).summary
    assert result.outcome is Outcome.COMPLETED
    assert world.limits == [0, 2, 10, 50, former]
    assert world.version == "2"
    assert [item.id for item in result.checklist if not item.done] == []
    assert "Emergency restart of" in world.told[1]
    await keep(handle, "ServiceRestart", "cured" if former is None else "cured-with-a-limit")
    await keep(watchdog, "ServiceRestartWatchdog", "stood-down")


async def test_the_gate_is_asked_even_where_the_policy_asks_nobody(client: Client) -> None:
    world = RestartWorld(cured)
    async with working(client, world) as queue:
        handle = await begin(client, queue, **QUICK, incident="INC-1")
        await until(handle, lambda s: s.open_gate() is not None)
        await handle.signal("reject", {"by": "bob"})
        assert (await failure(handle)).type == "Rejected"
    assert world.limits == []


async def test_a_restart_that_is_no_cure_gives_traffic_back_and_says_so(client: Client) -> None:
    world = RestartWorld(broken)
    async with working(client, world) as queue:
        error = await failure(await approved(client, queue))
    assert error.type == "StillFailing"
    assert "Everything that was begun has been undone" in error.message
    assert world.limits == [0, 2, None]
    assert world.version == "1"


async def test_environments_that_do_not_answer_are_left_again(client: Client) -> None:
    world = RestartWorld(dead)
    async with working(client, world) as queue:
        assert (await failure(await approved(client, queue))).type == "DoesNotAnswer"
    assert (world.reserved, world.version) == (None, "1")


async def test_without_calls_it_goes_on_and_says_that_it_does_not_know(client: Client) -> None:
    world = RestartWorld(cured)
    world.invocations = 0
    async with working(client, world) as queue:
        handle = await approved(client, queue, ladder=[2])
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        timeline = " ".join(entry.text for entry in (await progress(handle)).timeline)
    assert "goes on without knowing" in timeline


async def test_a_dry_run_stops_nothing(client: Client) -> None:
    world = RestartWorld(cured)
    async with working(client, world) as queue:
        handle = await begin(client, queue, **QUICK, dry_run=True)
        result = await finished(handle)
        assert await watchdog_of(client, handle) is None
    assert world.limits == []
    assert world.told == []
    assert len(result.would_change) >= 6
    assert result.summary.startswith("would start every environment")


OF_PRODUCTION: Any = {"production": True, "channels": {"stakeholders": ["team@example.org"]}}


@pytest.mark.parametrize(
    ("policies", "down", "mails", "done", "note"),
    [
        pytest.param(
            OF_PRODUCTION,
            False,
            ["begins", "is done"],
            True,
            "mailed team@example.org by ses; told slack",
            marks=pytest.mark.long,
        ),
        (OF_PRODUCTION, True, [], False, "nobody took the mail to the stakeholders; told slack"),
        ({"production": True}, False, [], True, "told slack; the settings name nobody to mail"),
    ],
)
async def test_stakeholders_of_production_are_mailed(
    client: Client, policies: dict[str, Any], down: bool, mails: list[str], done: bool, note: str
) -> None:
    world = RestartWorld(cured, **policies)
    world.down = {"mail"} if down else set()
    async with working(client, world) as queue:
        handle = await approved(client, queue)
        result = await finished(handle)
    item = next(item for item in result.checklist if item.id == "stakeholders")
    assert (item.done, item.note) == (done, note)
    assert [mail.title for mail in world.mails] == [f"Emergency restart of {result.stage} {end}" for end in mails]
    if mails:
        await keep(handle, "ServiceRestart", "stakeholders-mailed")


async def test_who_was_mailed_that_it_begins_is_mailed_that_it_failed(client: Client) -> None:
    world = RestartWorld(broken, **OF_PRODUCTION)
    async with working(client, world) as queue:
        handle = await approved(client, queue)
        assert (await failure(handle)).type == "StillFailing"
    assert [mail.title.split()[-1] for mail in world.mails] == ["begins", "failed"]
    assert "Everything that was begun has been undone" in world.mails[1].text
    await keep(handle, "ServiceRestart", "stakeholders-mailed-of-its-failure")


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ({"reissue_problem": "the unpublished code is not what is live"}, "NotRestartable"),
        ({"provisioned": 5}, "Provisioned"),
        ({"reserved": 0}, "StoppedAlready"),
    ],
)
async def test_what_cannot_be_is_said_before_anybody_is_asked(client: Client, state: Any, kind: str) -> None:
    world = RestartWorld(cured)
    world.state = state
    async with working(client, world) as queue:
        assert (await failure(await begin(client, queue, **QUICK))).type == kind
    assert world.limits == []


async def test_traffic_need_not_be_stopped(client: Client) -> None:
    world = RestartWorld(cured)
    async with working(client, world) as queue:
        handle = await approved(client, queue, stop_traffic=False)
        assert (await finished(handle)).outcome is Outcome.COMPLETED
        assert await watchdog_of(client, handle) is None
    assert world.limits == []
    assert world.version == "2"


# --- whatever ends it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["abort", "cancel"])
async def test_abort_and_cancel_give_traffic_back(client: Client, how: str) -> None:
    world = RestartWorld(cured, **OF_PRODUCTION)
    async with working(client, world) as queue:
        handle = await approved(client, queue, drain="PT5M")
        await until(handle, lambda s: s.step("drain").state is State.WAITING)
        assert world.reserved == 0
        await (handle.cancel() if how == "cancel" else handle.signal("abort", {"by": "bob"}))
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), 180)
        watchdog = await watchdog_of(client, handle)
        assert watchdog
        await finished(watchdog)
    assert world.limits == [0, None]
    assert [mail.title.split()[-1] for mail in world.mails] == [
        "begins",
        {"abort": "aborted", "cancel": "cancelled"}[how],
    ]


@pytest.mark.long
async def test_aborted_or_cancelled_at_any_boundary_traffic_comes_back(client: Client) -> None:
    """After each activity the run ever makes, in a run of its own each time; by turns, for both go the same way."""

    async def stop_after(number: int) -> str | None:
        how = ("abort", "cancel")[number % 2]
        world, run = RestartWorld(cured), f"{how}-{number}-{uuid.uuid4()}"
        ended: list[str] = []

        async def at(count: int, name: str) -> None:
            if count == number:
                ended.append(name)
                handle = client.get_workflow_handle(run)
                await (handle.cancel() if how == "cancel" else handle.signal("abort", {"by": "bob"}))

        async with working(client, world, Boundaries(run, at)) as queue:
            world.answer = lambda: client.get_workflow_handle(run).signal("approve", {"by": "bob"})
            handle = await begin(client, queue, run, **QUICK, ladder=[2])
            with contextlib.suppress(WorkflowFailureError):  # stopped when all was done, it is simply done
                await asyncio.wait_for(handle.result(), 180)
            assert world.reserved is None, ended
        return ended[0] if ended else None

    names: list[str] = []
    for first in range(1, 60, 12):
        found = await asyncio.gather(*(stop_after(n) for n in range(first, first + 12)))
        names += [name for name in found if name]
        if None in found:
            break
    for step in ("settings", "stop-traffic", "restart", "redeploy", "let-in-2", "judge-2", "give-back"):
        assert step in names, names


async def test_a_limit_that_somebody_set_meanwhile_is_left(client: Client) -> None:
    world = RestartWorld(cured)
    async with working(client, world) as queue:
        handle = await approved(client, queue, drain="PT5M")
        await until(handle, lambda s: s.step("drain").state is State.WAITING)
        world.reserved = 33
        await handle.signal("abort", {"by": "bob"})
        assert "undone" in (await failure(handle)).message
    assert world.reserved == 33


async def test_where_the_run_cannot_give_it_back_the_watchdog_goes_on(temporal: WorkflowEnvironment) -> None:
    world = RestartWorld(cured)
    world.down = {"limit None"}
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await approved(temporal.client, queue, drain="PT5M")
            await until(handle, lambda s: s.step("drain").state is State.WAITING)
            await handle.signal("abort", {"by": "bob"})
            assert (await failure(handle)).type == "LeftUndone"
            assert world.reserved == 0
            world.down = set()
            await watched(temporal, handle)
    assert world.reserved is None
    assert any("watchdog gave the traffic" in told for told in world.told)


async def test_a_run_that_hangs_is_overtaken(temporal: WorkflowEnvironment) -> None:
    world = RestartWorld(cured)
    with temporal.with_time_skipping_disabled():
        async with working(temporal.client, world) as queue:
            handle = await approved(temporal.client, queue, drain="PT5M", longest="PT10M")
            await until(handle, lambda s: s.step("drain").state is State.WAITING)
            await handle.signal("pause", {"by": "bob"})
            watchdog = await watchdog_of(temporal.client, handle)
            assert watchdog
            await temporal.fast_forward(watchdog, timedelta(minutes=11))
            assert "the longest time is over" in (await finished(watchdog)).summary
            assert world.reserved is None
            await handle.signal("resume", {"by": "bob"})
            await temporal.fast_forward(handle, timedelta(minutes=6))
            result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert world.limits == [0, None], "nobody would give it back a second time"
    await keep(watchdog, "ServiceRestartWatchdog", "longest")


@pytest.mark.parametrize(
    ("former", "by_hand"),
    [
        pytest.param(None, None, marks=pytest.mark.long),
        pytest.param(100, 100, marks=pytest.mark.long),
        (100, 33),
        pytest.param(None, 2, marks=pytest.mark.long),
    ],
)
async def test_traffic_that_is_back_is_not_taken_away_again(
    client: Client, former: int | None, by_hand: int | None
) -> None:
    """Somebody gives it back while the environments start anew; a limit of this run's own is no such thing."""
    world = RestartWorld(cured, reserved=former)
    async with working(client, world) as queue:
        handle = await approved(client, queue, drain="PT5M")
        await until(handle, lambda s: s.step("drain").state is State.WAITING)
        world.reserved = by_hand
        await handle.execute_update("end_wait", {"by": "bob", "wait": "drain"})
        result = await finished(handle)
        timeline = " ".join(entry.text for entry in (await progress(handle)).timeline)
    assert result.outcome is Outcome.COMPLETED
    if by_hand == 2:
        assert world.limits == [0, 10, 50, former]
        return
    assert world.limits == [0]
    assert world.reserved == by_hand
    assert "traffic is not limited again" in timeline
    assert [item.id for item in result.checklist if not item.done] == ["resumed"]
    await keep(handle, "ServiceRestart", "traffic-is-back")


async def test_a_step_whose_answer_was_lost_is_made_again(client: Client) -> None:
    world = RestartWorld(cured)
    async with working(client, world) as queue:
        handle = await approved(client, queue, drain="PT5M")
        await until(handle, lambda s: s.step("drain").state is State.WAITING)
        world.fail_after = "functions.limit"
        await handle.execute_update("end_wait", {"by": "bob", "wait": "drain"})
        result = await finished(handle)
    assert world.fail_after is None
    assert result.outcome is Outcome.COMPLETED
    assert world.limits == [0, 2, 10, 50, None]


async def watched(temporal: WorkflowEnvironment, handle: Any) -> RunbookResult | None:
    """Let the watchdog's time pass. Returns its end; None when there is none."""
    watchdog = await watchdog_of(temporal.client, handle)
    if watchdog is None:
        return None
    with contextlib.suppress(RPCError):  # it has ended by itself
        await temporal.fast_forward(watchdog, timedelta(seconds=40))
    return await finished(watchdog)


@pytest.mark.long
async def test_terminated_at_any_boundary_traffic_comes_back(temporal: WorkflowEnvironment) -> None:
    """The run is terminated after each activity it ever makes, in a run of its own each time."""

    async def terminate_after(number: int) -> str | None:
        """The activity after which it was terminated; None when the run has fewer."""
        world, run = RestartWorld(cured), f"terminated-{number}-{uuid.uuid4()}"
        ended: list[str] = []

        async def at(count: int, name: str) -> None:
            if count == number:
                ended.append(name)
                await temporal.client.get_workflow_handle(run).terminate("to see what happens")

        async with working(temporal.client, world, Boundaries(run, at)) as queue:
            world.answer = lambda: temporal.client.get_workflow_handle(run).signal("approve", {"by": "bob"})
            handle = await begin(temporal.client, queue, run, **QUICK, ladder=[2])
            result = asyncio.create_task(handle.result())
            await asyncio.wait({result}, timeout=90)
            error = result.exception()
            stopped = world.reserved
            if error is None:
                return None
            end = await watched(temporal, handle)
            assert world.reserved is None, (ended, stopped)
            if stopped is not None:
                assert end
                assert "ended without giving traffic back" in end.summary, ended
        return ended[0]

    with temporal.with_time_skipping_disabled():
        names: list[str] = []
        for first in range(1, 60, 12):
            found = await asyncio.gather(*(terminate_after(n) for n in range(first, first + 12)))
            names += [name for name in found if name]
            if None in found:
                break
    for step in ("settings", "stop-traffic", "restart", "redeploy", "let-in-2", "judge-2", "give-back"):
        assert step in names, names


async def test_a_dead_watchdog_is_not_needed(client: Client) -> None:
    world = RestartWorld(cured)
    async with working(client, world) as queue:
        handle = await approved(client, queue, drain="PT5M")
        await until(handle, lambda s: s.step("drain").state is State.WAITING)
        watchdog = await watchdog_of(client, handle)
        assert watchdog
        await watchdog.terminate()
        await handle.signal("abort", {"by": "bob"})
        await failure(handle)
    await soon(lambda: world.reserved is None)
