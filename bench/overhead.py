"""What the frame costs: a runbook of N steps beside a bare workflow that calls the same N no-op activities.

Both run on the same server, worker and client, in turns, so that whatever else the machine does hits both. The frame's
run also records its stage, shows its page, sets search attributes and writes a record; the ratio a step is of the
difference between a long and a short run, so that what a run costs once is shown apart.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import uuid
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client

from activities.evidence import Finding
from activities.reports import RunRecord
from activities.stage import Stage
from workflows import policy
from workflows.model import RunbookInput, RunbookResult
from workflows.runbook import Runbook, RunbookSpec

with workflow.unsafe.imports_passed_through():  # no part of the workflows here, and slow to load once a run
    from temporalio.testing import WorkflowEnvironment
    from temporalio.worker import Worker

    from bench.server import environment

SHORT, LONG, ROUNDS = 5, 45, 25


class Nothing:
    """No-op activities under the names that the frame calls."""

    @activity.defn(name="bench.nothing")
    async def nothing(self, stage: Stage) -> Finding:
        return Finding(summary="nothing")

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return STAGE

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        return {}


STAGE = Stage.model_validate(
    {
        "name": "bench",
        "function": "f",
        "url": "http://127.0.0.1:1",
        "api_key": "env:NONE",
        "log_group": "g",
        "gateway": {"name": "a", "stage": "bench"},
        "database": {"uri": "env:NONE", "name": "d"},
    }
)


class BenchInput(RunbookInput):
    steps: int


@workflow.defn(name="BenchRunbook")
class BenchRunbook(Runbook[BenchInput]):
    """N looks, one after the other."""

    spec = RunbookSpec(input=BenchInput, when="bench", steps=(), checklist=(), gates=(), example={}, changes=False)

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: BenchInput) -> str:
        for number in range(inp.steps):
            await self.look(f"step-{number}", Nothing.nothing, self.stage)
        return "done"


@workflow.defn(name="BenchBare")
class BenchBare:
    """The same activities with the same arguments, and nothing else."""

    @workflow.run
    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await workflow.execute_activity_method(Nothing.nothing, STAGE, **policy.LOOK)


async def timed(client: Client, queue: str, name: str, argument: Any) -> float:
    # A full collection takes as long as fifteen steps and comes every eighth run or so: it would stay with one of the
    # four kinds of run for many turns.
    gc.collect()
    began = time.perf_counter()
    await client.execute_workflow(name, argument, id=f"bench-{uuid.uuid4()}", task_queue=queue)
    return time.perf_counter() - began


async def measure(env: WorkflowEnvironment) -> list[dict[str, float]]:
    """Seconds of each kind of run, turn by turn."""
    queue, nothing = "bench", Nothing()
    worker = Worker(
        env.client,
        task_queue=queue,
        workflows=[BenchRunbook, BenchBare],
        activities=[nothing.nothing, nothing.resolve, nothing.write],
    )
    kinds: dict[str, tuple[str, Any]] = {
        f"{kind} {steps}": (
            ("BenchBare", steps)
            if kind == "bare"
            else ("BenchRunbook", {"stage": "bench", "reason": "bench", "steps": steps})
        )
        for kind in ("bare", "frame")
        for steps in (SHORT, LONG)
    }
    turns: list[dict[str, float]] = []
    async with worker:
        for _ in range(ROUNDS + 2):
            turns.append({kind: await timed(env.client, queue, *run) for kind, run in kinds.items()})
    return turns[2:]  # the first turns warm caches up


def per_step(turn: dict[str, float], kind: str) -> float:
    """Milliseconds a step in one turn, without what a run costs once."""
    return (turn[f"{kind} {LONG}"] - turn[f"{kind} {SHORT}"]) / (LONG - SHORT) * 1000


def once(turn: dict[str, float], kind: str) -> float:
    """Milliseconds that a run takes beside its steps: its start, what it loads, its end."""
    return turn[f"{kind} {SHORT}"] * 1000 - SHORT * per_step(turn, kind)


def main() -> None:
    async def work() -> list[dict[str, float]]:
        async with environment() as env:
            return await measure(env)

    turns = asyncio.run(work())
    step, run = (
        {kind: statistics.median(cost(turn, kind) for turn in turns) for kind in ("bare", "frame")}
        for cost in (per_step, once)
    )
    # The four runs of a turn are neighbours in time, so their ratio suffers least from what else the machine does.
    low, ratio, high = statistics.quantiles((per_step(turn, "frame") / per_step(turn, "bare") for turn in turns), n=4)
    print(f"Overhead of the frame (median of {len(turns)} turns)")
    print(f"  bare workflow   {step['bare']:6.2f} ms a step, {run['bare']:4.0f} ms a run beside its steps")
    print(f"  runbook         {step['frame']:6.2f} ms a step, {run['frame']:4.0f} ms a run beside its steps")
    print(f"  ratio a step    {ratio:6.2f}   (promised: at most 1.15; half of the turns: {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
