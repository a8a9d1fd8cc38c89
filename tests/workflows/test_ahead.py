"""Queries that reach a fresh worker together with news, on a real server: no run goes on from what it did for them."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio import activity, workflow
from temporalio.api.enums.v1 import TaskQueueKind, TaskQueueType
from temporalio.api.taskqueue.v1 import StickyExecutionAttributes, TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Replayer, Worker

from tests.patience import eventually

with workflow.unsafe.imports_passed_through():  # no part of the workflow here, and slow to load for each query
    from workflows.plugin import RunbooksPlugin

WORKFLOW = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
RUNS = 25
"""Without the guard most of them go wrong."""


@workflow.defn(name="Hurried")
class Hurried:
    """Decides by the time whether it waits, as every deadline does."""

    @workflow.run
    async def run(self, queue: str) -> str:
        limit = timedelta(seconds=60)
        await workflow.execute_activity("first", task_queue=queue, start_to_close_timeout=limit)
        deadline = workflow.now() + timedelta(seconds=0.5)
        await workflow.execute_activity("slow", task_queue=queue, start_to_close_timeout=limit)
        if workflow.now() < deadline:
            await workflow.sleep(0.01)
            return "in time"
        await workflow.execute_activity("first", task_queue=queue, start_to_close_timeout=limit)
        return "late"

    @workflow.query(name="look")
    def look(self) -> str:
        return "seen"


async def test_a_query_of_a_fresh_worker_does_not_turn_back_the_clock(client: Client) -> None:
    name = uuid.uuid4().hex[:8]
    begun, gates = asyncio.Semaphore(0), {f"{name}-{number}": asyncio.Event() for number in range(RUNS)}

    @activity.defn(name="first")
    async def first() -> None: ...

    @activity.defn(name="slow")
    async def slow() -> None:
        begun.release()
        await gates[activity.info().workflow_id or ""].wait()

    async def asked(handle: WorkflowHandle[Hurried, str]) -> None:
        with suppress(RPCError):  # of some the server hears no answer
            await handle.query("look", rpc_timeout=timedelta(seconds=3))

    async def raced(handle: WorkflowHandle[Hurried, str], number: int) -> str:
        queries = [asyncio.create_task(asked(handle)) for _ in range(3)]
        await asyncio.sleep(0.002 * (number % 10))  # of the ways to meet, one each
        gates[handle.id].set()
        await asyncio.gather(*queries)
        return await asyncio.wait_for(handle.result(), 180)

    def worker() -> Worker:
        return Worker(client, task_queue=name, workflows=[Hurried])

    async with Worker(client, task_queue=f"{name}-steps", activities=[first, slow]):
        async with worker():
            handles = [
                await client.start_workflow(Hurried.run, f"{name}-steps", id=run, task_queue=name) for run in gates
            ]
            for _ in handles:
                await asyncio.wait_for(begun.acquire(), 180)
        await asyncio.sleep(0.6)  # past every deadline
        async with worker():
            ends = await asyncio.gather(*(raced(handle, number) for number, handle in enumerate(handles)))
    assert ends == ["late"] * RUNS
    replayer = Replayer(workflows=[Hurried], plugins=[RunbooksPlugin()])
    for handle in handles:
        await replayer.replay_workflow(await handle.fetch_history())


async def test_a_run_terminated_with_a_result_that_it_has_not_taken_up_still_answers(client: Client) -> None:
    queue, begun, gate = uuid.uuid4().hex, asyncio.Event(), asyncio.Event()

    @activity.defn(name="first")
    async def first() -> None: ...

    @activity.defn(name="slow")
    async def slow() -> None:
        begun.set()
        await gate.wait()

    async with Worker(client, task_queue=f"{queue}-steps", activities=[first, slow]):
        async with Worker(client, task_queue=queue, workflows=[Hurried]):
            run = await client.start_workflow(Hurried.run, f"{queue}-steps", id=queue, task_queue=queue)
            await asyncio.wait_for(begun.wait(), 60)
        gate.set()

        async def came_in() -> bool:
            history = await run.fetch_history()
            return sum(event.HasField("activity_task_completed_event_attributes") for event in history.events) == 2

        await eventually(came_in, "the result is there, and nobody to go on with it")
        await run.terminate("by hand")
    async with Worker(client, task_queue=queue, workflows=[Hurried]):
        assert [await run.query("look") for _ in range(2)] == ["seen", "seen"]


@workflow.defn(name="Concurrent")
class Concurrent:
    """What it does first depends on whether its two pieces of news come together."""

    def __init__(self) -> None:
        self.heard: set[str] = set()

    @workflow.run
    async def run(self) -> list[str]:
        order: list[str] = []

        async def note(news: str, turns: int) -> None:
            await workflow.wait_condition(lambda: news in self.heard)
            for _ in range(turns):
                await asyncio.create_task(_nothing())
            order.append(news)
            await workflow.sleep(0.01 * len(news))

        await asyncio.gather(note("slowly", 5), note("soon", 0))
        await workflow.wait_condition(lambda: "end" in self.heard)
        return order

    @workflow.signal
    def news(self, news: str) -> None:
        self.heard.add(news)

    @workflow.query(name="look")
    def look(self) -> list[str]:
        return sorted(self.heard)


async def _nothing() -> None: ...


class Dying:
    """A worker as the server sees it: it takes tasks of one queue, and answers none but the first."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
        self._queue = TaskQueue(name=queue)
        self._own = TaskQueue(name=f"{queue}-of-the-dying", kind=kind, normal_name=queue)

    async def takes(self, queue: TaskQueue | None = None) -> PollWorkflowTaskQueueResponse:
        asked = PollWorkflowTaskQueueRequest(
            namespace=self._client.namespace, task_queue=queue or self._own, identity="dying"
        )
        return await self._client.workflow_service.poll_workflow_task_queue(asked, timeout=timedelta(seconds=60))

    async def answers_the_first(self) -> None:
        task = await self.takes(self._queue)
        own = StickyExecutionAttributes(worker_task_queue=self._own, schedule_to_start_timeout=Duration(seconds=2))
        answer = RespondWorkflowTaskCompletedRequest(
            namespace=self._client.namespace, task_token=task.task_token, identity="dying", sticky_attributes=own
        )
        await self._client.workflow_service.respond_workflow_task_completed(answer)

    async def is_there(self) -> bool:
        """Whether the server knows that it waits; else it would not give it anything."""
        asked = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=self._own,
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        return bool((await self._client.workflow_service.describe_task_queue(asked)).pollers)


