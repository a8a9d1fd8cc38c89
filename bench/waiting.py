"""Many runs that wait for people, on one worker: what they cost, and how soon a yes is acted upon.

``GATES`` runbooks wait at a gate and as many bare workflows wait for a signal, on the same server, each kind on a
worker in its own process, for memory that one kind had freed would be the other's. Then all of them are told to go on.
From the signal to the begin of the next activity is what a person at the keyboard waits for.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle

from activities.evidence import Finding
from activities.messages import Announcement, Delivery
from activities.reports import RunRecord
from activities.stage import Stage
from workflows import policy
from workflows.model import RunbookInput, RunbookResult
from workflows.runbook import Runbook, RunbookSpec

with workflow.unsafe.imports_passed_through():  # no part of the workflows here, and slow to load once a run
    from temporalio.worker import Worker

    from bench.overhead import STAGE
    from bench.server import environment
    from workflows.plugin import RunbooksPlugin

GATES, AT_ONCE = 2000, 20
"""Runs of each kind, and how many people say yes at the same moment."""


HISTORY = {"BenchWait": 4, "BenchGate": 20}
"""Events of a run that waits."""


class Clock:
    """When each run's activity after the yes began."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    @activity.defn(name="bench.reached")
    async def reached(self, stage: Stage) -> Finding:
        self.began[activity.info().workflow_id or ""] = time.perf_counter()
        return Finding(summary="reached")

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return STAGE

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        return Delivery(delivered_by="bench", attempts=())

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        return {}


@workflow.defn(name="BenchGate")
class BenchGate(Runbook[RunbookInput]):
    """One gate, and one look after it."""

    spec = RunbookSpec(input=RunbookInput, when="bench", steps=(), checklist=(), gates=(), example={}, changes=False)

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: RunbookInput) -> str:
        await self.gate("go", "Go on?", {"from": 1, "to": 2})
        await self.look("reached", Clock.reached, self.stage)
        return "done"


@workflow.defn(name="BenchWait")
class BenchWait:
    """A signal, and one activity after it."""

    def __init__(self) -> None:
        self.told = False

    @workflow.run
    async def run(self, _inp: dict[str, Any]) -> None:
        await workflow.wait_condition(lambda: self.told)
        await workflow.execute_activity_method(Clock.reached, STAGE, **policy.LOOK)

    @workflow.signal
    def approve(self, _decision: dict[str, Any]) -> None:
        self.told = True


def resident() -> float:
    """Megabytes of this process: the worker and the client that measures."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


async def waiting(client: Client, queue: str, name: str) -> list[WorkflowHandle[Any, Any]]:
    """Start so many runs, and return when each of them waits."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def begin(number: int) -> WorkflowHandle[Any, Any]:
        async with limit:
            given = {"stage": "bench", "reason": "bench", "requested_by": "ann"}
            run = f"{name}-{number}-{uuid.uuid4().hex[:8]}"
            handle = await client.start_workflow(name, given, id=run, task_queue=queue)
            while True:
                if (await handle.describe()).history_length >= HISTORY[name]:
                    return handle
                await asyncio.sleep(0.05)

    return list(await asyncio.gather(*(begin(number) for number in range(GATES))))


async def answered(handles: list[WorkflowHandle[Any, Any]], clock: Clock) -> list[float]:
    """Milliseconds from each yes to the activity that follows it."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def answer(handle: WorkflowHandle[Any, Any]) -> float:
        async with limit:
            said = time.perf_counter()
            await handle.signal("approve", {"by": "bob"})
            await handle.result()
            return (clock.began[handle.id] - said) * 1000

    return list(await asyncio.gather(*(answer(handle) for handle in handles)))


async def measure(server: str, name: str) -> tuple[float, list[float]]:
    """Megabytes that the waiting runs of this kind added to the worker, and the latencies."""
    client = await Client.connect(server, plugins=[RunbooksPlugin()])
    clock, queue = Clock(), f"bench-{name}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=[BenchGate, BenchWait],
        activities=[clock.reached, clock.resolve, clock.announce, clock.write],
        max_cached_workflows=GATES // 2,
    ):
        before = resident()
        handles = await waiting(client, queue, name)
        return resident() - before, await answered(handles, clock)


def measured(server: str, name: str) -> tuple[float, list[float]]:
    """The same, as the whole work of a process."""
    return asyncio.run(measure(server, name))


def main() -> None:
    async def work() -> dict[str, tuple[float, list[float]]]:
        found = {}
        async with environment() as env:
            server = env.client.service_client.config.target_host
            for name in HISTORY:
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    found[name] = await asyncio.wrap_future(process.submit(measured, server, name))
        return found

    found = asyncio.run(work())
    print(f"{GATES:,} runs wait on one worker that keeps half of them in memory; {AT_ONCE} people answer at a time")
    for name, label in (("BenchWait", "bare workflow"), ("BenchGate", "runbook")):
        memory, latencies = found[name]
        cuts = statistics.quantiles(latencies, n=100)
        print(
            f"  {label:<14} yes to next activity: p50 {cuts[49]:6.0f} ms, p95 {cuts[94]:6.0f} ms; "
            f"worker {memory:+.0f} MB, all {len(latencies):,} went on"
        )
    ratio = statistics.median(found["BenchGate"][1]) / statistics.median(found["BenchWait"][1])
    print(f"  ratio of the medians {ratio:.2f}")


if __name__ == "__main__":
    main()
