"""Several workers on a server that keeps its data, killed at random while runs go on; and the books of what they did.

``python -m tests.worker.fleet TARGET QUEUE LEDGER`` is one worker, to be killed. Its one outside system is a ledger
that takes a change once for each key, as the real ones do; every attempt is written down too.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.locks import Locks
from tests.conftest import temporal_binary
from tests.patience import eventually
from tests.workflows.probe import Probe, Set, Value, World
from workflows import policy, search_attributes
from workflows.model import RunbookResult
from workflows.plugin import RunbooksPlugin

STAGES = 4
_TUNED = {
    "history.transferProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxTimeShift": '"1ms"',
}


def opened(path: Path | str) -> sqlite3.Connection:
    ledger = sqlite3.connect(path, timeout=30, isolation_level=None)
    ledger.execute("CREATE TABLE IF NOT EXISTS attempts (key TEXT, at REAL)")
    ledger.execute(
        "CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, run TEXT, stage TEXT, name TEXT, at REAL)"
    )
    return ledger


class Ledger(World):
    """The probe's world, with its changes in a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    @activity.defn(name="world.set")
    async def set(self, wanted: Set) -> Value:
        run = activity.info().workflow_id or ""
        stage = run.rsplit("@", 1)[-1]
        with closing(opened(self._path)) as ledger:
            ledger.execute("INSERT INTO attempts VALUES (?, ?)", (wanted.key, time.time()))
            await asyncio.sleep(random.uniform(0, 0.2))  # killed before the change ...
            row = (wanted.key, run, stage, wanted.name, time.time())
            ledger.execute("INSERT OR IGNORE INTO effects VALUES (?, ?, ?, ?, ?)", row)
        await asyncio.sleep(random.uniform(0, 0.2))  # ... or after it, before Temporal hears of it
        return Value(summary=f"{wanted.name} set to {wanted.value}", value=wanted.value)

    @activity.defn(name="world.read")
    async def read(self, name: str) -> Value:
        return Value(summary=f"{name} is at 2", value=2)


def shorten() -> None:
    """A dead worker is noticed after three seconds instead of a minute: the only difference to production."""
    for preset in (policy.LOOK, policy.OBSERVE, policy.CHANGE, policy.LOCK, policy.ANNOUNCE, policy.RECORD):
        preset["start_to_close_timeout"] = timedelta(seconds=3)


async def serve(target: str, queue: str, path: str) -> None:
    shorten()
    while True:
        try:
            client = await Client.connect(target, plugins=[RunbooksPlugin()])
            break
        except (RPCError, RuntimeError):  # the server is being killed, too
            await asyncio.sleep(0.1)
    world, locks = Ledger(path), Locks(client, queue)
    activities = [world.resolve, world.read, world.set, world.announce, world.write]
    worker = Worker(
        client,
        task_queue=queue,
        workflows=[Probe],
        activities=[*activities, locks.request, locks.release, locks.is_running],
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )
    running = asyncio.create_task(worker.run())
    print("ready", flush=True)
    await running


# --- the fleet -------------------------------------------------------------------------------------------------------


@dataclass
class Books:
    """What is in the books when all is over."""

    runs: int
    worker_kills: int = 0
    server_kills: int = 0
    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    results: list[RunbookResult] = field(default_factory=list)
    attempts: int = 0
    effects: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By run and change."""
    overlaps: list[tuple[str, str]] = field(default_factory=list)
    """Runs that changed a stage while another had it."""

    @property
    def lost(self) -> int:
        """Runs that did not complete, and changes that were not made."""
        return self.runs - self.ended["completed"] + 2 * self.runs - len(self.effects)

    @property
    def doubled(self) -> int:
        """Changes that were made more than once, and answers that counted more than once."""
        answers = sum(len(result.approvals) - 1 for result in self.results)
        return sum(count - 1 for count in self.effects.values()) + answers


class Server:
    """The dev server over a file, that comes back on its port with all it knew."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self.target = folder, f"127.0.0.1:{port}"
        argv = [temporal_binary(), "server", "start-dev", "--headless", "--port", str(port), "--log-level", "never"]
        argv += ["--db-filename", str(folder / "temporal.db")]
        argv += ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
        for key in search_attributes.ALL:
            argv += ["--search-attribute", f"{key.name}=Keyword"]
        for name, value in _TUNED.items():
            argv += ["--dynamic-config-value", f"{name}={value}"]
        self._argv = argv
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Fleet:
    """Worker processes of one queue."""

    def __init__(self, target: str, queue: str, ledger: Path, size: int) -> None:
        self._argv = [sys.executable, "-m", "tests.worker.fleet", target, queue, str(ledger)]
        self._said: set[int] = set()
        self._workers = [self._started() for _ in range(size)]

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def kill_one(self, chance: random.Random) -> bool:
        """As its machine dying; another takes its place. Only one that works, and never the last of these."""
        for place, worker in enumerate(self._workers):
            if worker.poll() is not None:  # it gave up while the server was away
                self._workers[place] = self._started()
        working = [place for place, worker in enumerate(self._workers) if worker.pid in self._ready()]
        if len(working) < 2:
            return False
        place = chance.choice(working)
        self._workers[place].kill()
        self._workers[place].wait()
        self._workers[place] = self._started()
        return True

    def _ready(self) -> set[int]:
        for worker in self._workers:
            if worker.stdout is not None and worker.stdout.read():
                self._said.add(worker.pid)
        return self._said

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()


