"""What a careful update of many documents costs, beside three scripts that do it otherwise, on the same data.

- *one update*: a single ``update_many``. Nothing is faster; nobody can throttle, pause or resume it.
- *keyset script*: ids read once in their order, then one ``update_many`` a batch, as BatchedUpdate does it, with
  nothing else: no heartbeats, no look at the load, no page, no resuming.
- *skip/limit script*: the algorithm of the operational document, line by line.

BatchedUpdate runs in a worker process of its own on a real Temporal server. Its batch size is fixed to that of the
scripts. The server is the embedded one, whose ranges of ``_id`` are scans of the collection: the ratios are its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle

from bench.server import environment
from sandbox import mongodb
from sandbox.parts import program
from workflows.batch_driver import RANGE_DOCUMENTS
from workflows.model import RunbookResult, RunState

SIZES = {50_000: 9, 200_000: 5}
"""Documents, and how often the two that are compared are measured."""

COMPARED = ("keyset script", "BatchedUpdate")
BATCH = 5000
LABEL = "embedded SecantusDB, not MongoDB"
QUERY: dict[str, Any] = {"environment": {"$exists": False}}
UPDATE = {"$set": {"environment": "production"}}

Items = pymongo.collection.Collection[dict[str, Any]]


@dataclass
class Taken:
    seconds: float
    left: int
    whole: float | None = None
    """Seconds of the whole run, where the update is only part of it."""


@contextlib.contextmanager
def database() -> Iterator[str]:
    """URI of the embedded server, started as the sandbox does."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        binary = program(mongodb.PROGRAM)
        command = mongodb.command(binary, 0, Path(home) / "data", auth=False)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            while not (found := re.search(r"listening on [\d.]+:(\d+)", process.stdout.readline())):
                assert process.poll() is None, "the embedded server did not start"
            yield f"mongodb://127.0.0.1:{found[1]}/?directConnection=true"
        finally:
            process.kill()
            process.wait()


def fill(items: Items, count: int) -> None:
    items.drop()
    for start in range(0, count, 10_000):
        items.insert_many(
            [
                {"owner": f"user-{n % 500:03}", "status": "active", "pad": "x" * 100}
                for n in range(start, start + 10_000)
            ]
        )


def one_update(items: Items) -> None:
    items.update_many(QUERY, UPDATE)


def keyset(items: Items) -> None:
    ids = [doc["_id"] for doc in items.find(QUERY, {"_id": 1}, sort={"_id": 1}, batch_size=5000)]
    cuts = [*ids[BATCH - 1 :: BATCH]] or [ids[-1]]
    if cuts[-1] != ids[-1]:
        cuts.append(ids[-1])
    before: dict[str, Any] = {}
    for cut in cuts:
        items.update_many({"_id": {**before, "$lte": cut}, **QUERY}, UPDATE)
        before = {"$gt": cut}


def skip_limit(items: Items) -> None:
    processed, total = 0, items.count_documents(QUERY)
    while processed < total:
        docs = list(items.find(QUERY).skip(processed).limit(BATCH))
        if not docs:
            break
        items.update_many({"_id": {"$in": [doc["_id"] for doc in docs]}}, UPDATE)
        processed += len(docs)


SCRIPTS = {"one update": one_update, "keyset script": keyset, "skip/limit script": skip_limit}


class WorkerProcess:
    """A worker in a process of its own, and the memory it takes."""

    def __init__(self, *argv: str) -> None:
        command = [sys.executable, "-m", "tests.workflows.batch_world", *argv]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def megabytes(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


async def batched(client: Client, queue: str, stage: str, worker: WorkerProcess) -> tuple[Taken, list[float], Any]:
    """One run; returns what it took, the worker's memory while it ran, and its handle."""
    sizes = {"initial": BATCH, "min": BATCH, "max": BATCH}
    inp = {"stage": stage, "reason": "bench", "collection": "items", "filter": QUERY, "update": UPDATE, "batch": sizes}
    began = time.perf_counter()
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        "BatchedUpdate", inp | {"partitions": 1, "sweep_pause": "PT0S"}, id=f"b-{uuid.uuid4()}", task_queue=queue
    )
    result = asyncio.ensure_future(handle.result())
    memory = []
    while not result.done():
        memory.append(worker.megabytes())
        await asyncio.wait({result}, timeout=0.25)
    whole = time.perf_counter() - began
    RunbookResult.model_validate(result.result())
    state = RunState.model_validate(await handle.query("progress"))
    return Taken(length(state, "plan") + length(state, "update"), 0, whole), memory, handle


def length(state: RunState, step_id: str) -> float:
    step = state.step(step_id)
    assert step is not None
    assert step.started_at is not None
    assert step.ended_at is not None
    return (step.ended_at - step.started_at).total_seconds()


async def events(handle: WorkflowHandle[Any, Any]) -> Counter[str]:
    history = await handle.fetch_history()
    return Counter(EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in history.events)