async def test_a_run_asked_while_a_dead_worker_has_its_task_is_loaded_anew_for_the_next(client: Client) -> None:
    """A query and a task die with a worker; the next one is asked, while the server still waits for the first."""
    queue = uuid.uuid4().hex
    run = await client.start_workflow(Concurrent.run, id=queue, task_queue=queue, task_timeout=timedelta(seconds=5))
    dying = Dying(client, queue)
    await dying.answers_the_first()
    taken = asyncio.create_task(dying.takes())
    await eventually(dying.is_there, "it waits")
    question = asyncio.create_task(run.query("look", rpc_timeout=timedelta(seconds=30)))
    assert (await taken).query.query_type == "look"
    await run.signal("news", "slowly")
    assert (await dying.takes()).started_event_id
    async with Worker(client, task_queue=queue, workflows=[Concurrent]):
        assert await question == ["slowly"], "the news of the task that is with the dead one"
        await run.signal("news", "soon")

        async def heard() -> bool:
            found: list[str] = await run.query("look")
            return found == ["slowly", "soon"]

        await eventually(heard, "the next task")
        await run.signal("news", "end")
        assert await asyncio.wait_for(run.result(), 60) == ["soon", "slowly"]
    history = await run.fetch_history()
    assert any(event.HasField("workflow_task_timed_out_event_attributes") for event in history.events)
    await Replayer(workflows=[Concurrent], plugins=[RunbooksPlugin()]).replay_workflow(history)
