"""A query that reaches a fresh worker together with a result, on a real server: the run keeps to its tasks' times."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle, WorkflowQueryFailedError
from temporalio.service import RPCError
from temporalio.worker import Replayer, Worker

with workflow.unsafe.imports_passed_through():  # no part of the workflow here, and slow to load for each query
    from workflows.plugin import RunbooksPlugin
    from workflows.stale_time import ASK_AGAIN

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
        await gates[activity.info().workflow_id].wait()

    refused: list[str] = []

    async def asked(handle: WorkflowHandle[Hurried, str]) -> None:
        with suppress(RPCError):  # of some the server hears no answer
            try:
                await handle.query("look", rpc_timeout=timedelta(seconds=3))
            except WorkflowQueryFailedError as error:
                refused.append(str(error))

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
    assert [text for text in refused if ASK_AGAIN not in text] == []
    replayer = Replayer(workflows=[Hurried], plugins=[RunbooksPlugin()])
    for handle in handles:
        await replayer.replay_workflow(await handle.fetch_history())
