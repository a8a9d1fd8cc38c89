"""Which work goes where, and who goes first."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from activities.locks import Locks
from activities.settings import ConfigError, Settings
from activities.stage import Stage
from tests.patience import eventually
from tests.workflows.probe import Probe, ProbeInput, World, begin
from worker.queues import MIGRATION_SLOTS, Queue, served
from worker.versioning import deployment
from workflows import policy
from workflows.model import RunbookResult
from workflows.runbook import Runbook, RunbookSpec


def test_a_process_serves_both_queues_or_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOKS_CONFIG", "none.toml")
    settings = Settings(task_queue="books")
    assert [queue.name for queue in served(settings, {})] == ["books", "books-migrations"]
    assert served(settings, {"RUNBOOKS_SERVE": "migrations"}) == [Queue("books-migrations", MIGRATION_SLOTS)]
    with pytest.raises(ConfigError, match="takes 'runbooks' or 'migrations'"):
        served(settings, {"RUNBOOKS_SERVE": "all"})


def test_a_version_needs_both_its_names() -> None:
    assert deployment({}) is None
    found = deployment({"TEMPORAL_DEPLOYMENT_NAME": "runbooks", "TEMPORAL_WORKER_BUILD_ID": "a1"})
    assert found is not None
    assert found.version.to_canonical_string() == "runbooks.a1"
    with pytest.raises(ConfigError, match="TEMPORAL_DEPLOYMENT_NAME is not"):
        deployment({"TEMPORAL_WORKER_BUILD_ID": "a1"})


class Turns(World):
    """A world that remembers whose stage was looked up in which order; the first look waits until ``opened``."""

    def __init__(self) -> None:
        super().__init__(**{"turn-it": {"approvals": 0}})
        self.order: list[str] = []
        self.opened = asyncio.Event()

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        self.order.append(activity.info().workflow_id or "")
        await self.opened.wait()
        return await super().resolve(name)


async def asked(handle: WorkflowHandle[Any, Any]) -> None:
    """Until the run's first step waits for a worker."""

    async def waits() -> bool:
        return bool((await handle.describe()).raw_description.pending_activities)

    await eventually(waits, "the first step waits for a worker", every=0.02)


@pytest.mark.long
async def test_incident_work_overtakes_what_was_waiting_before_it(client: Client) -> None:
    """One slot, sixteen runs before it: the server hands the incident's steps out first."""
    world, queue = Turns(), f"priority-{uuid.uuid4()}"
    locks = Locks(client, queue)
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Probe],
        activities=[
            *(world.resolve, world.read, world.set, world.announce, world.write),
            *(locks.request, locks.release, locks.is_running),
        ],
        max_concurrent_activities=1,
    ):
        before = [await begin(client, queue) for _ in range(16)]
        for handle in before:
            await asked(handle)
        incident = await begin(client, queue, incident="INC-1", severity="P1")
        await asked(incident)
        world.opened.set()
        await asyncio.gather(*(handle.result() for handle in (*before, incident)))
    # Some of the others can be on their way to the worker already, a few for each partition of the queue.
    place = world.order.index(incident.id)
    assert place <= 11, f"the incident's step came as number {place + 1} of {len(world.order)}"


class Elsewhere(World):
    """A world whose stage has a queue for long work."""

    def __init__(self, queue: str) -> None:
        super().__init__()
        self.queue = queue

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return (await super().resolve(name)).model_copy(update={"migrations_queue": self.queue})


@workflow.defn(name="LongWork")
class LongWork(Runbook[ProbeInput]):
    """Looks quickly, and then for long."""

    spec = RunbookSpec(
        input=ProbeInput, when="never outside the tests", steps=(), checklist=(), gates=(), example={}, changes=False
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ProbeInput) -> str:
        await self.look("quick", World.read, "dial")
        await self.look("long", World.read, "dial", policy.BACKUP)
        return "done"


async def test_long_database_work_goes_to_the_queue_that_the_stages_record_names(client: Client) -> None:
    queue = f"queues-{uuid.uuid4()}"
    world = Elsewhere(f"{queue}-migrations")
    steps = [world.resolve, world.read, world.announce, world.write]
    async with (
        Worker(client, task_queue=queue, workflows=[LongWork], activities=steps),
        Worker(client, task_queue=world.queue, activities=steps),
    ):
        handle = await begin(client, queue, "LongWork")
        await handle.result()
    scheduled = [
        event.activity_task_scheduled_event_attributes
        for event in (await handle.fetch_history()).events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert {one.activity_id: one.task_queue.name for one in scheduled} == {
        "resolve-stage": queue,
        "quick": queue,
        "long": world.queue,
        "record": queue,
    }
