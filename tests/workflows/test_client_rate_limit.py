"""ClientRateLimit in a scripted world: a client that sends most of the requests, and a limit that it is given."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.client_limits import ClientLimit, LimitAsked, LimitFound, SetLimit
from activities.locks import Locks
from activities.messages import Announcement, Attempt, Delivery
from activities.reports import RunRecord
from activities.stage import Stage
from activities.symptom_models import ClientCount, Requests, RequestsAsked
from tests.histories import keep
from tests.workflows.bare_stage import bare_stage
from tests.workflows.probe import at_gate, failure, progress, until
from workflows.model import Outcome, RunbookResult, State

BUSY = "ab12cd34"


class World:
    def __init__(self, sends: int = 900, limit: ClientLimit | None = None, approvals: int = 0) -> None:
        self.sends, self.limit, self.approvals = sends, limit, approvals
        self.set: list[ClientLimit | None] = []

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(name, {"gates": {"approve-limit": {"approvals": self.approvals}}})

    @activity.defn(name="limits.look")
    async def look(self, asked: LimitAsked) -> LimitFound:
        return LimitFound(summary="", limit=self.limit)

    @activity.defn(name="limits.set")
    async def put(self, order: SetLimit) -> LimitFound:
        assert order.client == BUSY
        self.set.append(order.limit)
        self.limit = order.limit
        return LimitFound(summary="set", limit=order.limit)

    @activity.defn(name="insights.requests")
    async def requests(self, asked: RequestsAsked) -> Requests:
        limited = self.sends // 2 if self.set else self.sends // 4
        others = 0 if self.set else 30
        clients = (
            ClientCount(client=BUSY, requests=self.sends, limited=limited),
            ClientCount(client="k2", requests=100, limited=others),
        )
        total = self.sends + 100
        statuses = {"200": total - limited - others, "429": limited + others}
        return Requests(
            summary=f"{total} requests",
            total=total,
            statuses=statuses,
            clients=clients,
            client_count=2,
            other_median=100,
        )

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        return {}


@contextlib.asynccontextmanager
async def working(client: Client, world: World) -> AsyncIterator[str]:
    queue = f"limit-{uuid.uuid4()}"
    locks = Locks(client, queue)
    hosts: tuple[object, ...] = (world, locks)
    methods = [getattr(host, name) for host in hosts for name in dir(host)]
    activities = [method for method in methods if hasattr(method, "__temporal_activity_definition")]
    async with Worker(client, task_queue=queue, activities=activities):
        yield queue


async def begin(temporal: Client, queue: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    stage = f"stage-{uuid.uuid4().hex[:8]}"
    given = {"stage": stage, "reason": "429s for everybody", "requested_by": "ann", "client": BUSY, **inp}
    return await temporal.start_workflow("ClientRateLimit", given, id=f"limit-{uuid.uuid4()}", task_queue=queue)


async def test_one_client_is_limited_for_a_day_and_the_others_are_served(temporal: WorkflowEnvironment) -> None:
    world = World()
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue)
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
        await keep(handle, "ClientRateLimit", "limited")
    assert result.outcome is Outcome.COMPLETED
    (limit,) = world.set
    assert limit is not None
    assert limit.per_minute == 60
    assert limit.until is not None, "temporary: the API itself no longer heeds it"
    assert {item.id: item.done for item in result.checklist} == {"limited": True, "others": True, "contacted": False}
    assert "30.0% before, 0.0% after" in result.summary


async def test_an_abort_gives_the_former_limit_back(client: Client) -> None:
    former = ClientLimit(per_minute=300)
    world = World(limit=former, approvals=1)
    async with working(client, world) as queue:
        handle = await begin(client, queue)
        state = await until(handle, at_gate)
        gate = state.open_gate()
        assert gate is not None
        assert (gate.plan["limit now"], gate.plan["share of all requests"]) == ("300 requests a minute", "90%")
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: s.step("let-it-work").state is State.WAITING)
        await handle.signal("abort", {"by": "bob"})
        error = await failure(handle)
        await keep(handle, "ClientRateLimit", "aborted")
    assert error.type == "Aborted"
    assert world.set[-1] == former


@pytest.mark.parametrize(
    ("inp", "kind"),
    [
        ({"per_minute": 500}, "NothingToLimit"),
        ({"client": "ffffffff"}, "UnknownClient"),
        ({"client": "550e8400-e29b-41d4-a716-446655440000"}, "BadInput"),
    ],
)
async def test_what_would_change_nothing_and_what_may_be_a_key_are_refused(
    temporal: WorkflowEnvironment, inp: dict[str, Any], kind: str
) -> None:
    world = World()
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, **inp))
    assert error.type == kind
    assert "550e8400" not in error.message
    assert world.set == []


async def test_a_dry_run_limits_nobody(temporal: WorkflowEnvironment) -> None:
    world = World()
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, dry_run=True)
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
        assert (await progress(handle)).step("limit").state is State.SKIPPED
    assert result.outcome is Outcome.DRY_RUN
    assert world.set == []


async def test_a_dry_run_without_that_client_still_says_that_it_would_work(temporal: WorkflowEnvironment) -> None:
    """As the monthly rehearsal starts it, with the client of the example."""
    async with working(temporal.client, World()) as queue:
        handle = await begin(temporal.client, queue, dry_run=True, client="ffffffff")
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
    assert result.outcome is Outcome.DRY_RUN
    assert "would be refused" in result.summary