class Bench:
    """One server, one worker, everything in turns."""

    def __init__(self, client: Client, worker: WorkerProcess, items: Items) -> None:
        self._client, self._worker, self._items = client, worker, items
        self.taken: dict[tuple[str, int], list[Taken]] = {}
        self.memory: dict[int, list[float]] = {}
        self.events: dict[int, Counter[str]] = {}

    async def once(self, name: str, count: int) -> None:
        fill(self._items, count)
        if name == "BatchedUpdate":
            taken, memory, handle = await batched(self._client, "bench", "bench", self._worker)
            self.memory.setdefault(count, []).extend(memory)
            self.events[count] = await events(handle)
        else:
            began = time.perf_counter()
            SCRIPTS[name](self._items)
            taken = Taken(time.perf_counter() - began, 0)
        taken.left = self._items.count_documents(QUERY)
        self.taken.setdefault((name, count), []).append(taken)

    async def all(self, count: int, rounds: int) -> None:
        """The two that are compared in turns, each first as often as the other; the other two once."""
        for number in range(rounds):
            for name in COMPARED if number % 2 else COMPARED[::-1]:
                await self.once(name, count)
        for name in ("one update", "skip/limit script"):
            await self.once(name, count)

    def rate(self, name: str, count: int) -> float:
        """Documents a second, the median of all rounds."""
        return statistics.median((count - taken.left) / taken.seconds for taken in self.taken[name, count])

    def further(self, name: str) -> float:
        """Microseconds that each document adds between the two sizes, where the server's scans weigh most."""
        small, large = SIZES
        fewer, more = (statistics.median(taken.seconds for taken in self.taken[name, count]) for count in SIZES)
        return (more - fewer) / (large - small) * 1e6

    def ratio(self, count: int) -> float:
        """Of the two that are compared, the median of all rounds: both of a round meet the machine in the same mood."""
        script, ours = (self.taken[name, count] for name in COMPARED)
        return statistics.median(one.seconds / other.seconds for one, other in zip(script, ours, strict=True))


async def measure() -> Bench:
    with database() as uri, pymongo.MongoClient[dict[str, Any]](uri) as mongo:
        async with environment() as env:
            worker = WorkerProcess(env.client.service_client.config.target_host, "bench", uri)
            try:
                bench = Bench(env.client, worker, mongo["bench"]["items"])
                await bench.once("BatchedUpdate", 10_000)  # warms caches up
                for count, rounds in SIZES.items():
                    await bench.all(count, rounds)
            finally:
                worker.stop()
    return bench


def show(bench: Bench) -> None:
    print(f"Updating documents in batches of {BATCH:,} ({LABEL})")
    print(f"  {'':18}{'documents':>10}{'seconds':>9}{'a second':>10}{'left behind':>13}")
    for count in SIZES:
        for name in ("one update", "keyset script", "skip/limit script", "BatchedUpdate"):
            taken = bench.taken[name, count]
            seconds = statistics.median(one.seconds for one in taken)
            whole = statistics.median(one.whole or 0 for one in taken)
            note = f"   ({whole:.1f} s with trial, checks and looks for late writers)" if whole else ""
            print(f"  {name:18}{count:>10,}{seconds:>9.1f}{bench.rate(name, count):>10,.0f}{taken[-1].left:>13,}{note}")
    small, large = SIZES
    for count in SIZES:
        print(f"  BatchedUpdate to keyset script at {count:,}: {bench.ratio(count):.2f}   (promised: at least 0.90)")
    slower = ", ".join(f"{name} {bench.rate(name, small) / bench.rate(name, large):.2f} x" for name in COMPARED)
    print(f"  slower a document at four times the size: {slower}")
    further = ", ".join(f"{name} {bench.further(name):.0f} µs" for name in COMPARED)
    print(f"  each document from {small:,} to {large:,} adds: {further}")
    _memory(bench.memory)
    _history(bench.events[large])


def _memory(memories: dict[int, list[float]]) -> None:
    peaks = {count: max(seen) for count, seen in memories.items()}
    shown = ", ".join(f"{peaks[count]:.0f} MB at {count:,}" for count in SIZES)
    print(f"  memory of the worker at its peak: {shown}")


def _history(seen: Counter[str]) -> None:
    """Events by measurement at the larger size, and what that makes of a hundred million."""
    documents = max(SIZES)
    signals = seen["WORKFLOW_EXECUTION_SIGNALED"]
    total = sum(seen.values())
    print(f"  events of history at {documents:,} documents: {total}, {signals} of them news for the page")
    fixed = total - 6 * -(-documents // RANGE_DOCUMENTS) - 4 * signals
    ranges = 100_000_000 // RANGE_DOCUMENTS
    hundred = fixed + 6 * ranges + 4 * 100
    print(
        f"  at 100,000,000: {fixed} once + {ranges:,} ranges of 6 + at most 100 news of 4 = {hundred:,}, "
        f"{hundred / 100:.0f} a million, cut by continue-as-new at about 4,000"
    )


def main() -> None:
    show(asyncio.run(measure()))


if __name__ == "__main__":
    main()