async def connected(target: str) -> Client:
    async def client() -> Client | None:
        try:
            found = await Client.connect(target, plugins=[RunbooksPlugin()])
            await found.count_workflows()
        except (RPCError, RuntimeError):
            return None
        return found

    return await eventually(client, "the server answers", every=0.1)


async def killed_at_random(
    folder: Path, port: int, *, runs: int, workers: int, every: float, server_kills: int, seed: int, patience: float
) -> Books:
    """Start runs, answer each once, and kill workers (and the server) until all have ended; then read the books."""
    chance, books, began = random.Random(seed), Books(runs), time.monotonic()
    server, queue = Server(folder, port), "fleet"
    fleet = Fleet(server.target, queue, folder / "ledger.db", workers)
    tasks: list[asyncio.Task[Any]] = []
    try:
        client = await connected(server.target)
        handles = [await _begun(client, queue, number) for number in range(runs)]
        ending = asyncio.create_task(_all_ended(handles, books))
        tasks += [ending, asyncio.create_task(_answer(handles))]
        next_server_kill = 5.0
        while not ending.done():
            await asyncio.wait({ending}, timeout=every)
            assert time.monotonic() - began < patience, f"still open after {patience} s: {books}"
            books.worker_kills += fleet.kill_one(chance)
            if books.server_kills < server_kills and time.monotonic() - began > next_server_kill:
                server.kill()
                server.start()
                books.server_kills += 1
                next_server_kill *= 3
        ending.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        fleet.stop()
        server.kill()
    books.seconds = time.monotonic() - began
    _read(books, folder / "ledger.db")
    return books


async def _begun(client: Client, queue: str, number: int) -> WorkflowHandle[Any, Any]:
    stage = f"stage-{number % STAGES}"
    inp = {"stage": stage, "reason": "fleet", "requested_by": "ann", "laps": 1}
    return await client.start_workflow(
        "Probe", inp, id=f"run-{number}-{uuid.uuid4().hex[:6]}@{stage}", task_queue=queue
    )


async def _answer(handles: list[WorkflowHandle[Any, Any]]) -> None:
    """One yes for each run, as soon as it asks, by an update whose id makes sending it twice sending it once."""

    async def one(handle: WorkflowHandle[Any, Any]) -> None:
        yes, patience = {"by": "bob", "decision": "approve"}, timedelta(seconds=5)
        while True:
            try:
                await handle.execute_update("decide", yes, id="yes", rpc_timeout=patience)
                return
            except Exception:  # not asked yet, or nobody there to answer
                await asyncio.sleep(0.3)

    await asyncio.gather(*(one(handle) for handle in handles))


async def _all_ended(handles: list[WorkflowHandle[Any, Any]], books: Books) -> None:
    for handle in handles:

        async def closed(handle: WorkflowHandle[Any, Any] = handle) -> str | None:
            try:
                found = (await handle.describe(rpc_timeout=timedelta(seconds=5))).status
                if found is WorkflowExecutionStatus.COMPLETED:
                    books.results.append(RunbookResult.model_validate(await handle.result()))
            except RPCError:  # the server is away
                return None
            running = found in (None, WorkflowExecutionStatus.RUNNING)
            return None if found is None or running else found.name.lower()

        books.ended[str(await eventually(closed, f"the end of {handle.id}", patience=3600, every=0.3))] += 1


def _read(books: Books, path: Path) -> None:
    with closing(opened(path)) as ledger:
        (books.attempts,) = ledger.execute("SELECT count(*) FROM attempts").fetchone()
        rows = ledger.execute("SELECT run, name FROM effects").fetchall()
        spans = ledger.execute("SELECT stage, run, min(at), max(at) FROM effects GROUP BY run ORDER BY stage, min(at)")
        books.effects = Counter((run, name) for run, name in rows)
        before: tuple[str, str, float] | None = None
        for stage, run, first, last in spans:
            if before is not None and before[0] == stage and first < before[2]:
                books.overlaps.append((before[1], run))
            before = (stage, run, last)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:4]))
